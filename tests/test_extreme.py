"`prunelab.extreme`: blocks, the three rules, distributions found or borrowed, the callback without a target"
import copy
import warnings
from functools import partial
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
import fastai.callback.schedule     # gives Learner lr_find, fine_tune
from fastai.learner import load_learner
from torch import nn
from prunelab.callbacks import PruneCB
from prunelab.core import generator, seeded, weights
from prunelab.extreme import ExtremeValuePruning, blocks, extreme_masks, fit_layers, layerwise, retention
from prunelab.masks import sparsity
from prunelab.drop import DropPruning
from prunelab.schedules import Schedule, gradual, one_shot, steps
from prunelab.tails import GPD, fit_gev, fit_gpd, fit_gumbel, ks
from .conftest import make_learner

def zeros(learn): return sum(int((w == 0).sum()) for w in weights(learn.model).values())
def masked(cb): return sum(int((~m).sum()) for m in cb.masks.values())
def copied(d): return {n: v.detach().clone() for n, v in d.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def randn(*size, seed=0): return torch.randn(*size, generator=generator(seed, 'cpu'), device='cpu')
def rand(*size, seed=0): return torch.rand(*size, generator=generator(seed, 'cpu'), device='cpu')

# blocks

def test_blocks_are_kernels_or_neighbours_of_one_unit():
    w = torch.arange(2*3*3*3.).view(2, 3, 3, 3)
    # a kernel, whatever b
    assert torch.equal(blocks(w), w.view(6, 9)) and torch.equal(blocks(w, 4), w.view(6, 9))
    assert torch.equal(blocks(w.to(memory_format=torch.channels_last)), w.view(6, 9))
    assert blocks(torch.zeros(4, 3, 5, 5)).shape == (12, 25)
    assert blocks(torch.zeros(4, 3, 7)).shape == (12, 7)
    assert blocks(torch.zeros(4, 1, 2, 2, 2)).shape == (4, 8)
    # 27 = 6*4 + 3: the last three of each unit are left out
    assert blocks(w, 4, kernel=False)[:7].flatten().tolist() == [*range(24), *range(27, 31)]
    v = torch.arange(20.).view(2, 10)
    first, second = [[0, 1, 2], [3, 4, 5], [6, 7, 8]], [[10, 11, 12], [13, 14, 15], [16, 17, 18]]
    assert blocks(v, 3).tolist() == first + second
    assert torch.equal(blocks(v.view(2, 10, 1, 1), 3), blocks(v, 3)) and blocks(v, 11).shape == (0, 11)
    assert blocks(v, 10).shape == (2, 10)

def test_blocks_leave_the_gradient_alone():
    w = nn.Parameter(randn(4, 9))
    assert not blocks(w).requires_grad

@pytest.mark.parametrize('b', [0, -1, 2.5, True, '9', None])
def test_bad_block_sizes(b):
    with pytest.raises(ValueError, match='at least 1'): blocks(torch.zeros(2, 9), b)
    with pytest.raises(ValueError, match='at least 1'): ExtremeValuePruning(b=b)

# masks

def test_thresholds_are_inclusive_above_and_cut_below():
    q = {'w': torch.tensor([0., .1, .3, .5, .9, 1.])}
    assert extreme_masks(q, .5, .5)['w'].tolist() == [False]*3 + [True]*3
    ms = torch.stack([extreme_masks(q, .3, .9, i)['w'] for i in range(400)]).float().mean(0)
    assert ms[:2].tolist() == [0, 0] and ms[4:].tolist() == [1, 1] and abs(ms[2] - .3) < .08
    assert abs(ms[3] - .5) < .08
    ms = torch.stack([extreme_masks(q, gen=i)['w'] for i in range(400)]).float().mean(0)
    assert ms[0] == 0 and ms[5] == 1 and (ms - q['w']).abs().max() < .08

@pytest.mark.parametrize('b', [4, 9, 25])
def test_the_arithmetic_of_independent_weights(b, device):
    F = rand(400_000, seed=(1, b)).to(device)
    q, kept = {'w': F**b}, lambda *t, gen=0: 1 - sparsity(extreme_masks(q, *t, gen=gen))
    assert abs(kept(0., 1.) - 1/(b + 1)) < 2e-3
    for tau in (.2, np.exp(-1), .8): assert abs(kept(tau, tau) - (1 - tau**(1/b))) < 2e-3
    for lo, hi in ((.1, .9), (.3, .6), (0., .5)):
        between = (hi**(1 + 1/b) - lo**(1 + 1/b))/(b + 1)
        assert abs(kept(lo, hi) - (1 - hi**(1/b) + between)) < 2e-3
    one, two = (extreme_masks(q, gen=(7, i))['w'] for i in (1, 2))
    assert abs((one & two).sum()/one.sum() - (b + 1)/(2*b + 1)) < .01

def test_a_layer_keeps_its_likeliest_weight(device):
    q = {'a': torch.tensor([[.1, .3], [.2, .0]], device=device), 'b': torch.tensor([.9, .8], device=device),
         'c': torch.zeros(3, device=device)}
    m = extreme_masks(q, .5, .5)
    assert m['a'].tolist() == [[False, True], [False, False]] and m['b'].all()
    assert m['c'].tolist() == [True, False, False]
    held = {'a': torch.tensor([[True, False], [True, True]], device=device),
            'b': torch.tensor([False, True], device=device),
            'c': torch.zeros(3, dtype=torch.bool, device=device)}
    m = extreme_masks(q, .5, .5, held=held)
    # nothing masked returns, not even then
    assert m['a'].tolist() == [[False, False], [True, False]] and m['b'].tolist() == [False, True]
    assert not m['c'].any()

def test_masks_are_pure_and_depend_on_the_seed():
    q = {'w': rand(50, 40)}
    before, state = copied(q), torch.random.get_rng_state()
    a = extreme_masks(q, gen=3)
    assert same(a, extreme_masks(q, gen=3)) and not same(a, extreme_masks(q, gen=4)) and same(q, before)
    assert torch.equal(state, torch.random.get_rng_state())

@pytest.mark.parametrize('low, high', [(.9, .1), (-.1, .5), (.5, 1.1), (float('nan'), 1.)])
def test_bad_thresholds(low, high):
    for f in (partial(extreme_masks, {'w': rand(3)}), ExtremeValuePruning):
        with pytest.raises(ValueError, match='0 <= low <= high <= 1'): f(low=low, high=high)

# laws

def test_independent_weights_keep_one_in_b_plus_one(device):
    for b in (4, 9):
        for w in (randn(300, 36*5), randn(300, 36*5).exp()):
            assert abs(retention({'w': w.to(device)}, b=b)['w'].mean() - 1/(b + 1)) < .006
    # a law of all weights keeps half
    assert abs(retention({'w': randn(200, 180).to(device)}, b=1)['w'].mean() - .5) < .01
    # a kernel of 25
    assert abs(retention({'w': randn(60, 10, 5, 5).to(device)})['w'].mean() - 1/26) < .004

def test_scales_of_kernels_lower_the_sparsity_and_shuffling_removes_it():
    found = []
    for sd in (0, .5, 1, 1.5):
        w = randn(20_000, 1, 3, 3)*(sd*randn(20_000, 1, 1, 1, seed=1)).exp()
        found.append(1 - retention({'w': w})['w'].mean().item())
        mixed = w.flatten()[torch.randperm(w.numel(), generator=generator(2, 'cpu'))].view_as(w)
        assert abs(1 - retention({'w': mixed})['w'].mean().item() - .9) < .015
    assert np.abs(np.array(found) - [.90, .83, .74, .68]).max() < .02

def test_peaks_keep_half_of_what_is_above():
    w = randn(100, 400)
    for above in (.05, .2):
        q = retention({'w': w}, above=above)['w']
        assert int((q > 0).sum()) == round(above*40_000) and abs(q.mean() - above/2) < .003
        assert (w.abs()[q > 0].min() > w.abs()[q == 0].max())
    f = fit_layers({'w': w}, above=.05)['w']
    assert isinstance(f.distribution, GPD) and f.n == 2000
    x = w.abs().flatten()
    direct = fit_gpd(x, f.distribution.threshold)
    assert abs(f.distribution.rate - direct.rate) < 1e-4
    assert abs(f.distribution.return_level(1000) - direct.return_level(1000)) < 1e-3
    assert abs(f.D - ks(x[x > f.distribution.threshold], f.distribution)[0]) < 1e-9

def test_as_many_peaks_as_least_and_no_fewer():
    ws = {'a': randn(30, 10), 'b': randn(60, 100)}
    assert [fit_layers(ws, above=.1, least=k)['a'].how for k in (30, 31)] == ['own', 'dense']
    assert fit_layers(ws, above=.1, least=31)['a'].n == 30
    f = fit_layers(ws, above=.1, least=31, small='pooled')['a']
    y = ws['a'].abs().flatten()/f.unit
    y = y[y > f.distribution.threshold]
    assert f.how == 'pooled' and f.n == len(y) and abs(f.D - ks(y, f.distribution)[0]) < 1e-9

def test_fitted_is_what_tails_says():
    w = randn(100, 90)
    f, x = fit_layers({'w': w})['w'], w.view(-1, 9).abs().amax(-1)
    law = fit_gev(x)
    assert f.how == 'own' and f.n == 1000 and f.unit == 1 and abs(f.distribution.xi - law.xi) < 1e-9
    assert abs(f.D - ks(x, law)[0].item()) < 1e-9
    assert torch.equal(f.q(w), law.cdf(w.abs()))
    assert fit_layers({'w': w}, fit=fit_gumbel)['w'].distribution.xi == 0

def test_blocks_of_zeros_have_no_say():
    w = randn(100, 90)
    z = torch.cat([w, torch.zeros(50, 90)])
    a, b = fit_layers({'w': w})['w'], fit_layers({'w': z})['w']
    assert a.n == b.n and abs(a.distribution.mu - b.distribution.mu) < 1e-12
    assert (retention({'w': z})['w'][100:] < .01).all()

@pytest.mark.parametrize('small', ['dense', 'pooled'])
def test_a_small_layer_is_dense_or_borrows(small, device):
    ws = {'big': randn(100, 90).to(device), 'wide': 50*randn(100, 90, seed=1).to(device),
          'few': 7*randn(20, 10, seed=2).to(device), 'none': 3*randn(40, 5, seed=3).to(device),
          'zero': torch.zeros(9, 9, device=device)}
    fits, q = fit_layers(ws, small=small), retention(ws, small=small)
    assert [f.how for f in fits.values()] == ['own', 'own'] + [small]*2 + ['dense']
    assert [f.n for f in fits.values()] == [1000, 1000, 20, 0, 0]
    assert all(v.shape == ws[n].shape and v.device == ws[n].device for n, v in q.items())
    for n in ('few', 'none'):                           # its scale is its own
        assert (q[n] == 1).all() if small == 'dense' else .04 < q[n].mean() < .2
    if small == 'pooled':
        assert np.isnan(fits['none'].D) and 0 < fits['few'].D < .5
        assert abs(fits['few'].unit - 7) < 1
    assert same(q, retention({n: w.clone() for n, w in ws.items()}, small=small))

def test_constant_layers_have_no_law():
    q = retention({'w': randn(100, 90), 'ones': torch.ones(100, 90)})
    assert (q['ones'] == 1).all()

def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match=r"\['b'\] have NaN"):
        retention({'a': randn(100, 90), 'b': torch.full((100, 90), torch.nan)})
    with pytest.raises(ValueError, match=r"no layer has 30 blocks.*'a': '10 extremes, fewer than 30'"):
        retention({'a': randn(10, 9)}, small='pooled')
    with pytest.raises(ValueError, match='constant'): retention({'a': torch.ones(100, 90)})

def test_half_precision():
    w = randn(200, 90)
    assert (retention({'w': w.half()})['w'] - retention({'w': w})['w']).abs().max() < .01

# the allocation

def test_layerwise_is_exact_and_scales():
    scores = {'a.weight': rand(10, 33), 'b.weight': rand(77), 'c': rand(50), 'd.weight': rand(40)}
    given = {'a': 300/330, 'b.weight': 7/77, 'c': .5}
    total = (300 + 7 + 25)/497
    assert [int((~m).sum()) for m in layerwise(scores, total, given).values()] == [300, 7, 25, 0]
    half = [int((~m).sum()) for m in layerwise(scores, total/2, given).values()]
    assert sum(half) == 166 and np.abs(np.array(half) - [150, 3.5, 12.5, 0]).max() <= .5
    assert not any((~m).any() for m in layerwise(scores, 0., given).values())
    m = layerwise(scores, total, given)['a.weight']
    assert scores['a.weight'][m].min() > scores['a.weight'][~m].max()
    with pytest.raises(ValueError, match=r"names \['x'\]"): layerwise(scores, .1, {'x': .5})
    beyond = [int(m.sum()) for m in layerwise(scores, .9, given).values()]
    # what is kept shrinks alike
    assert sum(beyond) == 50 and np.abs(np.array(beyond) - np.array([30, 70, 25, 40])*50/165).max() < 1
    with pytest.raises(ValueError, match='below 1'):
        layerwise(scores, .3, {'a': 1.5, 'b': 1., 'c': 1., 'd': 1.})

def test_layerwise_counts_halves_like_all_others():
    for sizes, gone in (((84, 35, 20), (51, 21, 7)), ((37, 16, 19), (11, 6, 5))):
        scores = {k: rand(m, seed=m) for k, m in zip('abc', sizes)}
        for p in (.5*sum(gone)/sum(sizes), (sum(gone) + .5)/sum(sizes), *(np.arange(1, 20) + .5)/sum(sizes)):
            m = layerwise(scores, p, {k: g/n for k, g, n in zip('abc', gone, sizes)})
            assert sum(int((~v).sum()) for v in m.values()) == round(p*sum(sizes))

def test_layerwise_brings_no_masked_weight_back(new_learner):
    learn = new_learner()
    with torch.no_grad(): weights(learn.model)['0.weight'].mul_(1e-3)
    held = copied(learn.prune(.5).masks)
    assert not held['0.weight'].any()
    masks = learn.prune(.75, allocation=partial(layerwise, fractions={'0': .6, '3': .9, '5': .9})).masks
    assert not masks['0.weight'].any() and zeros(learn) == 360

def test_drop_pruning_with_the_shares_of_another(new_learner):
    given, p = {'0': .8, '3': .8, '5': .5}, (240*.8 + 200*.8 + 40*.5)/480
    learn, by_layer = new_learner(), partial(layerwise, fractions=given)
    cb = DropPruning(p, allocation=by_layer, schedule=gradual(n=6, end=1.))
    learn.fit(1, .05, cbs=cb)
    assert zeros(learn) == 372 and abs(1 - int(cb.masks['5.weight'].sum())/40 - .5) < .1

def net():
    return nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.BatchNorm1d(60), nn.Linear(60, 30), nn.ReLU(),
                         nn.Linear(30, 4))

N = 12*60 + 60*30 + 30*4
@pytest.fixture
def new(new_learner): return lambda **kwargs: new_learner(model=built(), **kwargs)
def built():
    with seeded(1): return net()
def new_cb(**kwargs): return ExtremeValuePruning(**{'b': 6, **kwargs})

def test_found_sparsities_carry_over_exactly(new):
    cb = new().prune(new_cb(small='pooled'))
    d = cb.layer_sparsities()
    assert list(d) == ['0', '3', '5']
    assert all(round(d[n.split('.')[0]]*m.numel()) == int((~m).sum()) for n, m in cb.masks.items())
    for given in ({}, {'schedule': steps(3, end=.8)}):
        learn, p = new(), sparsity(cb.masks)
        other = PruneCB(p, allocation=partial(layerwise, fractions=d), **given)
        learn.fit(1, .01, cbs=other)
        for n, m in cb.masks.items(): assert other.masks[n].sum() == m.sum()

def test_names_of_weights_that_share_a_module(new_learner):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.LSTM(12, 20, batch_first=True), nn.Linear(20, 4)
        def forward(self, x): return self.out(self.rnn(x[:, None])[0][:, -1])
    with seeded(0): model = Net()
    cb = new_learner(model=model).prune(new_cb())
    assert set(cb.layer_sparsities()) == {'rnn.weight_ih_l0', 'rnn.weight_hh_l0', 'out'}

# the callback

def test_one_shot_finds_its_sparsity_and_holds_it(new):
    learn, cb = new(), new_cb()
    learn.fit(1, .05, cbs=cb)
    t, first = cb.table(), masked(cb)
    assert list(t['fit']) == ['own', 'own', 'dense'] and list(t['n']) == [120, 300, 20]
    assert t['kept'].sum() == N - masked(cb) and len(cb.history) == 1
    assert zeros(learn) == masked(cb) and abs(t['sparsity'].iloc[1] - 6/7) < .05
    assert t['sparsity'].iloc[2] == 0 and t['KS'].iloc[:2].between(.001, .2).all()
    learn.fit(1, .05, cbs=cb)
    learn.fit(1, .05)
    assert zeros(learn) == masked(cb) == first and cb.table().equals(t)

def test_found_once_even_if_the_schedule_goes_on(new):
    found = []
    for schedule in (one_shot(), Schedule([0, .5], [1, 1]), gradual(n=6, end=1., power=24)):
        learn, cb = new(), new_cb(low=.5, high=.5, schedule=schedule)
        learn.fit(1, 0., cbs=cb)
        found.append(masked(cb))
    assert found[0] == found[1] == found[2] > 0

def test_a_layer_without_inputs_is_in_nobodys_way():
    assert extreme_masks({'none': torch.zeros(7, 0), 'w': rand(20, 9)})['none'].shape == (7, 0)

def test_the_table_of_a_borrowed_law(new):
    learn = new()
    with torch.no_grad(): [*weights(learn.model).values()][2].mul_(100)
    cb = new_cb(small='pooled')
    t = learn.prune(cb).table()
    x, f = t.iloc[2], [*cb.fits.values()][2]
    # in units of the weights
    assert x['mu'] == f.distribution.mu.item()*f.unit
    assert x['scale'] == f.distribution.scale.item()*f.unit and f.unit > 2
    assert x['fit'] == 'pooled' and x['n'] == 20 and x['mu'] > 0 and 0 < x['KS'] < 1 and 0 < x['sparsity'] < 1
    with pytest.raises(ValueError, match='nothing was pruned'): new_cb().table()

def test_without_coins_it_is_the_law_of_the_dense_weights(new):
    learn = new()
    ws = copied(weights(learn.model))
    cb = learn.prune(new_cb(low=.5, high=.5))
    assert same(cb.masks, {n: q >= .5 for n, q in retention(ws, b=6).items()})

def test_every_layer_keeps_a_weight(new):
    cb = new().prune(new_cb(low=1., high=1., small='pooled'))
    assert all(int(m.sum()) == 1 for m in cb.masks.values())

class Grow(Callback):
    "Masks after every batch"
    order = 70
    def __init__(self, cb): self.cb, self.seen = cb, []
    def after_batch(self):
        if self.training: self.seen.append((copied(self.cb.masks), copied(self.cb.weights())))

@pytest.mark.parametrize('low, high', [(0., 1.), (.1, .9), (.5, .5)])
def test_on_a_schedule_masks_only_shrink_and_blocks_grow(new, low, high):
    learn, cb = new(), new_cb(schedule=steps(4, end=.75), low=low, high=high, exclude='5')
    watch = Grow(cb)
    learn.fit(2, 1e-4, cbs=[cb, watch])         # weights hardly move, so the end is that of one shot
    for (a, _), (b, ws) in zip(watch.seen, watch.seen[1:]):
        assert all(not (b[n] & ~a[n]).any() and not ws[n][~b[n]].any() for n in a)
    once = new().prune(new_cb(low=low, high=high, exclude='5'))
    assert len(cb.history) == 4 and cb.finished and not cb.store
    assert sum(int((m ^ once.masks[n]).sum()) for n, m in cb.masks.items()) < .01*N
    if (low, high) == (0., 1.):
        by_formula = [1 - 1/(1 + 6*t) for t in (.25, .5, .75, 1)]
        assert np.abs(cb.history['total'] - by_formula).max() < .05

def test_a_masked_weight_counts_with_its_last_value(new):
    learn, cb = new(), new_cb(schedule=steps(2), exclude='5')
    learn.add_cb(cb)
    before = copied(weights(learn.model))
    cb.prune_at(.5)
    cb.done = 1
    cb.prune_at(.9)
    assert all(torch.equal(cb.store[n], before[n]) for n in cb.names) and cb.fits['3.weight'].n == 300
    with torch.no_grad():
        for n, w in cb.weights().items(): w.mul_(2)
    cb.prune_at(.95)
    for n, w in copied(cb.weights()).items():
        assert torch.equal(cb.store[n], torch.where(w != 0, w, cb.store[n]))

def test_two_runs_agree_and_the_seed_matters(new):
    res = []
    for seed in (1, 1, 2):
        learn, cb = new(), new_cb(seed=seed, schedule=steps(3))
        torch.manual_seed(len(res))
        learn.dls.train.rng.seed(7)
        state = torch.random.get_rng_state()
        learn.prune(cb)
        assert torch.equal(state, torch.random.get_rng_state())
        res.append(copied(cb.masks))
    assert same(res[0], res[1]) and not same(res[0], res[2])

def test_lr_find_changes_nothing(new):
    cb = new_cb(schedule=steps(4))
    learn = new(cbs=cb)
    class Stop(Callback):
        order = 90
        def after_batch(self):
            if self.training and len(cb.rows) == 2: raise KeyboardInterrupt
    try: learn.fit(2, .05, cbs=Stop())
    except KeyboardInterrupt: pass
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, Stop)])
    def now():
        tensors = copied(weights(learn.model)), copied(cb.masks), copied(cb.store)
        return *tensors, cb.done, len(cb.rows), cb.table()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        a = now()
        learn.lr_find(num_it=8, show_plot=False)
        b = now()
        assert all(same(x, y) for x, y in zip(a[:3], b[:3])) and a[3:5] == b[3:5] and a[5].equals(b[5])
        assert a[3] == 2
        learn.fit(2, .05)                                                # and the next fit goes on to the end
    assert cb.finished and zeros(learn) == masked(cb)

@pytest.mark.parametrize('how', ['export', 'deepcopy'])
def test_the_middle_of_a_schedule_travels(new, how):
    cb = new_cb(schedule=steps(4))
    learn = new(cbs=cb)
    learn.logger = print
    learn.create_opt()
    cb.prune_at(.25)
    cb.done = 1
    if how == 'export':
        learn.export('m.pkl')
        twin = load_learner(learn.path/'m.pkl', cpu=True)
    else: twin = copy.deepcopy(learn)
    other = next(c for c in twin.cbs if isinstance(c, ExtremeValuePruning))
    cpu = lambda d: {n: v.cpu() for n, v in d.items()}
    assert other is not cb and same(cpu(cb.store), cpu(other.store)) and other.table().equals(cb.table())
    twin.dls = make_learner(device=next(twin.model.parameters()).device).dls
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        twin.fit(1, .05)
    assert other.finished and zeros(twin) == masked(other) > masked(cb)

def test_fine_tune_finds_once_over_the_unfrozen(new):
    learn, cb = new(splitter=lambda m: [list(m[:3].parameters()), list(m[3:].parameters())]), new_cb()
    learn.fine_tune(1, .01, freeze_epochs=1, cbs=cb)
    assert len(cb.history) == 1 and zeros(learn) == masked(cb) > 0

def test_save_model_never_restores_a_dense_epoch(new):
    learn, cb = new(), new_cb(schedule=steps(2, start=.5, end=.7))
    learn.fit(4, .2, cbs=[cb, SaveModelCallback(monitor='valid_loss')])
    assert zeros(learn) == masked(cb) > .5*N

def test_looking_is_not_pruning(new):
    cb = new_cb()
    learn = new(cbs=cb)
    learn.validate()
    learn.get_preds()
    assert not cb.rows and zeros(learn) == 0

def test_found_once_until_finalize(new):
    learn = new()
    cb = learn.prune(new_cb())
    was = copied(cb.masks)
    learn.prune(cb)
    assert same(was, cb.masks)
    cb.finalize()
    assert not any(isinstance(c, ExtremeValuePruning) for c in learn.cbs)
    assert zeros(learn) == sum(int((~m).sum()) for m in was.values())

def test_another_pruner_before_and_excluded_layers(new):
    learn = new()
    first = learn.prune(.5)
    was = copied(first.masks)
    cb = learn.prune(new_cb(exclude='3'))
    assert set(cb.table().index) == {'0.weight', '5.weight'}
    assert not any((m & ~was[n]).any() for n, m in cb.masks.items())
    assert torch.equal(cb.holder.masks['3.weight'], was['3.weight'])

def test_another_learner_starts_anew(new):
    cb = new_cb(schedule=steps(3, end=.5))
    new().fit(1, .05, cbs=cb)
    learn, was = new(), masked(cb)
    learn.fit(1, .05, cbs=cb)
    assert len(cb.history) == 3 and masked(cb) == was and zeros(learn) == was

@pytest.mark.parametrize('kwargs, message', [
    (dict(sparsity=.9), 'cannot be given'),
    (dict(score=abs), 'cannot be given'),
    (dict(allocation=abs), 'cannot be given'),
    (dict(fit='gev'), 'fit_gumbel'),
    (dict(above=1.), 'share'),
    (dict(above=0.), 'share'),
    (dict(small='drop'), "'dense' or takes the 'pooled'"),
    (dict(least=5), 'at least 10'),
    (dict(seed=-1), 'seed'),
    (dict(schedule=.5), 'schedule')])
def test_errors_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message): ExtremeValuePruning(**kwargs)

def test_a_network_too_small_for_any_law_is_refused_before_anything_moves(new_learner):
    learn = new_learner()
    before, cb = copied(weights(learn.model)), ExtremeValuePruning(least=50)
    with pytest.raises(ValueError, match='no layer has 50 blocks'): learn.prune(cb)
    assert same(before, weights(learn.model)) and not cb.rows
    with pytest.raises(ValueError, match='matches none'): learn.prune(ExtremeValuePruning(exclude='head'))

# other libraries

def test_fasterai_takes_the_found_sparsities_as_they_stand(tmp_path, capsys):
    "It cuts at an interpolated quantile, so one weight fewer than asked may go"
    from fasterai.core.criteria import large_final
    from fasterai.core.schedule import one_shot
    from fasterai.sparse.sparsify_callback import SparsifyCallback
    cb = ExtremeValuePruning(4, small='pooled')
    make_learner(tmp_path).prune(cb)
    learn = make_learner(tmp_path)
    given = cb.layer_sparsities(), 'weight', 'local', large_final, one_shot
    learn.fit(1, cbs=SparsifyCallback(*given, layer_type=nn.Linear))
    gone = {n: int((~m).sum()) for n, m in cb.masks.items()}
    # three layers, three fractions
    assert len({g/m.numel() for g, m in zip(gone.values(), cb.masks.values())}) == 3
    for n, w in weights(learn.model).items(): assert gone[n] - 1 <= int((w == 0).sum()) <= gone[n]

def test_the_unit_of_a_pooled_layer_is_the_root_mean_square_of_its_nonzero_weights():
    "Zeros have no say: a layer of which half is masked has the unit, and the law, of the other half"
    few = randn(10, 9)
    half = few.clone()
    half[:, ::2] = 0
    fits = fit_layers({'much': randn(50, 90), 'few': 3*few, 'half': half}, small='pooled')
    assert [fits[n].how for n in fits] == ['own', 'pooled', 'pooled']
    for n, w in (('few', 3*few), ('half', half[half != 0])):
        assert fits[n].unit == pytest.approx(w.square().mean().sqrt().item())
    at_unit = [fits[n].q(torch.tensor([fits[n].unit])) for n in ('few', 'half')]
    assert torch.equal(*at_unit)
