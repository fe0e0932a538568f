"""Is the memory of a fit flat? A thousand steps of LeNet-300-100, and what is held after some of them.

The first 200 steps warm up: optimizer, buffers and the first prunings come in them. We count the bytes of all
tensors that are alive, and the memory of the whole process, which depends on what the system takes back. Each
way to prune has a process of its own."""
import gc
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from prunelab.callbacks import PruneCB
from prunelab.core import seeded
from prunelab.drop import DropPruning
from prunelab.lab.models import lenet300
from prunelab.schedules import gradual, steps
from prunelab.stochastic import StochasticPruning
from .bench_callback import learner
from .common import main, row

STEPS, WARM = 1000, 200
WAYS = {'none': lambda: [], 'held': lambda: [],
        'gradual, 100 prunings': lambda: [PruneCB(.9, schedule=gradual(n=100, end=1.))],
        'stochastic, 20 times': lambda: [StochasticPruning(.9, .01, n=4, schedule=steps(20, end=1.))],
        'drop, 50 steps': lambda: [DropPruning(.9, schedule=gradual(n=50, end=1.))]}

def resident():
    "Bytes that the process holds in memory"
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages*os.sysconf('SC_PAGE_SIZE')

def alive():
    "Bytes of all tensors that are alive, shared ones once"
    found = [t.untyped_storage() for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())

class Look(Callback):
    "Memory after some steps"
    order = 99
    def before_fit(self): self.tensors, self.process = {}, {}
    def after_batch(self):
        if not self.training or (self.iter + 1) % 100: return
        self.tensors[self.iter + 1], self.process[self.iter + 1] = alive(), resident()

def most(seen): return (max(seen[n] for n in seen if n > WARM) - seen[WARM])/2**20

def growth(way):
    "MB more, at most, after the warm-up than at its end: of tensors, and of the process"
    with seeded(0): learn = learner(lenet300(), 64, (1, 28, 28), 'cpu', STEPS)
    learn.opt_func = partial(SGD, mom=.9)
    if way == 'held': learn.prune(.9)
    look = Look()
    with learn.no_logging(): learn.fit(1, .001, cbs=[look, *WAYS[way]()])
    return most(look.tensors), most(look.process)

def measured(way):
    "The same in a process of its own"
    command = [sys.executable, '-W', 'ignore', '-m', 'tests.bench.bench_memory', way]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(x) for x in out.split()[-2:]]

def run():
    if not Path('/proc/self/statm').exists(): return []
    found = {way: measured(way) for way in WAYS}
    rows = []
    for i, (what, target) in enumerate({'tensors': 'at most 0.1', 'process': None}.items()):
        for way in WAYS:
            ours, peer = found[way][i], found['none'][i]
            about = f'{what}, {way}: MB more than at step {WARM}; other: without (ratio: difference)'
            if way == 'none': continue
            rows.append(row(f'{what} {way}', about, ours, peer, 'ours - peer', unit='MB', target=target))
    return rows

if __name__ == '__main__':
    if sys.argv[1:] and sys.argv[1] in WAYS: print(*growth(sys.argv[1]))
    else: main(run)
