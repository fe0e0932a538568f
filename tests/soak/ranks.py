"""Trainings in several processes, and whether these agree: `python -m tests.soak.ranks [STEPS]`.

After every step each process hashes its masks and its weights, and all hashes are compared. Exit status 1 if
two of them are ever different."""
import itertools
import os
import socket
import sys
import tempfile
import time
import traceback
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
import fastai.distributed       # noqa: F401, once, in the server that the processes are forked from
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn
from prunelab.allocation import erk, global_, lamp, uniform
from prunelab.callbacks import PruneCB
from prunelab.core import seeded
from prunelab.drop import DropPruning
from prunelab.extreme import ExtremeValuePruning
from prunelab.gradient_scores import grasp, iterated, snip, synflow
from prunelab.lab.data import DeviceLoader, Images
from prunelab.processes import together
from prunelab.schedules import gradual, steps
from prunelab.scores import lamp_score, random_score
from prunelab.stochastic import StochasticPruning

CPU = torch.device('cpu')
N, VALID, BS = 208, 47, 8       # examples, of validation (fastai pads an odd number), per batch and process
DENSE_SIZE = 12*40 + 40*30 + 30*4
OFTEN, SELDOM = gradual(end=.9, n=10), steps(5, end=.9)

PRUNERS = {
    'magnitude': lambda: PruneCB(.8, schedule=OFTEN),
    'uniform': lambda: PruneCB(.8, allocation=uniform, schedule=OFTEN),
    'erk': lambda: PruneCB(.8, allocation=erk, schedule=OFTEN),
    'lamp': lambda: PruneCB(.8, allocation=lamp, schedule=OFTEN),
    'lamp score': lambda: PruneCB(.8, lamp_score, schedule=OFTEN),
    'random': lambda: PruneCB(.8, random_score, schedule=OFTEN),
    'snip': lambda: PruneCB(.8, snip, schedule=OFTEN),
    'snip at once': lambda: PruneCB(.8, snip),
    'iterated snip': lambda: PruneCB(.8, iterated(snip, global_, .8, 5)),
    'grasp': lambda: PruneCB(.8, grasp, schedule=OFTEN),
    'synflow': lambda: PruneCB(.8, synflow, schedule=OFTEN),
    'iterated synflow': lambda: PruneCB(.8, iterated(synflow, global_, .8, 10)),
    'stochastic': lambda: StochasticPruning(.8, .05, n=6, schedule=SELDOM),
    'stochastic, snip': lambda: StochasticPruning(.8, .05, n=3, score=snip, schedule=SELDOM),
    'stochastic, grasp': lambda: StochasticPruning(.8, .05, n=1, score=grasp, schedule=SELDOM),
    'drop': lambda: DropPruning(.8, schedule=OFTEN),
    'drop, snip': lambda: DropPruning(.8, score=snip, schedule=OFTEN),
    'drop, grasp': lambda: DropPruning(.8, score=grasp, schedule=OFTEN),
    'drop, random': lambda: DropPruning(.8, score=random_score, schedule=OFTEN),
    'extreme': lambda: ExtremeValuePruning(b=4, least=10, schedule=SELDOM)}

def examples(n, seed):
    with seeded(seed):
        x = torch.randn(n, 12, dtype=torch.float64)
        return list(zip(x, (x @ torch.randn(12, 4, dtype=torch.float64)).argmax(1)))

def network(norm):
    "In float64, so that rounding is too small to move a mask; BatchNorm if asked for"
    layers = [nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)]
    if norm: layers.insert(1, nn.BatchNorm1d(40))
    return nn.Sequential(*layers).double()

def in_order_of(processes):
    "The training examples so that one process with the batches of all gets what `processes` get together"
    parts = [range(i*N//processes, (i + 1)*N//processes) for i in range(processes)]
    order = [i for k in range(0, N//processes, BS) for part in parts for i in part[k:k + BS]]
    pairs = examples(N, 0)
    return [pairs[i] for i in order]

def silent(row): pass

def number(): return int(os.environ.get('RANK', 0))

def learner(norm=False, seed=1, shuffle=True, alone_as=None, **kwargs):
    "The same in every process; `alone_as`: one process with the batches of so many"
    pairs, bs = (examples(N, 0), BS) if alone_as is None else (in_order_of(alone_as), BS*alone_as)
    with seeded(seed): net = network(norm)
    with seeded(number() + 2):                    # the order of examples comes from the first process
        loaders = DataLoader(pairs, bs=bs, shuffle=shuffle, **kwargs), DataLoader(examples(VALID, 1), bs=BS)
    dls = DataLoaders(*loaders, device=CPU)
    learn = Learner(dls, net, CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9))
    learn.remove_cbs(ProgressCallback)
    learn.logger = silent
    return learn

def digest(tensors):
    "A hash that fits into an int64"
    code = sha256()
    for t in tensors: code.update(t.detach().contiguous().numpy().tobytes())
    return int.from_bytes(code.digest()[:7], 'big')

class Watch(Callback):
    "After how many steps do masks, or weights, differ between processes?"
    order, run_valid = 99, False
    def __init__(self, pruner):
        self.pruner, self.steps, self.different = pruner, 0, torch.zeros(2).long()
    def after_batch(self):
        mine = torch.tensor([digest(self.pruner.masks.values()), digest(self.model.parameters())])
        everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, mine)
        self.steps += 1
        self.different += (torch.stack(everyone) != mine).any(0)

def train(name, epochs=4, norm=False, before=None, **kwargs):
    "One training: steps, differences, and how it ended"
    pruner = PRUNERS[name]()
    learn, watch = learner(norm, **kwargs), Watch(pruner)
    if before: before(learn)
    with together(learn): learn.fit(epochs, .05, cbs=[pruner, *([watch] if dist.is_initialized() else [])])
    masks, weights = watch.different.tolist()
    return {'steps': watch.steps, 'masks': masks, 'weights': weights,
            'done': pruner.step, 'rows': pruner.rows, 'values': getattr(pruner, 'values', None),
            'masks_at_end': pruner.masks, 'weights_at_end': dict(learn.model.named_parameters())}

# Special cases, each a function without arguments that every process calls

def prune_first(learn): learn.prune(.5)

def other_weights():
    "Made from a seed of its own in each process, and pruned before they meet"
    return train('drop', epochs=1, seed=number(), before=prune_first)

def own_seed():
    "A pruner that draws other numbers in each process"
    PRUNERS['own seed'] = lambda: PruneCB(.8, random_score, schedule=OFTEN, seed=number())
    return train('own seed')

def without_noise():
    "Members that are all the same network, evaluated in different processes"
    PRUNERS['no noise'] = lambda: StochasticPruning(.8, 0., n=4, schedule=SELDOM)
    return train('no noise', norm=True)

def incomplete_batches(): return train('magnitude', epochs=2, drop_last=True, n=N - 4)

def our_loader():
    "Numbers of the images that this process gets in an epoch, and how copies of one image are moved"
    pictures = torch.arange(96, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(96, 1, 1, 1)
    found = []
    for x, augment in ((pictures, False), (ramp, True)):
        seen, labels = [], torch.zeros(96, dtype=torch.int64)
        ours = [DeviceLoader(Images(x, labels, 'ab'), 8, shuffle=s, augment=augment) for s in (True, False)]
        learn = Learner(DataLoaders(*ours, device=CPU), nn.Linear(16, 2), CrossEntropyLossFlat())
        learn.remove_cbs(ProgressCallback)
        learn.logger = silent
        class Look(Callback):
            def before_batch(self):
                if self.training: seen.append(self.x.as_subclass(torch.Tensor).clone())
                self.learn.xb = (torch.zeros(len(self.x), 16),)
        with together(learn): learn.fit(1, 0., cbs=Look())
        found.append(torch.cat(seen))
    return {'images': found[0][:, 0, 0, 0].tolist(), 'moved': found[1]}

SPECIAL = {f.__name__: f for f in (other_weights, own_seed, without_noise, incomplete_batches, our_loader)}

def job(what):
    "A special case, a function, or the arguments of `train`"
    if callable(what): return what()
    return SPECIAL[what]() if isinstance(what, str) else train(**what)

# Processes

def work(number, processes, port, jobs, folder):
    "What one process does"
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(number), 'LOCAL_RANK': str(number), 'WORLD_SIZE': str(processes),
                   'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    try: torch.save([job(what) for what in jobs], folder/f'{number}.pt')
    except BaseException:
        (folder/f'{number}.txt').write_text(traceback.format_exc())
        raise
    finally:
        if dist.is_initialized(): dist.destroy_process_group()

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def run(jobs, processes=2, seconds=1800):
    "What each process returns for each job"
    context = get_context('forkserver')
    context.set_forkserver_preload(['tests.soak.ranks'])
    with tempfile.TemporaryDirectory() as folder:
        folder, port, end = Path(folder), free_port(), time.monotonic() + seconds
        args = [(i, processes, port, jobs, folder) for i in range(processes)]
        team = [context.Process(target=work, args=a) for a in args]
        for p in team: p.start()
        while any(p.exitcode is None for p in team) and not any(p.exitcode for p in team):
            if time.monotonic() > end: break
            time.sleep(.05)
        for p in team: p.kill()
        for p in team: p.join()
        errors = [f.read_text() for f in folder.glob('*.txt')]
        if errors or any(p.exitcode for p in team): raise RuntimeError('\n'.join(errors) or 'too slow')
        return [torch.load(folder/f'{i}.pt', weights_only=False) for i in range(processes)]

def soak(steps):
    "Train with every pruner in turn until so many steps are made; after how many something was different"
    made = bad = 0
    for seed in itertools.count(1):
        jobs = [{'name': n, 'epochs': 20, 'norm': bool(seed % 2), 'seed': seed} for n in PRUNERS]
        for what, result in zip(jobs, run(jobs, seconds=3600)[0]):
            made, different = made + result['steps'], result['masks'] + result['weights']
            bad += different
            print(f'{made:6} steps: {what["name"]}, {different} different', flush=True)
        if made >= steps: return bad

if __name__ == '__main__':
    bad = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    print(f'{bad} different')
    sys.exit(bad > 0)
