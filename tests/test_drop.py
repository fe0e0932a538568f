"`prunelab.drop`: who leaves and who returns, how many that makes, and what the callback promises"
import copy
import warnings
from contextlib import nullcontext
from functools import partial
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
import fastai.callback.schedule     # gives Learner lr_find, fine_tune
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn
from prunelab.allocation import erk, global_, uniform
from prunelab.callbacks import PruneCB
from prunelab.core import generator, weights
from prunelab.drop import DropPruning, beyond, drop_away, drop_back, expected_size, fading, follow, fraction
from prunelab.drop import pool_share, unimportant
from prunelab.schedules import Schedule, gradual, one_shot, steps
from prunelab.scores import random_score
from .conftest import as_id, make_learner

N = 480
def zeros(learn): return sum(int((w == 0).sum()) for w in weights(learn.model).values())
def count(d): return sum(int(m.sum()) for m in d.values())
def masked(cb): return count({n: ~m for n, m in cb.masks.items()})
def copied(d): return {n: v.detach().clone() for n, v in d.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def on_cpu(d): return {n: v.cpu() for n, v in d.items()}

def take(cb, t):
    "One step of the schedule without training"
    cb.prune_at(t)
    cb.done += 1

@pytest.fixture
def net(device):
    "Scores and masks of two layers, 30 % kept, of 2,000 and 1,000 weights"
    gen = generator(0, 'cpu')
    scores = {'a': torch.rand(40, 50, generator=gen).to(device)}
    scores['b'] = torch.rand(1000, generator=gen).to(device)
    return scores, {n: torch.rand(s.shape, generator=gen).to(device) < .3 for n, s in scores.items()}

# who moves

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [0, .01, .05, .4, .9, 1])
def test_only_the_unimportant_leave(net, q, exact):
    scores, masks = net
    limit = torch.cat([s[masks[n]] for n, s in scores.items()]).sort().values[200 - 1]
    left = drop_away(scores, masks, 200, q, 1, exact=exact)
    for n, m in masks.items():
        assert left[n].shape == m.shape and left[n].dtype == torch.bool
        assert not (left[n] & ~m).any() and (scores[n][left[n]] <= limit).all()
    if exact or q in (0, 1): assert count(left) == round(q*200)
    else: assert abs(count(left) - q*200) < 5*(q*(1 - q)*200)**.5 + 1

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [0, .01, .05, .4, .9, 1])
def test_only_the_pruned_return(net, q, exact):
    masks = net[1]
    pruned, back = 3000 - count(masks), drop_back(masks, q, 1, exact=exact)
    for n, m in masks.items():
        assert back[n].shape == m.shape and back[n].dtype == torch.bool and not (back[n] & m).any()
    if exact or q in (0, 1): assert count(back) == round(q*pruned)
    else: assert abs(count(back) - q*pruned) < 5*(q*(1 - q)*pruned)**.5

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [.02, .3])
def test_every_pruned_weight_has_the_same_chance(q, exact):
    masks = {'a': torch.zeros(7, 10).bool(), 'b': torch.tensor([False, True]*15)}       # 85 are pruned
    def draw(i): return torch.cat([m.flatten() for m in drop_back(masks, q, (3, i), exact).values()])
    draws = torch.stack([draw(i) for i in range(1500)]).float()
    kept = torch.cat([m.flatten() for m in masks.values()])
    p = round(q*85)/85 if exact else q
    z = (draws[:, ~kept].mean(0) - p)/(p*(1 - p)/1500)**.5
    assert not draws[:, kept].any() and z.abs().max() < 4.5 and .7 < z.std() < 1.3

def test_draws_are_pure(net):
    scores, masks = net
    before, state = (copied(scores), copied(masks)), torch.random.get_rng_state()
    a, b = drop_away(scores, masks, 300, .5, (1, 2)), drop_back(masks, .03, (1, 2))
    assert same(a, drop_away(scores, masks, 300, .5, (1, 2))) and same(b, drop_back(masks, .03, (1, 2)))
    assert same(scores, before[0]) and same(masks, before[1])
    assert torch.equal(state, torch.random.get_rng_state())

def test_draws_depend_on_the_seed(net):
    scores, masks = net
    assert not same(drop_away(scores, masks, 300, .5, (1, 2)), drop_away(scores, masks, 300, .5, (1, 3)))
    assert not same(drop_back(masks, .03, (1, 2)), drop_back(masks, .03, (1, 3)))

def test_one_exact_return():
    masks = {'a': torch.zeros(50, dtype=torch.bool)}
    returned = {int(drop_back(masks, 1/50, i, exact=True)['a'].nonzero()) for i in range(300)}
    assert returned == set(range(50))

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [.05, .5, 1.])
def test_nobody_returns_to_a_full_network(q, exact):
    assert not drop_back({'a': torch.ones(50, dtype=torch.bool)}, q, 0, exact)['a'].any()

# who is unimportant

@pytest.mark.parametrize('allocation', [global_, uniform, erk])
@pytest.mark.parametrize('u', [0, 1, 200, 'all'])
def test_as_many_are_unimportant_as_are_asked_for(net, allocation, u):
    scores, masks = net
    u = count(masks) if u == 'all' else u
    pool = unimportant(scores, masks, u, allocation)
    assert count(pool) == u and not any((pool[n] & ~m).any() for n, m in masks.items())

def test_more_than_survive_are_refused(net):
    scores, masks = net
    with pytest.raises(ValueError, match=f'{count(masks) + 1} of {count(masks)}'):
        unimportant(scores, masks, count(masks) + 1)

@pytest.mark.parametrize('u', [1, 70, 149])
def test_the_quick_way_breaks_ties_as_the_allocation_does(u):
    scores = {'a': torch.randint(4, (10, 20)).float(), 'b': torch.randint(4, (100,)).float()}
    masks = {n: torch.arange(s.numel()).view(s.shape) % 2 == 0 for n, s in scores.items()}
    def slow(scores, sparsity): return global_(scores, sparsity)
    assert same(unimportant(scores, masks, u), unimportant(scores, masks, u, slow))

@pytest.mark.parametrize('allocation, from_b', [(global_, 0), (uniform, 500)])
def test_the_allocation_says_who_is_important(net, allocation, from_b):
    scores, _ = net
    masks = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    scores = {'a': scores['a'], 'b': scores['b'] + 10}
    assert count({'b': unimportant(scores, masks, 1500, allocation)['b']}) == from_b

def test_layouts_other_than_contiguous():
    w = torch.rand(8, 4, 3, 3).to(memory_format=torch.channels_last)
    m = w > .5
    left = drop_away({'w': w}, {'w': m}, 60, .5, 0)['w']
    plain = drop_away({'w': w.contiguous()}, {'w': m.contiguous()}, 60, .5, 0)['w']
    assert torch.equal(left, plain) and not (left & ~m).any()

# how many

BALANCE = [(partial(fraction, rho=.3), .05/.2), (beyond, (.5*.1 + .05)/.55), (follow, .1)]

@pytest.mark.parametrize('pool, rest', BALANCE, ids=['fraction', 'beyond', 'follow'])
def test_expected_sizes_agree_with_simulated_ones(pool, rest):
    n, T, a, b = 20_000, 60, .5, .05
    goals = [n*(1 - .9*t) for t in gradual(n=T).progress] if pool is follow else [.1*n]*T
    f, rng, c, sizes = expected_size(n, goals, a, b, pool), np.random.default_rng(1), np.full(3000, n), []
    for goal in goals:
        u = np.clip(pool(c, n - c, goal, a, b), 0, c).round().astype(int)
        c = c - rng.binomial(u, a) + rng.binomial(n - c, b)
        sizes.append(c)
    sizes = np.array(sizes)
    assert abs(sizes.mean(1) - f['kept']).max() < 8
    assert abs(sizes.std(1)[1:]/f['sd'][1:] - 1).max() < .08
    assert abs(f['kept'].iloc[-1]/n - rest) < 2e-3

def test_expected_size_with_probabilities_of_each_step_and_a_start():
    f = expected_size(100, [40, 30], [.5, 1.], [.1, 0.], follow, start=50)
    assert f['kept'].tolist() == [40, 30] and f['before'].tolist() == [50, 40]
    assert f['asked'].tolist() == [(50 - 40 + 5)/.5, 10]

POOLS = [{}, dict(away=.9), dict(away=1, back=.02), dict(away=lambda t: .5 + .4*t)]

@pytest.mark.parametrize('kwargs', POOLS, ids=['default', 'away', 'numbers', 'functions'])
def test_the_largest_pool_is_the_one_that_training_meets(new_learner, kwargs):
    schedule, shares = gradual(n=8), []
    cb = DropPruning(.9, schedule=schedule, exact=True, **kwargs)
    new_learner(cbs=cb)
    for t in schedule.progress[:-1]:
        shares.append(cb.pool_size(cb.masks, t)/count(cb.masks) if cb.masks else None)
        take(cb, t)
    seen = max(s for s in shares if s is not None)
    assert abs(pool_share(.9, schedule=schedule, **kwargs) - seen) < .02

@pytest.mark.parametrize('n', [8, 10, 12, 14, 16, 20])
def test_more_than_all_is_what_the_callback_refuses(n):
    share = pool_share(.95, away=.3, schedule=gradual(n=n))
    refused = pytest.raises(ValueError, match='cannot go from') if share > 1 else nullcontext()
    with refused: DropPruning(.95, away=.3, schedule=gradual(n=n))

def test_a_single_step_has_no_pool_and_a_target_is_a_fraction():
    assert pool_share(.9, schedule=one_shot()) == 0
    with pytest.raises(ValueError, match='did you mean 0.9'): pool_share(90)

# the callback's target

VARIANTS = [{}, dict(away=1, back=0), dict(back=0), dict(away=1), dict(exact=True), dict(value='zero'),
            dict(value='dense'), dict(pool=beyond)]

class Masked(Callback):
    "How many are masked after each batch"
    order = 99
    def __init__(self, cb): self.cb, self.seen = cb, []
    def after_batch(self):
        if self.training: self.seen.append(masked(self.cb))

@pytest.mark.parametrize('kwargs', VARIANTS, ids=as_id)
@pytest.mark.parametrize('allocation', [global_, uniform, erk])
def test_reaches_the_target_exactly(new_learner, allocation, kwargs):
    learn, target = new_learner(), round(.905*N)
    cb = DropPruning(.905, allocation=allocation, schedule=steps(8, end=1.), **kwargs)
    watch = Masked(cb)
    learn.fit(2, .05, cbs=[cb, watch])
    assert watch.seen[-1] == target == max(watch.seen)                # never beyond the target
    if cb.value != 'zero': assert zeros(learn) == target
    assert cb.done == len(cb.schedule.at) and len(cb.history) == 8

def test_chance_never_goes_below_the_target(new_learner):
    for seed in range(8):                                             # so close to it that draws overshoot
        learn = new_learner()
        schedule = Schedule([0, .2, .4, .6], [.6, .9, .999, 1])
        cb = DropPruning(.9, away=.8, schedule=schedule, seed=seed)
        learn.add_cb(cb)
        for t in schedule.progress: take(cb, t)
        assert max(cb.history['total']) <= round(.9*N)/N + 1e-9 and masked(cb) == round(.9*N)

def test_without_chance_it_is_gradual_magnitude(new_learner):
    found = []
    for cb in (DropPruning(.9, away=1, back=0, schedule=gradual(n=6)), PruneCB(.9, schedule=gradual(n=6))):
        learn = new_learner()
        learn.fit(2, .1, cbs=cb)
        found.append((cb.masks, weights(learn.model)))
    assert same(found[0][0], found[1][0]) and same(found[0][1], found[1][1])

# values and the optimizer's memory

class Watch(Callback):
    "The masks, weights and optimizer state after every step of `cb`, and the masks before it"
    order = 66
    def __init__(self, cb): self.cb, self.seen, self.last = cb, [], None
    def before_batch(self): self.look()
    def after_batch(self): self.look()
    def look(self):
        if not self.training: return
        now = copied(self.cb.masks)
        if len(self.cb.rows) > len(self.seen):
            self.seen.append(dict(masks=now, was=self.last, ws=copied(self.cb.weights()), state=self.state()))
        self.last = now
    def state(self):
        state = getattr(self.learn.opt, 'opt', self.learn.opt).state
        def tensors(w): return [v.clone() for v in state[w].values() if torch.is_tensor(v)]
        return {n: [v for v in tensors(w) if v.shape == w.shape] for n, w in self.cb.weights().items()}

def returns(watch):
    "(name, what was seen, True where a weight returned) of each step and layer"
    for s in watch.seen:
        for n, m in s['masks'].items():
            yield n, s, m & ~(s['was'][n] if s['was'] else torch.ones_like(m))

@pytest.mark.parametrize('value', ['dropped', 'zero', 'dense'])
def test_the_value_of_a_returned_weight(new_learner, value):
    learn = new_learner()
    first = copied(weights(learn.model))
    cb = DropPruning(.8, schedule=gradual(n=8), back=partial(fading, start=.3), value=value)
    watch, returned = Watch(cb), 0
    learn.fit(2, .1, cbs=[cb, watch])
    for n, s, back in returns(watch):
        returned += int(back.sum())
        if value == 'zero': assert (s['ws'][n][back] == 0).all()
        if value == 'dense': assert torch.equal(s['ws'][n][back], first[n][back])
    assert returned == cb.flips['returned'].sum() > 20

def test_nothing_is_stored_after_the_last_step(new_learner):
    learn, cb = new_learner(), new_cb()
    learn.fit(1, .1, cbs=cb)
    assert cb.finished and not cb.store and not cb.returned_at

def test_a_weight_returns_with_the_value_that_it_had_when_it_left(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, schedule=gradual(n=6, end=.8), back=partial(fading, start=.4))
    learn.add_cb(cb)
    learn.create_opt()
    gone, returned = {}, 0
    for i, t in enumerate(cb.schedule.progress[:-1]):
        with torch.no_grad():
            for n, w in cb.weights().items(): w.add_(.01*(i + 1)).mul_(cb.masks[n])          # training
        old, was = copied(cb.masks), copied(cb.weights())
        take(cb, t)
        for n, w in cb.weights().items():
            left, back, stay = old[n] & ~cb.masks[n], ~old[n] & cb.masks[n], old[n] & cb.masks[n]
            assert torch.equal(w[back], gone.get(n, w)[back]) and torch.equal(w[stay], was[n][stay])
            assert not w[~cb.masks[n]].any()
            gone[n] = torch.where(left, was[n], gone.get(n, was[n]))
            returned += int(back.sum())
    assert returned > 20

OPTIMIZERS = {'sgd': partial(SGD, mom=.9), 'adam': Adam,
              'torch adamw': partial(OptimWrapper, opt=torch.optim.AdamW)}

@pytest.mark.parametrize('opt', OPTIMIZERS)
def test_optimizer_state_is_zero_on_both_moves(new_learner, opt):
    learn = new_learner(opt_func=OPTIMIZERS[opt])
    learn.fit(1, .05)
    cb = DropPruning(.8, schedule=gradual(n=8), back=partial(fading, start=.3))
    watch, left, back = Watch(cb), 0, 0
    learn.fit(2, .05, cbs=[cb, watch])
    for s in watch.seen[1:]:
        for n, m in s['masks'].items():
            moved, state = m ^ s['was'][n], s['state'][n]
            left, back = left + int((moved & ~m).sum()), back + int((moved & m).sum())
            assert state and not any(v[moved].any() for v in state)
            assert any(v[m & ~moved].any() for v in state)
    assert left > 50 and back > 10

@pytest.mark.parametrize('value, copies', [('dropped', 1), ('dense', 1), ('zero', 0)])
def test_one_copy_of_the_weights(new_learner, value, copies):
    learn, cb = new_learner(), new_cb(value=value)
    learn.add_cb(cb)
    cb.prune_at(.5)
    dicts = [d for d in vars(cb).values() if isinstance(d, dict)]
    tensors = [t for d in dicts for t in d.values() if torch.is_tensor(t)]
    assert sum(t.numel()*t.element_size() for t in tensors) == N*(4*copies + 1)

# moves

def test_flips_are_what_the_masks_did(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, schedule=gradual(n=9), back=partial(fading, start=.3))
    watch = Watch(cb)
    learn.fit(3, .2, cbs=[cb, watch])
    f = cb.flips
    assert len(f) == 9*3 and list(f['layer'][:3]) == list(cb.masks)
    was = {n: torch.ones_like(m) for n, m in cb.masks.items()}
    for i, s in enumerate(watch.seen):
        for j, (n, m) in enumerate(s['masks'].items()):
            counts = int((was[n] & ~m).sum()), int((m & ~was[n]).sum()), int(m.sum())
            assert tuple(f.iloc[3*i + j][['left', 'returned', 'kept']]) == counts
        was = s['masks']
    total = f.groupby('step', sort=False)['kept'].sum()
    assert list(total) == [round(N*(1 - x)) for x in cb.history['total']]

def test_who_stayed_is_counted_where_it_returned(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, schedule=gradual(n=9), back=partial(fading, start=.3))
    watch = Watch(cb)
    learn.fit(3, .2, cbs=[cb, watch])
    last_return = {n: torch.zeros_like(m, dtype=torch.long) for n, m in cb.masks.items()}
    for i, (n, _, back) in enumerate(returns(watch)): last_return[n][back] = i//3 + 1
    for i, row in enumerate(cb.flips.itertuples()):
        there = cb.masks[row.layer] & (last_return[row.layer] == i//3 + 1)
        assert row.stayed == int(there.sum())
    assert 0 < cb.flips['stayed'].sum() < cb.flips['returned'].sum()

def test_a_step_that_fails_has_moved_nothing(new_learner, monkeypatch):
    learn, cb = new_learner(), new_cb()
    learn.add_cb(cb)
    take(cb, .5)
    def fail(*args): raise RuntimeError('x')
    with monkeypatch.context() as m:
        m.setattr(cb.holder, 'set_masks', fail)
        with pytest.raises(RuntimeError): cb.prune_at(.6)
    assert len(cb.flips) == 3
    take(cb, .7)
    assert len(cb.flips) == 6 and cb.flips.iloc[3:]['kept'].sum() == N - masked(cb)

def test_flips_are_drawn(new_learner):
    cb = new_cb()
    with pytest.raises(ValueError, match='nothing was pruned'): cb.plot_flips()
    new_learner().fit(1, .1, cbs=cb)
    assert len(cb.plot_flips().patches) == 3*len(cb.history)

# sizes

def test_sizes_follow_the_schedule_in_the_mean(new_learner):
    schedule, back = gradual(n=6), partial(fading, start=.2)
    kept = []
    for seed in range(12):
        cb = DropPruning(.8, schedule=schedule, back=back, seed=seed)
        new_learner().fit(1, .01, cbs=cb)
        kept.append(cb.history['total'].to_numpy())
    goals = .8*np.array(schedule.progress)
    f = expected_size(N, N*(1 - goals[:-1]), .5, [back(t) for t in schedule.progress[:-1]])
    assert np.abs(np.mean(kept, 0)[:-1] - goals[:-1]).max() < 4*f['sd'].max()/N/12**.5 + 1/N
    assert (np.std(kept, 0)[:-1] > 0).all() and np.std(kept, 0)[-1] < 1e-9

def test_exact_sizes_follow_the_schedule(new_learner):
    cb = DropPruning(.8, schedule=gradual(n=6), back=partial(fading, start=.2), exact=True)
    new_learner().fit(1, .01, cbs=cb)
    assert np.abs(cb.history['total'] - .8*np.array(cb.schedule.progress)).max() <= 1.5/N

def test_sparsity_may_fall_on_the_way(new_learner):
    there_and_back = Schedule([0, .2, .4, .6], [.5, .2, .8, 1])
    cb, learn = DropPruning(.9, schedule=there_and_back, back=.45, away=1), new_learner()
    learn.fit(2, .1, cbs=cb)
    assert cb.history['total'].iloc[1] < cb.history['total'].iloc[0] and zeros(learn) == round(.9*N)

# guarantees

def new_cb(**kwargs):
    return DropPruning(.8, **{'schedule': gradual(n=10), 'back': partial(fading, start=.2), **kwargs})

def test_two_runs_agree_and_a_seed_matters(new_learner):
    found = []
    for seed in (1, 1, 2):
        learn, cb = new_learner(), new_cb(seed=seed)
        torch.manual_seed(len(found))                                 # the global state has no say
        learn.dls.train.rng.seed(7)
        learn.fit(1, .1, cbs=cb)
        found.append((copied(cb.masks), cb.flips))
    assert same(found[0][0], found[1][0]) and found[0][1].equals(found[1][1])
    assert not same(found[0][0], found[2][0])

@pytest.mark.parametrize('kwargs', [dict(away=1), dict(back=0)], ids=['back', 'away'])
def test_each_draw_depends_on_the_seed_and_the_step(new_learner, kwargs):
    moves = []
    for seed in (1, 2):
        cb = new_cb(seed=seed, **kwargs)
        new_learner(cbs=cb)
        take(cb, .5)
        first = copied(cb.masks)
        for _ in range(2):                                            # twice from the same masks
            for n, m in cb.masks.items(): m.copy_(first[n])
            cb.prune_at(.7)
            moves.append({n: first[n] ^ m for n, m in cb.masks.items()})
    assert all(any(m.any() for m in move.values()) for move in moves)
    assert not same(moves[0], moves[2]) and not same(moves[0], moves[1])

def test_lr_find_draws_nothing(new_learner):
    cb = new_cb()
    learn = new_learner(cbs=cb)
    learn.fit(1, .1)
    cb.done, cb.rows = 4, cb.rows[:4]                                 # in the middle of its schedule
    def now():
        counts = cb.draws, cb.done, len(cb.rows), len(cb.moves)
        return copied(weights(learn.model)), copied(cb.masks), counts
    before = now()
    learn.lr_find(num_it=12, show_plot=False)
    after = now()
    assert same(before[0], after[0]) and same(before[1], after[1]) and before[2] == after[2]

def test_a_second_fit_only_holds(new_learner):
    learn, cb = new_learner(), new_cb()
    learn.fit(1, .1, cbs=cb)
    masks, flips = copied(cb.masks), cb.flips
    learn.fit(1, .1, cbs=cb)
    learn.fit(1, .1)
    assert zeros(learn) == round(.8*N) and same(masks, cb.holder.masks) and cb.flips.equals(flips)

def test_fine_tune_runs_the_schedule_once_over_the_unfrozen(new_learner):
    def split(m): return [list(m[:3].parameters()), list(m[3:].parameters())]
    learn, cb = new_learner(splitter=split), new_cb(schedule=gradual(n=4), away=.7)
    learn.fine_tune(2, .01, freeze_epochs=1, cbs=cb)
    assert len(cb.history) == 4 and zeros(learn) == round(.8*N)

class Break(Callback):
    "Ends training in batch `n`"
    order = 90
    def __init__(self, n, error): self.n, self.error = n, error
    def after_batch(self):
        self.n -= self.training
        if self.n == 0: raise self.error

@pytest.mark.parametrize('value', ['dropped', 'zero', 'dense'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('x')], ids=['keyboard', 'error'])
def test_an_interrupted_fit_goes_on(new_learner, error, value):
    learn, cb = new_learner(), new_cb(value=value)
    try: learn.fit(3, .1, cbs=[cb, Break(6, error)])
    except (KeyboardInterrupt, RuntimeError): pass
    assert 0 < len(cb.history) < 10 and len(cb.moves) == len(cb.history)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        learn.fit(2, .1, cbs=cb)
    assert masked(cb) == round(.8*N) and cb.finished

def twin_of(learn, how):
    "The learner as it comes back from a file, or from a copy"
    if how == 'export':
        learn.export('m.pkl')
        return load_learner(learn.path/'m.pkl', cpu=True)
    learn.pred = learn.loss = learn.loss_grad = None        # fastai leaves the graph of an interrupted batch
    return copy.deepcopy(learn)

@pytest.mark.parametrize('how', ['export', 'deepcopy'])
def test_values_survive_in_the_middle_of_the_schedule(new_learner, how):
    cb = new_cb()
    learn = new_learner(cbs=cb)
    learn.logger = print
    try: learn.fit(3, .1, cbs=Break(7, KeyboardInterrupt))
    except KeyboardInterrupt: pass
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, Break)])
    assert cb.store and 0 < cb.done < 10 and masked(cb)
    twin = twin_of(learn, how)
    other = next(c for c in twin.cbs if isinstance(c, DropPruning))
    assert other is not cb and same(on_cpu(cb.store), on_cpu(other.store))
    twin.dls = make_learner(device=next(twin.model.parameters()).device).dls
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        twin.fit(3, .1)
    assert other.finished and zeros(twin) == round(.8*N)
    assert other.flips['returned'].sum() > cb.flips['returned'].sum()

def test_another_learner_starts_anew(new_learner):
    cb = new_cb()
    new_learner().fit(1, .1, cbs=cb)
    first, learn = cb.flips, new_learner()
    learn.fit(1, .1, cbs=cb)
    assert len(cb.flips) == len(first) == 3*len(cb.history) and zeros(learn) == round(.8*N)

def test_from_sparse_to_sparser(new_learner):
    learn = new_learner()
    learn.prune(.5)
    cb = DropPruning(.9, schedule=gradual(n=8))
    learn.fit(2, .1, cbs=cb)
    assert masked(cb) == round(.9*N)
    assert abs(cb.history['total'].iloc[0] - .5 - .4*gradual(n=8).progress[0]) < .06
    with pytest.raises(ValueError, match='needs finalize'): learn.prune(DropPruning(.5))

def test_learn_prune_is_plain_pruning(new_learner):
    learn, other = new_learner(), new_learner()
    assert same(learn.prune(DropPruning(.9)).masks, other.prune(.9).masks)

def test_exclude_and_random_score(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, exclude='0', score=random_score, schedule=gradual(n=5), away=.8)
    learn.fit(1, .1, cbs=cb)
    assert zeros(learn) == round(.8*240) and set(cb.flips['layer']) == {'3.weight', '5.weight'}

# errors

AWAY, BACK = 'away is a probability', 'back one at least 0'

@pytest.mark.parametrize('sparsity, kwargs, message', [
    (.9, dict(away=0), AWAY), (.9, dict(away=1.1), AWAY), (.9, dict(away=float('nan')), AWAY),
    (.9, dict(back=1), BACK), (.9, dict(back=-.1), BACK),
    (.9, dict(back=lambda t: 2*t), 'at progress'), (.9, dict(away=lambda t: 0), 'at progress'),
    (.9, dict(value='old'), "'dropped', 'zero' or 'dense'"), (.9, dict(pool='follow'), 'follow'),
    (None, {}, 'give a sparsity'), (90, {}, '0.9'),
    (.8, dict(schedule=Schedule([0, .3, .6], [1, .5, 1])), 'at 1 in its last step only'),
    (.99, dict(back=.05), 'step .* cannot go from .* unimportant'),
    (.99, dict(schedule=steps(3)), 'more and smaller steps'),
    (.5, dict(back=0, pool=partial(fraction, rho=.5)), 'the target is 50.00%')])
def test_errors(sparsity, kwargs, message):
    with pytest.raises(ValueError, match=message): DropPruning(sparsity, **kwargs)

def test_what_cannot_be_reached_from_here_is_refused_before_anything_moves(new_learner):
    learn = new_learner()
    learn.prune(.89)
    before = copied(weights(learn.model))
    cb = DropPruning(.9, back=.15, away=.9, schedule=Schedule([0, .5], [.01, 1]))     # from dense it can
    with pytest.raises(ValueError, match='cannot go from'): learn.fit(1, .1, cbs=cb)
    assert same(before, weights(learn.model)) and not cb.rows

def test_a_model_without_weights(new_learner):
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.LayerNorm(12)))
    with pytest.raises(ValueError, match='no prunable weight'): learn.prune(DropPruning(.5))
