"One step of drop pruning over ResNet-18's weights on a CPU, against one exact selection over the same scores"
from types import SimpleNamespace
from prunelab.allocation import global_
from prunelab.core import seeded, weights
from prunelab.drop import DropPruning, drop_away, drop_back, fading, follow
from prunelab.lab.models import resnet18
from prunelab.schedules import gradual
from prunelab.scores import magnitude
from .common import in_turns, main, row

SCHEDULE = gradual(n=20)

def prepare():
    with seeded(0): model = resnet18()
    return model, weights(model)

def moves(scores, masks, u, back, exact=False):
    "Who leaves, who returns, and the new masks"
    left, came = drop_away(scores, masks, u, .5, 1, exact=exact), drop_back(masks, back, 2, exact=exact)
    return {n: m ^ left[n] ^ came[n] for n, m in masks.items()}

def once(scores, masks):
    "The least that a step can do: read every score and every mask, and write every mask"
    return [m & (s > .01) for s, m in zip(scores.values(), masks.values())]

def bench_moves(ws, i):
    "The moves of step `i` on the way to 95 %, against one global selection"
    scores, n = magnitude(ws), sum(w.numel() for w in ws.values())
    p, t = .95*SCHEDULE.progress[i], SCHEDULE.progress[i + 1]
    masks, back = global_(scores, p), fading(t)
    u = round(follow(n*(1 - p), n*p, n*(1 - .95*t), .5, back))
    s = in_turns(7, ours=lambda: moves(scores, masks, u, back), peer=lambda: global_(scores, .9),
                 exact=lambda: moves(scores, masks, u, back, True), once=lambda: once(scores, masks))
    what = f'a step at {p:.0%} of {n:,} weights, s; other: one exact global selection'
    return [row(f'moves {i}', what, s['ours'], s['peer'], target='at most 3'),
            row(f'exact {i}', 'the same with exact counts', s['exact'], s['peer']),
            row(f'floor {i}', f'the same at {p:.0%}; other: scores and masks read, masks written', s['ours'],
                s['once'])]

def pruner_at(model, i):
    "A `DropPruning` after step `i` of its schedule, without a training around it"
    learn = SimpleNamespace(model=model, cbs=[], loss_func=None)
    learn.add_cbs = learn.cbs.extend
    cb = DropPruning(.95, schedule=SCHEDULE)
    cb.attach(learn)
    vars(cb)['_learn'] = learn
    cb.prune_at(SCHEDULE.progress[i])
    cb.done = i + 1
    return cb

def bench_propose(i):
    "The whole step after step `i`, against score and selection"
    model, ws = prepare()
    cb = pruner_at(model, i)
    def ours():
        cb.moves = cb.moves[:1]
        return cb.propose(SCHEDULE.progress[i + 1])
    s = in_turns(7, ours=ours, peer=lambda: global_(magnitude(ws), .9), once=lambda: once(ws, cb.masks))
    what = f'propose as a whole at step {i + 2}, s; other: score and select'
    return [row(f'propose {i}', what, s['ours'], s['peer'], target='at most 2.5'),
            row(f'propose floor {i}', 'the same; other: weights and masks read, masks written', s['ours'],
                s['once'])]

def run():
    steps = 2, 8, 16                                                 # early, in the middle, late
    rows = [r for i in steps for r in bench_moves(prepare()[1], i)]
    return rows + [r for i in steps for r in bench_propose(i)]

if __name__ == '__main__': main(run, threads=2)
