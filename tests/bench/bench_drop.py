"One step of drop pruning over ResNet-18's weights on a CPU, against one exact global selection over the same scores"
from types import SimpleNamespace
import torch
from prunelab.core import seeded, weights
from prunelab.drop import DropPruning, drop_away, drop_back, fading, follow
from prunelab.allocation import global_
from prunelab.lab.models import resnet18
from prunelab.schedules import gradual
from prunelab.scores import magnitude
from .common import in_turns, show

def prepare():
    torch.set_num_threads(2)
    with seeded(0): model = resnet18()
    return model, weights(model)

def step(scores, masks, u, back, exact=False):
    "Who leaves, who returns, and the new masks"
    left, came = drop_away(scores, masks, u, .5, 1, exact=exact), drop_back(masks, back, 2, exact=exact)
    return {n: m ^ left[n] ^ came[n] for n, m in masks.items()}

def run():
    model, ws = prepare()
    scores, n, sched, rows = magnitude(ws), sum(w.numel() for w in ws.values()), gradual(n=20), []
    row = lambda what, a, b, target=None: dict(what=what, ours=a, peer=b, ratio=a/b, target=target)
    for i in (2, 8, 16):                                       # early, in the middle, late on the way to 95 %
        p, t = .95*sched.progress[i], sched.progress[i+1]
        masks = global_(scores, p)
        u = round(follow(n*(1 - p), n*p, n*(1 - .95*t), .5, fading(t)))
        s = in_turns(7, ours=lambda: step(scores, masks, u, fading(t)), exact=lambda: step(scores, masks, u, fading(t), True), peer=lambda: global_(scores, .9))
        rows += [row(f'a step at {p:.0%} of {n:,} weights, s; other: one exact global selection', s['ours'], s['peer'], 'at most 3'), row('the same with exact counts', s['exact'], s['peer'])]
    learn = SimpleNamespace(model=model, cbs=[], loss_func=None)
    learn.add_cbs = learn.cbs.extend
    cb = DropPruning(.95, schedule=sched)
    cb.attach(learn); cb.__dict__['_learn'] = learn
    cb.prune(sched.progress[8]); cb.done = 9
    whole = in_turns(5, ours=lambda: cb.propose(sched.progress[9]), peer=lambda: global_(magnitude(ws), .9))
    return rows + [row('propose as a whole, with scores, values and counts, s; other: score and select', whole['ours'], whole['peer'])]

if __name__ == '__main__': show(run())
