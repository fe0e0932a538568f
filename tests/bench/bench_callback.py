"""What PruneCB adds to a training step.

LeNet-5 at batch 256 on the CPU, and ResNet-18 at batch 512 on a GPU where there is one."""
import time
from functools import partial
from statistics import mean, median
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from prunelab.callbacks import PruneCB
from prunelab.core import generator, seeded
from prunelab.lab.models import lenet5, resnet18
from prunelab.schedules import gradual
from .common import main, row

class Batches(list):
    "The same few batches, already on the device"
    def new(self, **kwargs): return self

class Clock(Callback):
    "Seconds of every training batch, all callbacks included"
    order = -99
    def before_fit(self): self.times, self.last = [], None
    def before_batch(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        now = time.perf_counter()
        if self.training and self.last: self.times.append(now - self.last)
        self.last = now

def random_batches(bs, shape, device, n):
    "Two different batches, again and again"
    gen = generator(0, 'cpu')
    def batch():
        x = torch.randn(bs, *shape, generator=gen, device='cpu')
        y = torch.randint(10, (bs,), generator=gen, device='cpu')
        return x.to(device), y.to(device)
    return Batches([batch(), batch()]*(n//2))

def learner(model, bs, shape, device, n):
    "A silent `Learner` with `n` batches an epoch"
    batches = random_batches(bs, shape, device, n)
    dls = DataLoaders(batches, batches[:1], device=torch.device(device))
    learn = Learner(dls, model.to(device), CrossEntropyLossFlat(), partial(SGD, mom=.9))
    learn.remove_cb(ProgressCallback)
    return learn

def step_times(how, learn, n):
    "Seconds of the steps of an epoch: with nothing, masks held, or pruning at every tenth step"
    clock, cbs = Clock(), []
    if how == 'held': learn.prune(.9)
    if how == 'gradual': cbs = [PruneCB(.9, schedule=gradual(n=n//10, end=1.))]
    with learn.no_logging(): learn.fit(1, .001, cbs=[clock, *cbs])
    return clock.times

def compare(name, model, bs, shape, device, n, rounds=4):
    "Two rows; the first round only warms up"
    rounds_of = {'none': [], 'held': [], 'gradual': []}
    for r in range(rounds):
        for how, times in rounds_of.items():
            with seeded(0): learn = learner(model(), bs, shape, device, n)
            found = step_times(how, learn, n)
            if r: times.append(found)
    target = 'at most 1.1' if device == 'cpu' else 'at most 1.03'
    def against_none(how, what, average):
        ours, peer = ([average(times) for times in rounds_of[h]] for h in (how, 'none'))
        return row(f'{how} {device}', f'{name}, {what}, s; other: without', ours, peer, target=target)
    return [against_none('held', 'median step with masks held', median),
            against_none('gradual', 'mean step, pruning at every tenth', mean)]

def run():
    rows = compare('LeNet-5, batch 256, CPU', lenet5, 256, (1, 28, 28), 'cpu', 40)
    if torch.cuda.is_available():
        rows += compare('ResNet-18, batch 512, GPU', resnet18, 512, (3, 32, 32), 'cuda', 100)
    return rows

if __name__ == '__main__': main(run, threads=2)
