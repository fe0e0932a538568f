"""Sixteen noisy networks, pruned and evaluated by two processes of one thread, against one such process.

`python -m tests.bench.bench_processes` prints the rows. It needs two free cores, and both sides must find the
same accuracies."""
import time
import torch
import torch.distributed as dist
from functools import partial
from torch import nn
from prunelab.allocation import global_
from prunelab.core import seeded, weights
from prunelab.evaluate import evaluate_shared
from prunelab.basin import perturb
from prunelab.masks import apply_
from prunelab.scores import magnitude
from tests.soak.ranks import run as in_processes
from .common import main, row

MEMBERS, TARGET = 16, 1.7

def task():
    "An untrained LeNet-5 and 2,000 made images"
    with seeded(0):
        features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
        images = [(torch.randn(250, 1, 28, 28), torch.randint(10, (250,))) for _ in range(8)]
        return nn.Sequential(*features, *head), images

def member(net, i):
    noisy = perturb(weights(net), .05, (1, i))
    return apply_(noisy, global_(magnitude(noisy), .9))

def timed(net, dl, place):
    begin = time.perf_counter()
    found = evaluate_shared(net, partial(member, net), MEMBERS, dl, place=place)
    return time.perf_counter() - begin, found

def measured(repeats=5):
    "Seconds of the first process alone while the other one waits, and of both, in several rounds"
    dist.init_process_group('gloo')
    rank, (net, dl), alone, both = dist.get_rank(), task(), [], []
    for _ in range(repeats):
        if rank == 0: alone.append(timed(net, dl, (0, 1)))
        dist.barrier()
        both.append(timed(net, dl, (rank, 2)))
        dist.barrier()
    same = not alone or torch.equal(alone[0][1], both[0][1])
    return {'alone': [s for s, _ in alone], 'both': [s for s, _ in both], 'same': same}

def run():
    "One row"
    (first,), _ = in_processes([measured])
    assert first['same'], 'they disagree on the accuracies'
    what = f'{MEMBERS} members, two processes against one, one thread each'
    return [row('two', what, first['both'], first['alone'], 'peer/ours', target=TARGET)]

if __name__ == '__main__': main(run, threads=1)
