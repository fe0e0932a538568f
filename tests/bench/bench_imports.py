"How long an import takes, each in a process of its own"
import subprocess
import sys
import time
from .common import main, row

def once(statement):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', statement], check=True)
    return time.perf_counter() - start

def against(ours, peer, n, target=None):
    "`n` fresh processes each, taken in turn; the ratio is a difference in seconds"
    pairs = [(once(f'import {ours}'), once(f'import {peer}')) for _ in range(n)]
    a, b = zip(*pairs)
    what = f'import {ours}, s; other: import {peer} (ratio: difference in s)'
    return row(ours.removeprefix('prunelab.'), what, a, b, 'ours - peer', target=target)

def run():
    return [against('prunelab.masks', 'torch', 5, 'at most 0.3'),
            against('prunelab.callbacks', 'fastai.learner', 3),
            against('prunelab.all', 'fastai.learner', 5, 'at most 0.5')]

if __name__ == '__main__': main(run)
