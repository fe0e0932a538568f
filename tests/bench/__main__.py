"Every benchmark, in a process of its own; ratios are measured side by side in one run: `python -m tests.bench [NAME ...]`"
import os, platform, subprocess, sys
import torch

NAMES = ['masks', 'callback', 'loader', 'population', 'train', 'drop', 'tails', 'resume', 'imports']

if __name__ == '__main__':
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {gpu}; Python {platform.python_version()}, torch {torch.__version__}; times depend on the machine, ratios less so\n', flush=True)
    codes = [subprocess.run([sys.executable, '-W', 'ignore', '-m', f'tests.bench.bench_{n}']).returncode for n in sys.argv[1:] or NAMES]
    sys.exit(any(codes))
