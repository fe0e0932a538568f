"""A million steps without a leaked weight: `python -m tests.soak.steps [STEPS]`.

Gradients are random and never 0, optimizers have momentum and decay, and after every step all masked weights
are looked at. Exit status 1 if one of them isn't 0."""
import sys
import time
import torch
from prunelab.callbacks import PruneCB
from prunelab.core import generator, weights
from ..conftest import make_learner
from ..promise import OPTIMIZERS

def leaked(learn, masks):
    "How many masked weights are not 0"
    return sum(int(w[~masks[n]].count_nonzero()) for n, w in weights(learn.model).items())

def steps(name, n):
    "Steps after which a masked weight was not 0"
    learn = make_learner(opt_func=OPTIMIZERS[name], wd=.01)
    masks = learn.prune(PruneCB(.9)).masks
    learn.create_opt()
    learn.opt.set_hyper('lr', .01)
    params, gen, bad = list(learn.model.parameters()), generator(('soak', 1), 'cpu'), 0
    for _ in range(n):
        for p in params: p.grad = torch.randn(p.shape, generator=gen, device='cpu') + 1e-3
        learn.opt.step()
        learn('after_step')
        bad += leaked(learn, masks) > 0
    assert all(p.isfinite().all() for p in params)
    return bad

def main(n):
    bad = 0
    for name in OPTIMIZERS:
        begin = time.monotonic()
        found = steps(name, n//len(OPTIMIZERS))
        bad += found
        print(f'{name}: {n//len(OPTIMIZERS):,} steps, {found} with a leaked weight, '
              f'{time.monotonic() - begin:.0f} s', flush=True)
    print(f'{n:,} steps, {bad} with a leaked weight')
    sys.exit(bad > 0)

if __name__ == '__main__': main(*map(int, sys.argv[1:] or [1_000_000]))
