"""ruff as a git hook: `python docs/hooks.py` installs it, and it calls `python docs/hooks.py --check`.

What is checked is what would be committed, not what lies in the folder."""
import subprocess
import sys
from pathlib import Path

MARK = '# written by `make hooks`'
HOOK = f'''#!/bin/sh
{MARK}: a commit has to obey ruff.toml (`git commit --no-verify` goes without)
[ -e docs/hooks.py ] || exit 0
exec "{sys.executable}" docs/hooks.py --check
'''

def git(*args) -> bytes:
    "What git answers"
    return subprocess.run(['git', *args], check=True, capture_output=True).stdout

def check() -> int: # Exit status, 1 if a staged file breaks a rule
    "ruff on every staged page and Python file"
    names = git('diff', '--cached', '--name-only', '--diff-filter=ACMR', '-z', '--', '*.py', '*.ipynb')
    failed = 0
    for name in filter(None, names.decode().split('\0')):
        cmd = [sys.executable, '-m', 'ruff', 'check', '--quiet', '--output-format', 'concise']
        cmd += ['--force-exclude', '--stdin-filename', name, '-']
        failed |= subprocess.run(cmd, input=git('show', f':{name}')).returncode
    return int(failed > 0)

def install():
    "Write the hook, unless somebody else's is there"
    path = Path(git('rev-parse', '--git-path', 'hooks').decode().strip())/'pre-commit'
    if path.exists() and MARK not in path.read_text():
        sys.exit(f'{path} is not ours and stays. To have ruff too, add to it:\n{HOOK.splitlines()[-1]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HOOK)
    path.chmod(0o755)
    print(f'{path} runs ruff before each commit')

if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit(check())
    install()
