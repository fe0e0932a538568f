"""Every benchmark, in a process of its own: `python -m tests.bench [NAME ...]`.

Ratios are measured side by side in one run: times depend on the machine, ratios less so. The rows of the
benchmarks that ran replace their earlier ones in rows.jsonl, and nbs/lab/70_performance reads them there."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
import torch
from prunelab.lab.experiment import read
from prunelab.lab.training import machine as lab_machine
from ..elsewhere.__main__ import cores

HERE = Path(__file__).resolve().parent
ROWS = HERE/'rows.jsonl'
NAMES = ['masks', 'callback', 'loader', 'population', 'train', 'drop', 'tails', 'resume', 'processes',
         'imports', 'memory']

def commit():
    "Which one, and whether library and benchmarks are as it has them; both None outside a checkout"
    def git(*args): return subprocess.run(['git', '-C', str(HERE), *args], capture_output=True, text=True)
    try: head = git('rev-parse', 'HEAD')
    except OSError: head = None                          # no git on this machine
    if head is None or head.returncode: return {'sha': None, 'clean': None}
    changes = git('status', '--porcelain', '--', '../../prunelab', '.', f':!{ROWS.name}')
    return {'sha': head.stdout.strip(), 'clean': not changes.stdout.strip()}

def about():
    "What the ratios may depend on, and whether something else was running: no host, no path"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    known = lab_machine()
    machine = {**{k: known[k] for k in ('processor', 'torch', 'python')}, 'cores': cores(), 'gpu': gpu}
    load = round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None
    return {'machine': machine, 'load': load, 'commit': commit(), 'finished': date.today().isoformat()}

def measured(name):
    "The rows of one benchmark; None if it failed"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'rows'
        command = [sys.executable, '-W', 'ignore', '-m', f'tests.bench.bench_{name}', str(file)]
        return None if subprocess.run(command).returncode else read(file)

def replaced(
    old:list, # Rows
    name:str, # A benchmark
    new:list, # Its rows
    machine:dict, # From `about`
) -> list: # In the order of `NAMES`
    "The rows of `name` are the new ones, and all others stay"
    def whole(threads, **r):
        return {'bench': name, **r, **machine, 'machine': {**machine['machine'], 'threads': threads}}
    rows = [r for r in old if r['bench'] != name] + [whole(**r) for r in new]
    return sorted(rows, key=lambda r: NAMES.index(r['bench']))

def write(path, rows):
    "In one piece: a run that is killed leaves the file whole"
    new = path.with_suffix('.new')
    new.write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf8')
    os.replace(new, path)

def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m tests.bench', description=__doc__)
    parser.add_argument('names', nargs='*', help=f'of {", ".join(NAMES)}; all if there is none')
    parser.add_argument('--rows', type=Path, default=ROWS, help='the file of rows')
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown: parser.error(f'there is no benchmark {unknown}; choose from {NAMES}')
    machine, failed = about(), []
    print(f"{machine['machine']}, load {machine['load']}; times depend on the machine, ratios less so\n",
          flush=True)
    for name in args.names or NAMES:
        rows = measured(name)
        if rows is None: failed.append(name)
        else: write(args.rows, replaced(read(args.rows), name, rows, machine))
    print(f'\nrows: {args.rows.name}' + (f'; failed, with their old rows kept: {failed}' if failed else ''))
    return int(bool(failed))

if __name__ == '__main__': sys.exit(main())
