"Exact global selection over ResNet-18's weights on a CPU, against torch.nn.utils.prune and against one read and one write"
import copy, subprocess, sys
import torch
from torch import nn
from torch.nn.utils import prune
from prunelab.core import seeded, weights
from prunelab.masks import erk, global_
from prunelab.lab.models import resnet18
from prunelab.scores import lamp, magnitude
from .common import in_turns, show

def prepare():
    torch.set_num_threads(2)
    with seeded(0): model = resnet18()
    return model, magnitude(weights(model))

def layers(model): return [(m, 'weight') for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

PEAK = '''
import ctypes, gc, sys, torch
from tests.bench.bench_masks import *
model, scores = prepare()
if sys.argv[1] == 'peer': model = copy.deepcopy(model)
peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])*1024
now = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])*1024
global_({'w': torch.rand(70_000)}, .5)               # threads, allocator
gc.collect(); ctypes.CDLL('libc.so.6').malloc_trim(0)     # what was freed is given back ...
open('/proc/self/clear_refs', 'w').write('5')            # ... and the peak starts here
before = now()
if sys.argv[1] == 'peer': prune.global_unstructured(layers(model), prune.L1Unstructured, amount=.9); out = 0
else: masks = global_(scores, .9); out = sum(m.numel() for m in masks.values())
print(peak() - before - out)
'''

def memory(which):
    "Peak bytes beyond what was there and what is returned, in a process of its own; None where Linux's counters are missing"
    try: return int(subprocess.run([sys.executable, '-W', 'ignore', '-c', PEAK, which], capture_output=True, text=True, check=True).stdout)
    except (subprocess.CalledProcessError, OSError): return None

def run():
    model, scores = prepare()
    n = sum(s.numel() for s in scores.values())
    def peer(m=[]):
        m[:] = m or [copy.deepcopy(model) for _ in range(4)]
        prune.global_unstructured(layers(m.pop()), prune.L1Unstructured, amount=.9)
    ws = weights(model)
    both = in_turns(3, ours=lambda: global_(magnitude(ws), .9), peer=peer)
    t = in_turns(15, ours=lambda: global_(scores, .9), once=lambda: [s > .01 for s in scores.values()], erk=lambda: erk(scores, .9), lamp=lambda: global_(lamp(ws), .9))
    row = lambda what, a, b, target=None: dict(what=what, ours=a, peer=b, ratio=b/a, target=target)
    rows = [row(f'score and select {n:,} weights, s; other: torch global_unstructured', both['ours'], both['peer'], 'at least 40'),
            dict(what='select alone, s; other: one read and one bool write', ours=t['ours'], peer=t['once'], ratio=t['ours']/t['once'], target='aim at 8 or less'),
            row('ERK, s; other: global', t['erk'], t['ours']), row('LAMP and select, s; other: global', t['lamp'], t['ours'])]
    mem = {w: memory(w) for w in ('ours', 'peer')}
    if None not in mem.values():
        rows.append(row('peak MB beyond scores and masks; other: torch global_unstructured', mem['ours']/1e6, mem['peer']/1e6))
        rows.append(dict(what='the same as a share of the weights (MB)', ours=mem['ours']/1e6, peer=4*n/1e6, ratio=mem['ours']/(4*n), target='at most 0.25'))
    return rows

if __name__ == '__main__': show(run())
