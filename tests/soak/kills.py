"""Trainings that are killed and started again, and what they end with.

Every training here is a function of its arguments alone: it makes data, model and callbacks from seeds, as a
script does. `Runs` starts them in processes of their own, kills those, and starts them again."""
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
import fastai.callback.schedule
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, OptimWrapper
from torch import nn
from prunelab.callbacks import PruneCB
from prunelab.drop import DropPruning
from prunelab.extreme import ExtremeValuePruning
from prunelab.gradient_scores import snip
from prunelab.resume import PruneCheckpoint
from prunelab.schedules import gradual, steps
from prunelab.scores import random_score
from prunelab.stochastic import StochasticPruning

CPU = torch.device('cpu')           # the same bits are promised there
torch.optim.Adam([torch.zeros(1, device=CPU, requires_grad=True)])      # the first one imports for seconds

METHODS = {
    'random': lambda: PruneCB(.8, score=random_score, schedule=gradual(end=.9, n=12)),
    'snip': lambda: PruneCB(.8, score=snip, schedule=gradual(end=.9, n=12)),
    'stochastic': lambda: StochasticPruning(.8, .02, n=3, schedule=steps(5, end=.9)),
    'drop': lambda: DropPruning(.8, schedule=gradual(end=.9, n=12)),
    'extreme': lambda: ExtremeValuePruning(b=4, schedule=steps(5, end=.9))}

class Noisy:
    "Made inputs with noise from three generators each time one is read, and a class for each"
    def __init__(self, n, seed):
        gen = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 12, generator=gen)
        self.y = (self.x[:, :3].sum(1) > 0).long() + 2*(self.x[:, 3] > 0).long()
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.x[i] + .1*torch.randn(12) + .1*random.random() + .1*float(np.random.rand())
        return x, self.y[i]

def model():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Dropout(.3),
                         nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

def fastai_loaders():
    "What fastai makes"
    return DataLoaders(TfmdDL(Noisy(200, 0), bs=16, shuffle=True, drop_last=True, num_workers=0),
                       DataLoader(Noisy(48, 1), bs=24), device=CPU)

def torch_loaders():
    "What a Learner takes as well"
    gen = torch.Generator().manual_seed(5)
    train = torch.utils.data.DataLoader(Noisy(200, 0), batch_size=16, shuffle=True, generator=gen)
    valid = torch.utils.data.DataLoader(Noisy(48, 1), batch_size=24)
    return DataLoaders(train, valid, device=CPU)

def halves(model): return [list(model[:4].parameters()), list(model[4:].parameters())]

def silent(row): pass

def learner(folder, loaders=fastai_loaders, seed=3, **kwargs):
    "The same one in every process"
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    kwargs = {'metrics': accuracy, 'splitter': halves, 'path': folder, **kwargs}
    learn = Learner(loaders(), model(), CrossEntropyLossFlat(), **kwargs)
    learn.remove_cbs(ProgressCallback)
    learn.logger = silent
    return learn

# Trainings: what a script may do, given the callbacks of every fit

def one_cycle(folder, cbs):
    learn = learner(folder)
    learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    return learn

def fine_tune(folder, cbs):
    learn = learner(folder, opt_func=partial(SGD, mom=.9))
    learn.fine_tune(2, 1e-2, cbs=cbs)
    return learn

def torch_adam(folder, cbs):
    learn = learner(folder, torch_loaders, opt_func=partial(OptimWrapper, opt=torch.optim.Adam))
    learn.fit_flat_cos(3, 1e-2, cbs=[*cbs, SaveModelCallback()])
    return learn

def accumulating(folder, cbs):
    learn = learner(folder, opt_func=partial(SGD, mom=.9))
    learn.fit(3, 1e-2, cbs=[*cbs, GradientAccumulation(40)])
    return learn

def in_rounds(folder, cbs):
    "Several fits with something between them"
    learn = learner(folder)
    learn.between = []
    for i in range(3):
        learn.fit(1, 1e-2, cbs=cbs)
        learn.lr_find(num_it=8, show_plot=False)
        learn.between.append([float(v) for v in learn.validate()])
    return learn

TRAININGS = {f.__name__: f for f in (one_cycle, fine_tune, torch_adam, accumulating, in_rounds)}

# What a training ends with

def code(x):
    "A hash that tells any two values apart"
    if isinstance(x, torch.Tensor): x = (str(x.dtype), tuple(x.shape), x.detach().numpy().tobytes())
    elif isinstance(x, dict): x = [(k, code(v)) for k, v in x.items()]
    elif isinstance(x, (list, tuple)) or type(x).__name__ == 'L': x = [code(v) for v in x]
    elif type(x).__module__.startswith('prunelab.'): x = code(vars(x))
    return hashlib.sha256(pickle.dumps(x)).hexdigest()[:16]

def ending(learn, pruner):
    "Hashes of all that a training leaves behind, by name"
    r = learn.recorder
    knows = ('rows', 'done', 'draws', 'step', 'initial_sparsity', 'moves', 'store', 'returned_at',
             'values', 'fits')
    parts = {
        'weights': dict(learn.model.named_parameters()), 'buffers': dict(learn.model.named_buffers()),
        'optimizer': learn.opt.state_dict(), 'masks': pruner.masks,
        'recorded': [r.values, r.losses, r.lrs, r.iters, getattr(r, 'hps', None)],
        'between': getattr(learn, 'between', None),
        'loaders': [getattr(d, 'rng', None) and d.rng.getstate() for d in learn.dls.loaders],
        'order': getattr(getattr(learn.dls.train, 'generator', None), 'get_state', int)(),
        'random': [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()],
        **{f'pruner.{k}': vars(pruner)[k] for k in knows if k in vars(pruner)}}
    return {k: code(v) for k, v in parts.items()}

class Kill(Callback):
    "SIGKILL at the n-th call of an event in this process, before or behind others; never if n is 0"
    def __init__(self, event='after_fit', n=0, order=0):
        self.order = order
        calls = count(1)
        def call():
            if next(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
        setattr(self, event, call)

def train(training, method, folder, every, kill=()):
    "One process: from the beginning or a checkpoint to the end, or until it is killed"
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, 'w')
    pruner = METHODS[method]()
    cbs = [pruner, Kill(*kill)]                             # the same callbacks in every process
    if every != 'never': cbs.append(PruneCheckpoint(folder/'run', every))
    learn = TRAININGS[training](folder, cbs)
    (folder/'ending.json').write_text(json.dumps(ending(learn, pruner)))

OFTEN = ['before_batch', 'after_pred', 'before_step', 'after_step', 'after_batch']
SELDOM = ['before_train', 'after_train', 'before_validate', 'after_epoch', 'after_fit']

class Runs:
    "Trainings in processes of their own, forked from one that has done nothing but imports"
    def __init__(self, folder, seed=0):
        self.folder, self.rng = Path(folder), random.Random(seed)
        self.context = get_context('forkserver')
        self.context.set_forkserver_preload(['tests.soak.kills'])
        self.seconds = {}           # {(training, method): of one that nobody disturbs}
        self.kills, self.log = 0, []    # how many processes died, and how the last training was killed

    def start(self, training, method, every='never', kill=(), after=None):
        "Was one process killed, at an event or `after` so many seconds?"
        args = (training, method, self.folder, every, kill)
        process = self.context.Process(target=train, args=args)
        process.start()
        process.join(after)
        if process.exitcode is None: process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL): raise RuntimeError(f'{args}: {process.exitcode}')
        self.kills += process.exitcode != 0
        return process.exitcode != 0

    def clean(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def result(self): return json.loads((self.folder/'ending.json').read_text())

    def whole(self, training, method):
        "The ending of a training that nobody disturbs, and that keeps no checkpoint"
        self.clean()
        begin = time.monotonic()
        self.start(training, method)
        self.seconds[training, method] = time.monotonic() - begin
        return self.result()

    def way(self, seconds, by_clock):
        "How the next process dies"
        if self.rng.random() < by_clock: return {'after': seconds*self.rng.uniform(.1, 1.)}
        if self.rng.random() < .2: return {'kill': (self.rng.choice(SELDOM), 1, self.rng.choice([-20, 120]))}
        return {'kill': (self.rng.choice(OFTEN), self.rng.randint(1, 20), self.rng.choice([-20, 100, 120]))}

    def killed(self, training, method, every, kills, by_clock=0.):
        "The ending of one that is killed up to `kills` times and started again each time"
        self.clean()
        self.log = []
        for _ in range(kills):
            self.log.append(self.way(self.seconds[training, method], by_clock))
            if not self.start(training, method, every, **self.log[-1]): return self.result()
        self.start(training, method, every)
        return self.result()

def differing(a, b):
    "Names of what two endings do not share"
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
