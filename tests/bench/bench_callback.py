"What PruneCB adds to a training step: LeNet-5 at batch 256 on the CPU, ResNet-18 at batch 512 on a GPU where there is one"
import time
from functools import partial
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
from .common import show

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

def learner(model, bs, shape, device, n):
    gen = generator(0, 'cpu')
    batches = Batches([(torch.randn(bs, *shape, generator=gen, device='cpu').to(device), torch.randint(10, (bs,), generator=gen, device='cpu').to(device)) for _ in range(2)]*(n//2))
    learn = Learner(DataLoaders(batches, batches[:1], device=torch.device(device)), model.to(device), CrossEntropyLossFlat(), partial(SGD, mom=.9))
    learn.remove_cb(ProgressCallback)
    return learn

def compare(name, model, bs, shape, device, n, rounds=4):
    "Median step with nothing, with masks held, and with a schedule that prunes at every tenth step"
    steps = {'none': [], 'held': [], 'gradual': []}
    for r in range(rounds):
        for k in steps:
            with seeded(0): learn = learner(model(), bs, shape, device, n)
            clock = Clock()
            if k == 'held': learn.prune(.9)
            cbs = [clock] + ([PruneCB(.9, schedule=gradual(n=n//10, end=1.))] if k == 'gradual' else [])
            with learn.no_logging(): learn.fit(1, .001, cbs=cbs)
            if r: steps[k] += clock.times
    med = {k: sorted(v)[len(v)//2] for k, v in steps.items()}
    mean = {k: sum(v)/len(v) for k, v in steps.items()}
    target = 1.10 if device == 'cpu' else 1.03
    return [dict(what=f'{name}, median step with masks held, s; other: without', ours=med['held'], peer=med['none'], ratio=med['held']/med['none'], target=f'at most {target}'),
            dict(what=f'{name}, mean step, pruning at every tenth, s; other: without', ours=mean['gradual'], peer=mean['none'], ratio=mean['gradual']/mean['none'], target=f'at most {target}')]

def run():
    torch.set_num_threads(2)
    rows = compare('LeNet-5, batch 256, CPU', lenet5, 256, (1, 28, 28), 'cpu', 40)
    if torch.cuda.is_available(): rows += compare('ResNet-18, batch 512, GPU', resnet18, 512, (3, 32, 32), 'cuda', 100)
    return rows

if __name__ == '__main__': show(run())
