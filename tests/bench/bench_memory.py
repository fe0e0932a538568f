"""Is the memory of a fit flat? A thousand steps of LeNet-300-100, and what the process holds at some of them.

The first 200 steps warm up: optimizer, buffers and the first prunings come in them. Memory is that of a whole
process, and each way to prune has its own."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from prunelab.callbacks import PruneCB
from prunelab.core import seeded
from prunelab.drop import DropPruning
from prunelab.lab.models import lenet300
from prunelab.schedules import gradual, steps
from prunelab.stochastic import StochasticPruning
from .bench_callback import learner
from .common import show

STEPS, WARM = 1000, 200
WAYS = {'none': lambda: [], 'held': lambda: [],
        'gradual, 100 prunings': lambda: [PruneCB(.9, schedule=gradual(n=100, end=1.))],
        'stochastic, 20 times': lambda: [StochasticPruning(.9, .01, n=4, schedule=steps(20, end=1.))],
        'drop, 50 steps': lambda: [DropPruning(.9, schedule=gradual(n=50, end=1.))]}

def resident():
    "Bytes that the process holds in memory"
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')

class Look(Callback):
    "Memory after some steps"
    order = 99
    def before_fit(self): self.seen = {}
    def after_batch(self):
        if self.training and (self.iter + 1) % 100 == 0: self.seen[self.iter + 1] = resident()

def growth(way):
    "Bytes more at the last step than after the warm-up"
    with seeded(0): learn = learner(lenet300(), 64, (1, 28, 28), 'cpu', STEPS)
    learn.opt_func = partial(SGD, mom=.9)
    if way == 'held': learn.prune(.9)
    look = Look()
    with learn.no_logging(): learn.fit(1, .001, cbs=[look, *WAYS[way]()])
    return max(look.seen[n] for n in look.seen if n > WARM) - look.seen[WARM]

def measured(way):
    "The same in a process of its own"
    command = [sys.executable, '-W', 'ignore', '-m', 'tests.bench.bench_memory', way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

def run():
    if not Path('/proc/self/statm').exists(): return []
    found = {way: measured(way)/2**20 for way in WAYS}
    def row(way):
        what = f'{STEPS:,}-step fit, {way}: MB more than at step {WARM}; other: without (ratio: difference)'
        ours, peer = found[way], found['none']
        return dict(what=what, ours=ours, peer=peer, ratio=ours - peer, target='at most 4')
    return [row(way) for way in WAYS if way != 'none']

if __name__ == '__main__':
    if sys.argv[1:]: print(growth(sys.argv[1]))
    else: show(run())
