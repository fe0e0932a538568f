"""ruff by ruff.toml, and the list of exceptions there against ruff: `python docs/lint.py [--shrink]`.

Files that were written before the rules stand in `lint.per-file-ignores`, each with the rules that it
breaks. A line or a rule that nothing needs any more is an error, and `--shrink` takes it out."""
import json
import subprocess
import sys
from pathlib import Path
import tomlkit

ROOT = Path(__file__).resolve().parent.parent

def ruff(
    root, # Folder with a ruff.toml
    *args, # Further arguments of `ruff check`
) -> subprocess.CompletedProcess:
    "Check everything below `root`"
    cmd = [sys.executable, '-m', 'ruff', 'check', *args, '.']
    return subprocess.run(cmd, cwd=root, capture_output=True, text=True)

def broken(root) -> dict: # {file: {rule, ...}}
    "Which file breaks which rules, exceptions aside"
    res, run = {}, ruff(root, '--config', 'lint.per-file-ignores={}', '--output-format', 'json')
    if run.returncode > 1: raise RuntimeError(run.stderr)
    for v in json.loads(run.stdout):
        file = Path(v['filename']).relative_to(root).as_posix()
        res.setdefault(file, set()).add(v['code'])
    return res

def shrunk(
    listed:dict, # Exceptions, {file: [rule, ...]}
    broken:dict, # {file: {rule, ...}}
) -> dict: # Those of `listed` that are still needed
    "The list without what no longer needs to be there"
    res = {file: [r for r in rules if r in broken.get(file, ())] for file, rules in listed.items()}
    return {file: rules for file, rules in res.items() if rules}

def main(root=ROOT, shrink=False) -> int: # Exit status
    "Complain, or shrink the list"
    path = root/'ruff.toml'
    doc = tomlkit.parse(path.read_text(encoding='utf8'))
    listed = doc['lint']['per-file-ignores']
    needed = shrunk(listed, broken(root))
    stale = {file: [r for r in rules if r not in needed.get(file, ())] for file, rules in listed.items()}
    stale = {file: rules for file, rules in stale.items() if rules or file not in needed}
    if shrink and stale:
        for file in stale:
            if file in needed: listed[file] = needed[file]
            else: del listed[file]
        path.write_text(tomlkit.dumps(doc), encoding='utf8')
        stale = {}
    for file, rules in stale.items():
        print(f'ruff.toml: {file} no longer needs {", ".join(rules) or "its line"}: run `make lint SHRINK=1`')
    run = ruff(root, '--output-format', 'concise')
    print(run.stdout + run.stderr, end='')
    return int(bool(stale)) or run.returncode

if __name__ == '__main__': sys.exit(main(shrink='--shrink' in sys.argv))
