"""The promise as a table: any two things that people switch on meet in a row, where every guarantee holds.

The whole product of methods, optimizers and switches is run by `make soak`."""
import itertools
import os
from collections import Counter
from functools import partial
import pytest
import torch
from allpairspy import AllPairs
from prunelab import callbacks, hold, stochastic
from prunelab.callbacks import PruneCB
from prunelab.hold import HoldMasks
from . import promise
from .promise import ALWAYS, FACTORS, IF_ASKED, PLAIN, REPEATS, keeps, possible

def as_choice(values): return dict(zip(FACTORS, values))

# A covering array: a few rows in which any two values of two factors meet
ROWS = [as_choice(r) for r in AllPairs([*FACTORS.values()], filter_func=lambda r: possible(as_choice(r)))]

def in_words(choice): return ', '.join(v for k, v in choice.items() if v != PLAIN[k]) or 'plain'

@pytest.mark.parametrize('choice', ROWS, ids=in_words)
def test_every_guarantee_holds(choice):
    assert [g for g, kept in keeps(choice).items() if not kept] == []

def test_every_pair_occurs():
    "Counted here, without the package that made the rows"
    met = Counter()
    for row in ROWS: met.update(itertools.combinations(row.items(), 2))
    for a, b in itertools.combinations(FACTORS, 2):
        for x, y in itertools.product(FACTORS[a], FACTORS[b]):
            assert bool(met[(a, x), (b, y)]) == possible({a: x, b: y}), (x, y)

# Every guarantee can fail: what breaks it is seen

def nothing(*args, **kwargs): pass

def one_more(scores, sparsity):
    "The masks, and one weight that should have been removed"
    masks = callbacks.global_(scores, sparsity)
    first = next(m for m in masks.values() if not m.all())
    first.view(-1)[(~first).flatten().nonzero()[0]] = True
    return masks

def prune_in_lr_find(self):
    "A mask that changes while a learning rate is looked for"
    if not hold.in_lr_find(self.learn): return
    mask = next(iter(self.masks.values()))
    mask.view(-1)[mask.flatten().nonzero()[0]] = False

def without_masks(self):
    "What a file would hold if the masks were forgotten"
    all_kept = {n: torch.ones_like(m) for n, m in self.masks.items()}
    return {**{k: v for k, v in vars(self).items() if k not in self._stateattrs}, 'masks': all_kept}

def let_go(self):
    "Hold nothing in a fit without a pruner"
    if not self.pruners(): self.masks = {n: torch.ones_like(m) for n, m in self.masks.items()}
    self.bind()

def by_the_clock(seed, device=None):
    "Numbers that nobody can repeat"
    return torch.Generator(device or 'cpu').manual_seed(int.from_bytes(os.urandom(6), 'big'))

def add_noise(self):
    "What a measurement should not do"
    with torch.no_grad(): next(iter(self.learn.model.parameters())).add_(.01)

def exclude_nothing(exclude): return ()

def a_half(masks): return .5

careless = partial(PruneCB, .8, allocation=one_more)

# {guarantee: (what is switched on, where the fault is, its name there, the fault)}
FAULTS = {
    'exact count': ({}, promise.METHODS, 'magnitude', careless),
    'zeros after every step': ({}, HoldMasks, 'after_step', nothing),
    'the rest is left alone': ({}, callbacks, 'exclusions', exclude_nothing),
    'numbers are measured': ({}, callbacks, 'sparsity', a_half),
    "the task's loss": ({}, HoldMasks, 'before_validate', add_noise),
    REPEATS: ({'method': 'stochastic'}, stochastic, 'generator', by_the_clock),
    'lr_find changes nothing': ({'before': 'lr_find'}, HoldMasks, 'before_epoch', prune_in_lr_find),
    'export keeps the zeros': ({'file': 'export and load'}, HoldMasks, '__getstate__', without_masks),
    'a second fit keeps the zeros': ({'then': 'second fit'}, HoldMasks, 'before_train', let_go)}

def test_every_guarantee_has_a_fault(): assert {*FAULTS} == {*ALWAYS, *IF_ASKED, REPEATS}

@pytest.mark.parametrize('guarantee', FAULTS)
def test_a_fault_is_seen(monkeypatch, guarantee):
    choice, place, name, fault = FAULTS[guarantee]
    assert keeps(choice)[guarantee]
    if isinstance(place, dict): monkeypatch.setitem(place, name, fault)
    else: monkeypatch.setattr(place, name, fault, raising=False)
    assert not keeps(choice)[guarantee]
