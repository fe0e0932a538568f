"How long an import takes, each in a process of its own"
import subprocess
import sys
import time
from .common import show

def once(statement):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', statement], check=True)
    return time.perf_counter() - start

def row(ours, peer, n, target=None):
    "The fastest of `n` fresh processes each, taken in turn; the ratio is a difference in seconds"
    pairs = [(once(f'import {ours}'), once(f'import {peer}')) for _ in range(n)]
    a, b = (min(times) for times in zip(*pairs))
    what = f'import {ours}, s; other: import {peer} (ratio: difference in s)'
    return dict(what=what, ours=a, peer=b, ratio=a - b, target=target)

def run():
    return [row('prunelab.masks', 'torch', 5, 'at most 0.3'),
            row('prunelab.callbacks', 'fastai.learner', 3),
            row('prunelab.all', 'fastai.learner', 5, 'at most 0.5')]

if __name__ == '__main__': show(run())
