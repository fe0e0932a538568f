"How long an import takes, each in a process of its own"
import subprocess, sys, time
from .common import show

def seconds(statement, n=5):
    "The fastest of `n` fresh processes"
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, '-W', 'ignore', '-c', statement], check=True)
        return time.perf_counter() - start
    return min(once() for _ in range(n))

def run():
    torch, ours = seconds('import torch'), seconds('import prunelab.masks')
    rows = [dict(what='import prunelab.masks, s; other: import torch (ratio: difference in s)', ours=ours, peer=torch, ratio=ours - torch, target='at most 0.3')]
    cb, fastai = seconds('import prunelab.callbacks', 3), seconds('import fastai.learner', 3)
    return rows + [dict(what='import prunelab.callbacks, s; other: import fastai.learner (ratio: difference in s)', ours=cb, peer=fastai, ratio=cb - fastai, target=None)]

if __name__ == '__main__': show(run())
