"""Exact selection over ResNet-18's weights on a CPU.

Against torch.nn.utils.prune, against one read and one write, and LAMP with and without its sort."""
import copy
import subprocess
import sys
from torch import nn
from torch.nn.utils import prune
from prunelab.allocation import erk, global_, lamp
from prunelab.core import seeded, weights
from prunelab.lab.models import resnet18
from prunelab.masks import kept
from prunelab.scores import lamp_score, magnitude
from .by_sample import keep_by_sample
from .common import in_turns, main, row

def prepare():
    with seeded(0): model = resnet18()
    return model, magnitude(weights(model))

def layers(model):
    return [(m, 'weight') for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

PEAK = '''
import ctypes, gc, sys, torch
from tests.bench.bench_masks import *

def status(key):
    line = next(l for l in open('/proc/self/status') if l.startswith(key))
    return int(line.split()[1])*1024

torch.set_num_threads(2)
model, scores = prepare()
if sys.argv[1] == 'peer': model = copy.deepcopy(model)
global_({'w': torch.rand(70_000)}, .5)                   # threads, allocator
gc.collect()
ctypes.CDLL('libc.so.6').malloc_trim(0)                  # what was freed is given back ...
open('/proc/self/clear_refs', 'w').write('5')            # ... and the peak starts here
before, out = status('VmRSS'), 0
if sys.argv[1] == 'peer':
    prune.global_unstructured(layers(model), prune.L1Unstructured, amount=.9)
else:
    masks = global_(scores, .9)
    out = sum(m.numel() for m in masks.values())
print(status('VmHWM') - before - out)
'''

def memory(which):
    "Peak bytes beyond what was there and what is returned, in its own process; None without Linux's counters"
    cmd = [sys.executable, '-W', 'ignore', '-c', PEAK, which]
    try: return int(subprocess.run(cmd, capture_output=True, text=True, check=True).stdout)
    except (subprocess.CalledProcessError, OSError): return None

def peer_time(model, ws):
    "Score and select, ours and torch's"
    copies = [copy.deepcopy(model) for _ in range(4)]
    def peer(): prune.global_unstructured(layers(copies.pop()), prune.L1Unstructured, amount=.9)
    return in_turns(3, ours=lambda: global_(magnitude(ws), .9), peer=peer)

def selection_rows(model, scores):
    ws = weights(model)
    n = sum(s.numel() for s in scores.values())
    both = peer_time(model, ws)
    t = in_turns(15, ours=lambda: global_(scores, .9), once=lambda: [s > .01 for s in scores.values()],
                 sample=lambda: keep_by_sample(scores, kept(n, .9)), erk=lambda: erk(scores, .9),
                 lamp=lambda: lamp(scores, .9))
    by_score = in_turns(2, lamp=lambda: global_(lamp_score(ws), .9))['lamp']
    what = f'score and select {n:,} weights, s; other: torch global_unstructured'
    return [row('torch', what, both['ours'], both['peer'], 'peer/ours', target='at least 40'),
            row('floor', 'select alone, s; other: one read and write', t['ours'], t['once'],
                target='aim at 8 or less'),
            row('sample', 'select by a sample, s; other: one read and write', t['sample'], t['once']),
            row('erk', 'ERK, s; other: global', t['erk'], t['ours'], 'peer/ours'),
            row('lamp', 'LAMP, s; other: global', t['lamp'], t['ours'], target='at most 5'),
            row('lamp floor', 'LAMP, s; other: one read and write', t['lamp'], t['once']),
            row('lamp score', 'LAMP by its score, s; other: global', by_score, min(t['ours']))]

def memory_rows(n):
    ours, peer = memory('ours'), memory('peer')
    if ours is None or peer is None: return []
    what = 'peak MB beyond scores and masks; other: torch global_unstructured'
    return [row('memory', what, ours/1e6, peer/1e6, 'peer/ours', unit='MB'),
            row('memory share', 'the same as a share of the weights (MB)', ours/1e6, 4*n/1e6, unit='MB',
                target='at most 0.25')]

def run():
    model, scores = prepare()
    return selection_rows(model, scores) + memory_rows(sum(s.numel() for s in scores.values()))

if __name__ == '__main__': main(run, threads=2)
