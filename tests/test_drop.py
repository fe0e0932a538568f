"`prunelab.drop`: who leaves and who returns, how many that makes, and the callback's guarantees when sparsity may fall"
import copy, warnings
from functools import partial
import numpy as np, pytest, torch
from fastai.callback.core import Callback
import fastai.callback.schedule     # gives Learner lr_find, fine_tune
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from torch import nn
from prunelab.callbacks import PruneCB
from prunelab.core import generator, weights
from prunelab.drop import DropPruning, beyond, drop_away, drop_back, fading, flow, follow, fraction
from prunelab.allocation import erk, global_, uniform
from prunelab.schedules import Schedule, gradual, steps
from prunelab.scores import random_score
from .conftest import make_learner

N = 480
def zeros(learn): return sum(int((w == 0).sum()) for w in weights(learn.model).values())
def count(d): return sum(int(m.sum()) for m in d.values())
def copied(d): return {n: v.detach().clone() for n, v in d.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

@pytest.fixture
def net(device):
    "Scores and masks of two layers, 30 % kept, of 2,000 and 1,000 weights"
    gen = generator(0, 'cpu')
    scores = {'a': torch.rand(40, 50, generator=gen).to(device), 'b': torch.rand(1000, generator=gen).to(device)}
    return scores, {n: torch.rand(s.shape, generator=gen).to(device) < .3 for n, s in scores.items()}

# the dice

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [0, .01, .05, .4, .9, 1])
def test_only_the_unimportant_leave_and_only_the_pruned_return(net, q, exact):
    scores, masks = net
    u = 200
    limit = torch.cat([s[masks[n]] for n, s in scores.items()]).sort().values[u - 1]
    left, back = drop_away(scores, masks, u, q, 1, exact=exact), drop_back(masks, q, 1, exact=exact)
    for n, m in masks.items():
        assert left[n].shape == back[n].shape == m.shape and left[n].dtype == back[n].dtype == torch.bool
        assert not (left[n] & ~m).any() and not (back[n] & m).any() and (scores[n][left[n]] <= limit).all()
    if exact or q in (0, 1): assert count(left) == round(q*u) and count(back) == round(q*(3000 - count(masks)))
    else: assert abs(count(left) - q*u) < 5*(q*(1 - q)*u)**.5 + 1 and abs(count(back) - q*2100) < 5*(q*(1 - q)*2100)**.5 + 30

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [.02, .3])
def test_every_place_has_the_same_chance_and_places_are_independent(q, exact):
    masks = {'a': torch.zeros(7, 10, dtype=torch.bool), 'b': torch.tensor([False, True]*15)}       # 85 are pruned
    n, pruned = 1500, ~torch.cat([m.flatten() for m in masks.values()])
    draws = torch.stack([torch.cat([m.flatten() for m in drop_back(masks, q, (3, i), exact).values()]) for i in range(n)]).float()
    assert not draws[:, ~pruned].any()
    draws = draws[:, pruned]
    p = round(q*85)/85 if exact else q
    z = (draws.mean(0) - p)/(p*(1 - p)/n)**.5
    assert z.abs().max() < 4.5 and .7 < z.std() < 1.3
    sizes, neighbours = draws.sum(1), (draws[:, :-1]*draws[:, 1:]).mean(0).mean()
    if exact: assert (sizes == round(q*85)).all()
    else: assert abs(sizes.var()/(85*q*(1 - q)) - 1) < .2 and abs(neighbours - q*q) < 5*q/(85*n)**.5

def test_draws_are_pure_and_depend_on_the_seed(net):
    scores, masks = net
    before = copied(scores), copied(masks)
    torch.manual_seed(0); state = torch.random.get_rng_state()
    a, b = drop_away(scores, masks, 300, .5, (1, 2)), drop_back(masks, .03, (1, 2))
    assert torch.equal(state, torch.random.get_rng_state()) and same(scores, before[0]) and same(masks, before[1])
    assert same(a, drop_away(scores, masks, 300, .5, (1, 2))) and same(b, drop_back(masks, .03, (1, 2)))
    assert not same(a, drop_away(scores, masks, 300, .5, (1, 3))) and not same(b, drop_back(masks, .03, (1, 3)))

def test_one_exact_return_and_empty_pools():
    masks = {'a': torch.zeros(50, dtype=torch.bool)}
    assert {int(drop_back(masks, 1/50, i, exact=True)['a'].nonzero()) for i in range(300)} == set(range(50))
    full = {'a': torch.ones(50, dtype=torch.bool)}
    assert not any(drop_back(full, q, 0, e)['a'].any() for q in (.05, .5, 1.) for e in (True, False))
    assert count(drop_away({'a': torch.rand(50)}, full, 50, 1.)) == 50 and count(drop_away({'a': torch.rand(50)}, full, 0, 1.)) == 0
    with pytest.raises(ValueError, match='51 of 50'): drop_away({'a': torch.rand(50)}, full, 51, .5)

def test_the_budget_says_who_is_important(net):
    scores, _ = net
    masks = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    scores = {'a': scores['a'], 'b': scores['b'] + 10}
    assert count({'b': drop_away(scores, masks, 1500, 1.)['b']}) == 0
    assert count({'b': drop_away(scores, masks, 1500, 1., allocation=uniform)['b']}) == 500

def test_layouts_other_than_contiguous():
    w = torch.rand(8, 4, 3, 3).to(memory_format=torch.channels_last)
    m = w > .5
    left = drop_away({'w': w}, {'w': m}, 60, .5, 0)['w']
    assert torch.equal(left, drop_away({'w': w.contiguous()}, {'w': m.contiguous()}, 60, .5, 0)['w']) and not (left & ~m).any()

# how many

@pytest.mark.parametrize('pool, rest', [(partial(fraction, rho=.3), .05/.2), (beyond, (.5*.1 + .05)/.55), (follow, .1)])
def test_flow_agrees_with_simulated_masks_sizes(pool, rest):
    n, T, a, b = 20_000, 60, .5, .05
    goals = [n*(1 - .9*t) for t in gradual(n=T).progress] if pool is follow else [.1*n]*T
    f, rng = flow(n, goals, a, b, pool), np.random.default_rng(1)
    c, sims = np.full(3000, n), []
    for goal in goals:
        u = np.clip(pool(c, n - c, goal, a, b), 0, c).round().astype(int)
        sims.append(c := c - rng.binomial(u, a) + rng.binomial(n - c, b))
    sims = np.array(sims)
    assert abs(sims.mean(1) - f['kept']).max() < 8 and abs(sims.std(1)[1:]/f['sd'][1:] - 1).max() < .08
    assert abs(f['kept'].iloc[-1]/n - rest) < 2e-3

def test_flow_with_probabilities_of_each_step_and_a_start():
    f = flow(100, [40, 30], [.5, 1.], [.1, 0.], follow, start=50)
    assert f['kept'].tolist() == [40, 30] and f['before'].tolist() == [50, 40] and f['asked'].tolist() == [(50 - 40 + 5)/.5, 10]

# the callback

@pytest.mark.parametrize('kwargs', [{}, dict(away=1, back=0), dict(back=0), dict(away=1), dict(exact=True), dict(value='zero'), dict(value='dense'), dict(pool=beyond)], ids=str)
@pytest.mark.parametrize('allocation', [global_, uniform, erk])
def test_lands_exactly(new_learner, allocation, kwargs):
    learn, p, seen = new_learner(), .905, []
    cb = DropPruning(p, allocation=allocation, schedule=steps(8, end=1.), **kwargs)
    class Last(Callback):
        order = 99
        def after_batch(self): seen.append(count({n: ~m for n, m in cb.masks.items()})) if self.training else None
    learn.fit(2, .05, cbs=[cb, Last()])
    assert seen[-1] == round(p*N) == count({n: ~m for n, m in cb.masks.items()})
    if cb.value != 'zero': assert zeros(learn) == round(p*N)
    assert max(seen) <= round(p*N)                                    # chance never goes below the target
    assert cb.done == len(cb.schedule.at) and len(cb.history) == 8

def test_chance_never_goes_below_the_target(new_learner):
    learn = new_learner()
    for seed in range(8):                                             # so close to the target that coins overshoot
        cb = DropPruning(.9, away=.8, schedule=Schedule([0, .2, .4, .6], [.6, .9, .999, 1]), seed=seed)
        learn.add_cb(cb)
        for t in cb.schedule.progress: cb.prune_at(t); cb.done += 1
        assert max(cb.history['total']) <= round(.9*N)/N + 1e-9 and count({n: ~m for n, m in cb.masks.items()}) == round(.9*N)
        cb.finalize()

def test_without_dice_it_is_gradual_magnitude(new_learner):
    masks = []
    for cb in (DropPruning(.9, away=1, back=0, schedule=gradual(n=6)), PruneCB(.9, schedule=gradual(n=6))):
        learn = new_learner()
        learn.fit(2, .1, cbs=cb)
        masks.append((cb.masks, weights(learn.model)))
    assert same(masks[0][0], masks[1][0]) and same(masks[0][1], masks[1][1])

class Watch(Callback):
    "The masks, weights and optimizer state around every step of `cb`"
    order = 66
    def __init__(self, cb): self.cb, self.seen, self.last = cb, [], None
    def before_batch(self): self.look()
    def after_batch(self): self.look()
    def look(self):
        if not self.training: return
        now = copied(self.cb.masks)
        if len(self.cb.rows) > len(self.seen):
            st = getattr(self.learn.opt, 'opt', self.learn.opt).state
            self.seen.append(dict(masks=now, was=self.last, ws=copied(self.cb.weights()),
                state={n: [v.clone() for v in st[w].values() if torch.is_tensor(v) and v.shape == w.shape] for n, w in self.cb.weights().items()}))
        self.last = now

@pytest.mark.parametrize('value', ['dropped', 'zero', 'dense'])
def test_the_value_of_a_returned_weight(new_learner, value):
    learn = new_learner()
    first = copied(weights(learn.model))
    cb = DropPruning(.8, schedule=gradual(n=8), back=partial(fading, start=.3), value=value)
    w = Watch(cb)
    last_day = {}
    class Remember(Callback):
        order = 64                                                    # just before the pruner
        def before_batch(self): last_day.update({n: torch.where(cb.masks[n], x, last_day.get(n, x)) for n, x in copied(cb.weights()).items()}) if self.training else None
    learn.fit(2, .1, cbs=[cb, w, Remember()])
    returned = 0
    for s in w.seen:
        for n, m in s['masks'].items():
            back = m & ~(s['was'][n] if s['was'] else torch.ones_like(m))
            returned += int(back.sum())
            if value == 'zero': assert (s['ws'][n][back] == 0).all()
            if value == 'dense': assert torch.equal(s['ws'][n][back], first[n][back])
    assert returned == cb.flips['returned'].sum() > 20
    assert not cb.store and not cb.born                               # nothing is kept after the landing

def test_dropped_value_is_that_of_the_last_day(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, schedule=gradual(n=6, end=.8), back=partial(fading, start=.4))
    learn.add_cb(cb); learn.create_opt()
    def step(t): before = copied(cb.weights()); cb.prune_at(t); cb.done += 1; return before
    gone, returned = {}, 0
    for i, t in enumerate(cb.schedule.progress[:-1]):
        with torch.no_grad():
            for n, w in cb.weights().items(): w.add_(.01*(i + 1)).mul_(cb.masks[n])          # training
        old, was = copied(cb.masks), step(t)
        for n, w in cb.weights().items():
            left, back, stay = old[n] & ~cb.masks[n], ~old[n] & cb.masks[n], old[n] & cb.masks[n]
            assert torch.equal(w[back], gone.get(n, w)[back]) and torch.equal(w[stay], was[n][stay]) and not w[~cb.masks[n]].any()
            gone[n] = torch.where(left, was[n], gone.get(n, was[n]))
            returned += int(back.sum())
    assert returned > 20

@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['sgd', 'adam', 'torch adamw'])
def test_optimizer_state_is_zero_on_both_moves(new_learner, opt):
    learn = new_learner(opt_func=opt)
    learn.fit(1, .05)
    cb = DropPruning(.8, schedule=gradual(n=8), back=partial(fading, start=.3))
    w = Watch(cb)
    learn.fit(2, .05, cbs=[cb, w])
    left = back = 0
    for s in w.seen[1:]:
        for n, m in s['masks'].items():
            moved = m ^ s['was'][n]
            left, back = left + int((moved & ~m).sum()), back + int((moved & m).sum())
            assert s['state'][n] and not any(v[moved].any() for v in s['state'][n]) and any(v[m & ~moved].any() for v in s['state'][n])
    assert left > 50 and back > 10

def test_flips_are_what_the_masks_did(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, schedule=gradual(n=9), back=partial(fading, start=.3))
    w = Watch(cb)
    learn.fit(3, .2, cbs=[cb, w])
    was, born, f = {n: torch.ones_like(m) for n, m in cb.masks.items()}, {n: torch.zeros_like(m, dtype=torch.long) for n, m in cb.masks.items()}, cb.flips
    assert len(f) == 9*3 and list(f['layer'][:3]) == list(cb.masks)
    for i, s in enumerate(w.seen):
        for j, (n, m) in enumerate(s['masks'].items()):
            row, back = f.iloc[3*i + j], m & ~was[n]
            assert (row['left'], row['returned'], row['kept']) == (int((was[n] & ~m).sum()), int(back.sum()), int(m.sum()))
            born[n][back] = i + 1
        was = s['masks']
    for i in range(9):
        for j, (n, m) in enumerate(was.items()): assert f.iloc[3*i + j]['stayed'] == int((m & (born[n] == i + 1)).sum())
    assert f['stayed'].sum() < f['returned'].sum() and cb.plot_flips() is not None
    assert list(f.groupby('step', sort=False)['kept'].sum()) == [round(N*(1 - x)) for x in cb.history['total']]

def test_sizes_follow_the_schedule_in_the_mean(new_learner):
    kept = []
    for seed in range(12):
        cb = DropPruning(.8, schedule=gradual(n=6), back=partial(fading, start=.2), seed=seed)
        new_learner().fit(1, .01, cbs=cb)
        kept.append(cb.history['total'].to_numpy())
    goals = .8*np.array(gradual(n=6).progress)
    f = flow(N, N*(1 - goals[:-1]), .5, [fading(t, .2) for t in gradual(n=6).progress[:-1]])
    assert np.abs(np.mean(kept, 0)[:-1] - goals[:-1]).max() < 4*f['sd'].max()/N/12**.5 + 1/N
    assert (np.std(kept, 0)[:-1] > 0).all() and np.std(kept, 0)[-1] < 1e-9
    cb = DropPruning(.8, schedule=gradual(n=6), back=partial(fading, start=.2), exact=True)
    new_learner().fit(1, .01, cbs=cb)
    assert np.abs(cb.history['total'] - goals).max() <= 1.5/N

def test_sparsity_may_fall_on_the_way(new_learner):
    cb = DropPruning(.9, schedule=Schedule([0, .2, .4, .6], [.5, .2, .8, 1]), back=.45, away=1)      # the schedule itself goes back up
    learn = new_learner()
    learn.fit(2, .1, cbs=cb)
    assert cb.history['total'].iloc[1] < cb.history['total'].iloc[0] and zeros(learn) == round(.9*N)

# guarantees

def new_cb(**kwargs): return DropPruning(.8, **{'schedule': gradual(n=10), 'back': partial(fading, start=.2), **kwargs})

def test_two_runs_agree_and_a_seed_matters(new_learner):
    res = []
    for seed in (1, 1, 2):
        learn, cb = new_learner(), new_cb(seed=seed)
        torch.manual_seed(len(res))                                   # the global state has no say
        learn.dls.train.rng.seed(7)
        learn.fit(1, .1, cbs=cb)
        res.append((copied(cb.masks), cb.flips))
    assert same(res[0][0], res[1][0]) and res[0][1].equals(res[1][1]) and not same(res[0][0], res[2][0])

@pytest.mark.parametrize('kwargs', [dict(away=1), dict(back=0)], ids=['back', 'away'])
def test_each_die_depends_on_the_seed_and_the_step(new_learner, kwargs):
    moves = []
    for seed in (1, 2):
        cb = new_cb(seed=seed, **kwargs)
        new_learner(cbs=cb)
        cb.prune_at(.5); cb.done += 1                                    # the same weights, the same schedule
        for _ in range(2): before = copied(cb.masks); cb.prune_at(.5); moves.append({n: before[n] ^ m for n, m in cb.masks.items()})
    assert not same(moves[0], moves[2]) and not same(moves[0], moves[1])

def test_lr_find_draws_nothing(new_learner):
    cb = new_cb()
    learn = new_learner(cbs=cb)
    learn.fit(1, .1)
    cb.done, cb.rows = 4, cb.rows[:4]                                 # in the middle of its schedule
    now = lambda: (copied(weights(learn.model)), copied(cb.masks), cb.draws, cb.done, len(cb.rows), len(cb.moves))
    a = now(); learn.lr_find(num_it=12, show_plot=False); b = now()
    assert same(a[0], b[0]) and same(a[1], b[1]) and a[2:] == b[2:]

def test_a_second_fit_only_holds(new_learner):
    learn, cb = new_learner(), new_cb()
    learn.fit(1, .1, cbs=cb)
    masks, flips = copied(cb.masks), cb.flips
    learn.fit(1, .1, cbs=cb); learn.fit(1, .1)
    assert zeros(learn) == round(.8*N) and same(masks, cb.holder.masks) and cb.flips.equals(flips)

def test_fine_tune_runs_the_schedule_once_over_the_unfrozen(new_learner):
    learn, cb = new_learner(splitter=lambda m: [list(m[:3].parameters()), list(m[3:].parameters())]), new_cb(schedule=gradual(n=4), away=.7)
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
    assert 0 < len(cb.history) < 10 and len(cb.moves) == 3*len(cb.history)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        learn.fit(2, .1, cbs=cb)
    assert count({n: ~m for n, m in cb.masks.items()}) == round(.8*N) and cb.finished

@pytest.mark.parametrize('how', ['export', 'deepcopy'])
def test_values_survive_in_the_middle_of_the_schedule(new_learner, how):
    cb = new_cb()
    learn = new_learner(cbs=cb)
    learn.logger = print
    try: learn.fit(3, .1, cbs=Break(7, KeyboardInterrupt))
    except KeyboardInterrupt: pass
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, Break)])
    assert cb.store and 0 < cb.done < 10 and not all(m.all() for m in cb.masks.values())
    if how == 'export': learn.export('m.pkl'); twin = load_learner(learn.path/'m.pkl', cpu=True)
    else:
        learn.pred = learn.loss = learn.loss_grad = None                  # fastai leaves these in the graph of the interrupted batch
        twin = copy.deepcopy(learn)
    other = next(c for c in twin.cbs if isinstance(c, DropPruning))
    assert other is not cb and same({n: v.cpu() for n, v in cb.store.items()}, {n: v.cpu() for n, v in other.store.items()})
    twin.dls = make_learner(device=next(twin.model.parameters()).device).dls
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        twin.fit(3, .1)
    assert other.finished and zeros(twin) == round(.8*N) and other.flips['returned'].sum() > cb.flips['returned'].sum()

def test_another_learner_starts_anew(new_learner):
    cb = new_cb()
    new_learner().fit(1, .1, cbs=cb)
    a, learn = cb.flips, new_learner()
    learn.fit(1, .1, cbs=cb)
    assert len(cb.flips) == len(a) == 3*len(cb.history) and zeros(learn) == round(.8*N)

def test_from_sparse_to_sparser(new_learner):
    learn = new_learner()
    learn.prune(.5)
    cb = DropPruning(.9, schedule=gradual(n=8))
    learn.fit(2, .1, cbs=cb)
    assert count({n: ~m for n, m in cb.masks.items()}) == round(.9*N) and abs(cb.history['total'].iloc[0] - .5 - .4*gradual(n=8).progress[0]) < .06
    with pytest.raises(ValueError, match='needs finalize'): learn.prune(DropPruning(.5))

def test_one_copy_of_the_weights(new_learner):
    for value, copies in (('dropped', 1), ('dense', 1), ('zero', 0)):
        learn, cb = new_learner(), new_cb(value=value)
        learn.add_cb(cb)
        cb.prune_at(.5)
        tensors = [t for d in cb.__dict__.values() if isinstance(d, dict) for t in d.values() if torch.is_tensor(t)]
        assert sum(t.numel()*t.element_size() for t in tensors) == N*(4*copies + 1)

def test_learn_prune_lands_at_once(new_learner):
    learn, other = new_learner(), new_learner()
    assert same(learn.prune(DropPruning(.9)).masks, other.prune(.9).masks)

def test_exclude_and_random_score(new_learner):
    learn = new_learner()
    cb = DropPruning(.8, exclude='0', score=random_score, schedule=gradual(n=5), away=.8)
    learn.fit(1, .1, cbs=cb)
    assert zeros(learn) == round(.8*240) and set(cb.flips['layer']) == {'3.weight', '5.weight'}

# errors

@pytest.mark.parametrize('make, message', [
    (lambda: DropPruning(.9, away=0), 'away is a probability'), (lambda: DropPruning(.9, away=1.1), 'away is a probability'), (lambda: DropPruning(.9, away=float('nan')), 'away is a probability'),
    (lambda: DropPruning(.9, back=1), 'back'), (lambda: DropPruning(.9, back=-.1), 'back'), (lambda: DropPruning(.9, back=lambda t: 2*t), 'at progress'), (lambda: DropPruning(.9, away=lambda t: 0), 'at progress'),
    (lambda: DropPruning(.9, value='old'), "'dropped', 'zero' or 'dense'"), (lambda: DropPruning(.9, pool='follow'), 'follow'), (lambda: DropPruning(None), 'give a sparsity'), (lambda: DropPruning(90), '0.9'),
    (lambda: DropPruning(.8, schedule=Schedule([0, .3, .6], [1, .5, 1])), 'at 1 in its last step only'),
    (lambda: DropPruning(.99, back=.05), 'step .* cannot go from .* unimportant'), (lambda: DropPruning(.99, schedule=steps(3)), 'more and smaller steps'),
    (lambda: DropPruning(.5, back=0, pool=partial(fraction, rho=.5)), 'the target is 50.00%')])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message): make()

def test_what_cannot_be_reached_from_here_is_refused_before_anything_moves(new_learner):
    learn = new_learner()
    learn.prune(.89)
    before, cb = copied(weights(learn.model)), DropPruning(.9, back=.15, away=.9, schedule=Schedule([0, .5], [.01, 1]))     # from dense it can be reached
    with pytest.raises(ValueError, match='cannot go from'): learn.fit(1, .1, cbs=cb)
    assert same(before, weights(learn.model)) and not cb.rows

def test_a_model_without_weights(new_learner):
    learn = new_learner(model=nn.Sequential(nn.Flatten(), nn.LayerNorm(12)))
    with pytest.raises(ValueError, match='no prunable weight'): learn.prune(DropPruning(.5))
