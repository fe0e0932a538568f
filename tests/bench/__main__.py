"""Every benchmark, in a process of its own: `python -m tests.bench [NAME ...]`.

Ratios are measured side by side in one run: times depend on the machine, ratios less so."""
import os
import platform
import subprocess
import sys
import torch

NAMES = ['masks', 'callback', 'loader', 'population', 'train', 'drop', 'tails', 'resume', 'processes',
         'imports', 'memory']

def about():
    "The machine in a line"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    processor = platform.processor() or platform.machine()
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    return f'{processor}, {os.cpu_count()} cores, {gpu}; {versions}'

def run(name):
    "Exit status of one benchmark"
    return subprocess.run([sys.executable, '-W', 'ignore', '-m', f'tests.bench.bench_{name}']).returncode

if __name__ == '__main__':
    print(f'{about()}; times depend on the machine, ratios less so\n', flush=True)
    codes = [run(name) for name in sys.argv[1:] or NAMES]
    sys.exit(any(codes))
