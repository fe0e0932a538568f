"Arms of a comparison: what a description says is what happens, and nothing else differs between two arms."
from functools import partial
import pytest, torch
from fastai.callback.schedule import ParamScheduler, SchedCos
from prunelab.callbacks import PruneCB
from prunelab.allocation import erk, global_, uniform
from prunelab.core import weights
from prunelab.drop import DropPruning, fading
from prunelab.extreme import ExtremeValuePruning
from prunelab.lab import arms
from prunelab.lab.answers import unpack
from prunelab.stochastic import threshold
from prunelab.lab.training import Recipe, TimeUp, dense, fit, learner
from prunelab.masks import sparsity
from prunelab.schedules import gradual, one_shot
from prunelab.scores import lamp_score, magnitude, random_score
from prunelab.stochastic import StochasticPruning, median

TINY = Recipe('lenet5', 'digits', epochs=2, lr=.02, bs=32, valid=200, n_train=256, size=16)
GRADUAL = {'start': 0., 'end': .6, 'steps': 5, 'power': 3.}
DROP = {'method': 'drop', 'away': .9, 'back': .1, 'back to': .02, 'value': 'dense', 'pool': 'follow',
        'exact': True, 'score': 'magnitude', 'allocation': 'uniform', 'schedule': GRADUAL}
REGROW = {'method': 'regrow', 'grow': .1, 'grow to': 0., 'schedule': GRADUAL}
NOISE = {'method': 'noise', 'sigma': .1, 'unit': 'threshold', 'kind': 'add', 'members': 3, 'choose': 'median',
         'score': 'magnitude', 'allocation': 'ERK'}
RULE = {'method': 'extreme', 'b': 9, 'kernel': False, 'low': .2, 'high': .8, 'law': 'Gumbel',
        'small': 'pooled', 'least': 60}
GEV = {**RULE, 'law': 'GEV', 'small': 'dense', 'low': .1, 'high': .9, 'least': 60}

def once(score, allocation='global'):
    return {'method': 'score', 'score': score, 'allocation': allocation, 'schedule': 'once'}

@pytest.fixture(scope='module')
def net(tmp_path_factory): return dense(TINY, 0, tmp_path_factory.mktemp('cache'), 'cpu')

@pytest.fixture
def ws(net): return weights(net.learn.model)

# Descriptions

@pytest.mark.parametrize('spec', [DROP, REGROW, NOISE, RULE, once('LAMP')], ids=lambda s: s['method'])
def test_every_key_of_a_description_is_read_and_needed(spec, ws):
    arms.make_pruner(spec, .5, ws, 0)
    with pytest.raises(ValueError, match='nobody reads.*bakc'):
        arms.make_pruner({**spec, 'bakc': .1}, .5, ws, 0)
    for k in spec.keys() - {'method'}:
        with pytest.raises(ValueError, match=f'{k}.*missing'):
            arms.make_pruner({n: v for n, v in spec.items() if n != k}, .5, ws, 0)

@pytest.mark.parametrize('spec, what', [
    (once('LAMB'), "'LAMB'.*'LAMP'"), ({**RULE, 'law': 'x'}, 'law.*GEV'),
    ({**NOISE, 'choose': 'x'}, 'choice.*median'),
    ({**DROP, 'pool': 'x'}, 'pool.*follow'), ({**DROP, 'allocation': 'x'}, 'allocation.*ERK')])
def test_an_unknown_name_says_which_there_are(ws, spec, what):
    with pytest.raises(ValueError, match=what): arms.make_pruner(spec, .5, ws, 0)

def test_an_unknown_method_names_those_there_are(ws):
    with pytest.raises(ValueError, match="no method 'dorp'.*'drop'"):
        arms.make_pruner({'method': 'dorp'}, .5, ws, 0)

def test_schedules():
    assert arms.make_schedule('once') == one_shot() and arms.make_schedule(GRADUAL) == gradual(0, .6, 5, 3)

def test_a_line_from_its_first_value_to_its_last():
    assert [arms.line(.3, .1, t) for t in (0, .25, 1)] == pytest.approx([.3, .25, .1])
    assert all(arms.line(.1, 0., t) == fading(t) for t in (0, .3, .875, 1))

def test_a_score_and_an_allocation(ws):
    for score, f in (('magnitude', magnitude), ('LAMP', lamp_score), ('random', random_score)):
        for allocation, g in (('global', global_), ('uniform', uniform), ('ERK', erk)):
            cb = arms.make_pruner(once(score, allocation), .7, ws, 5, ['fc2'])
            assert type(cb) is PruneCB and (cb.target, cb.score, cb.allocation) == (.7, f, g)
            assert (cb.seed, cb.exclude, cb.schedule) == (5, ('fc2',), one_shot())

def test_drop_pruning_away_and_back(ws):
    cb = arms.make_pruner(DROP, .9, ws, 3, ['fc2'])
    assert type(cb) is DropPruning
    assert cb.probabilities(0) == (.9, .1) and cb.probabilities(.5) == (.9, pytest.approx(.06))
    assert (cb.target, cb.value, cb.exact, cb.score, cb.allocation) == (.9, 'dense', True, magnitude, uniform)
    assert (cb.seed, cb.exclude, cb.schedule) == (3, ('fc2',), gradual(0, .6, 5, 3))

def test_drop_pruning_without_return(ws):
    assert arms.make_pruner({**DROP, 'back': 0., 'back to': 0.}, .9, ws, 3).probabilities(.4) == (.9, 0)

def test_regrowth(ws):
    cb = arms.make_pruner(REGROW, .9, ws, 3, ['fc2'])
    assert type(cb) is arms.Regrow and cb.grow(0) == .1 and cb.grow(.5) == .05 and cb.grow(1) == 0
    assert (cb.target, cb.seed, cb.exclude, cb.schedule) == (.9, 3, ('fc2',), gradual(0, .6, 5, 3))

def test_noise_in_units_of_the_threshold(ws):
    cb = arms.make_pruner(NOISE, .8, ws, 3, ['fc2'])
    assert type(cb) is StochasticPruning and (cb.sigma, cb.unit) == (.1, 'threshold')
    assert (cb.target, cb.n, cb.select, cb.kind, cb.allocation, cb.seed) == (.8, 3, median, 'add', erk, 3)
    assert arms.make_pruner({**NOISE, 'unit': None, 'kind': 'mul'}, .8, ws, 3).unit is None
    with pytest.raises(ValueError, match="'threshold'"):
        arms.make_pruner({**NOISE, 'unit': 'tau'}, .8, ws, 3)

def test_the_extreme_value_rule(ws):
    cb = arms.make_pruner(RULE, .8, ws, 3, ['fc2'])
    assert type(cb) is ExtremeValuePruning and cb.target is None and (cb.low, cb.high) == (.2, .8)
    assert cb.how == dict(b=9, kernel=False, fit=arms.fit_gumbel, above=None, small='pooled', least=60)
    assert (cb.seed, cb.exclude) == (3, ('fc2',))

# What extremes find

@pytest.mark.parametrize('spec', [RULE, GEV], ids=['pooled', 'dense'])
def test_what_is_found_is_what_the_callback_keeps(net, ws, spec):
    cb = net.again().prune(arms.make_pruner(spec, None, ws, 7))
    fits, masks = arms.extreme_found(spec, ws, 7)
    assert all(torch.equal(m, cb.masks[n]) for n, m in masks.items()) and masks.keys() == cb.masks.keys()
    assert {f.how for f in fits.values()} == {'own', spec['small']}
    assert arms.target_sparsity(spec, ws, 7) == sparsity(cb.masks) != arms.target_sparsity(spec, ws, 8)
    assert arms.target_sparsity(.3, ws, 7) == .3

def test_shuffling_moves_the_weights_of_one_layer(ws):
    w = ws['fc1.weight']
    one, other = arms.shuffle(w, ('s', 0, 0)), arms.shuffle(w, ('s', 0, 1))
    assert one.shape == w.shape
    assert torch.equal(one.flatten().sort().values, w.detach().flatten().sort().values)
    assert not torch.equal(one, w) and not torch.equal(one, other)

def test_shuffled_blocks_find_what_the_block_size_says():
    "Units of many scales, in blocks of nine: shuffled, and kept with probability q, one weight in ten stays"
    gen = torch.Generator('cpu').manual_seed(0)
    scales = torch.logspace(-1, 1, 300, device='cpu')[:, None]
    some = {'w': torch.randn(300, 90, generator=gen, device='cpu')*scales}
    coins = {**GEV, 'low': 0., 'high': 1.}
    assert 1 - sparsity(arms.extreme_found(coins, some, 0, shuffled=True)[1]) == pytest.approx(.1, abs=.02)
    assert 1 - sparsity(arms.extreme_found(coins, some, 0)[1]) > .15

def test_shares_of_a_rule_as_an_allocation(ws):
    masks = arms.extreme_found(GEV, ws, 2)[1]
    allocate = arms.make_allocation({'layers of': GEV}, ws, 2)
    largest = allocate(magnitude(ws), sparsity(masks))
    for n, m in masks.items():
        assert int(m.sum()) == int(largest[n].sum())
        w = ws[n].detach().abs()
        assert m.all() or w[largest[n]].min() >= w[~largest[n]].max()

# Regrowth

def test_one_step_of_regrowth():
    "Two leave, one of the first tensor returns: the largest gradient of all pruned ones"
    w = {'a': torch.tensor([5., 1., 0., 0.]), 'b': torch.tensor([[2., -4., 3., 0.]])}
    m = {'a': torch.tensor([1, 1, 0, 0]).bool(), 'b': torch.tensor([[1, 1, 1, 0]]).bool()}
    g = {'a': torch.tensor([9., 9., .1, -.7]), 'b': torch.tensor([[9., 9., 9., .5]])}
    new = arms.regrown(w, g, m, k=4, returning=1)
    assert new['a'].tolist() == [True, False, False, True]
    assert new['b'].tolist() == [[False, True, True, False]]
    none = arms.regrown(w, g, m, k=2, returning=0)
    assert none['a'].tolist() == [True, False, False, False]
    assert none['b'].tolist() == [[False, True, False, False]]

def test_regrowth_follows_the_schedule_and_brings_weights_back(net, ws):
    seen, learn = [], net.again()
    cb = arms.make_pruner(REGROW, .9, ws, 0)
    propose = cb.propose
    def watch(t):
        before = {n: m.clone() for n, m in cb.masks.items()}
        masks = propose(t)
        returned = sum(int((masks[n] & ~before[n]).sum()) for n in masks)
        pruned = sum(int((~m).sum()) for m in before.values())
        seen.append((t, returned, pruned, sparsity(masks)))
        return masks
    cb.propose = watch
    learn.fit(2, .02, cbs=cb)
    n = sum(w.numel() for w in ws.values())
    for t, returned, pruned, p in seen:
        assert returned == (0 if t == 1 else round(.1*(1 - t)*pruned)) and round(p*n) == round(.9*t*n)
    assert len(seen) == 5 and sum(r for _, r, *_ in seen) > 0

# Arms

def right(model, dl):
    "Answers, written out"
    model.eval()
    plain = ((x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)) for x, y in dl)
    with torch.no_grad(): return torch.cat([model(x).argmax(1) == y for x, y in plain])

def by_hand(net, cb, epochs=2, lr=.02):
    "An arm in fastai's words: (right before, right after) on the test images, and the sparsity"
    learn = learner(net.recipe, net.seed, 'cpu')
    learn.model.load_state_dict(net.learn.model.state_dict())
    learn.dls.train.epoch = 2                                      # the dense training had epochs 1 and 2
    if cb is not None and len(cb.schedule.at) == 1: learn.prune(cb)
    before = right(learn.model, learn.dls.test)
    learn.model.train()
    learn.fit(epochs, lr, cbs=[ParamScheduler({'lr': SchedCos(lr, 0)}), *([] if cb is None else [cb])])
    return before, right(learn.model, learn.dls.test), sparsity(cb.masks) if cb else 0.

def hands(ws):
    sigma = .1*threshold(ws, .8)
    five = gradual(0, .6, 5)
    return {'dense': (None, lambda: None),
            'LAMP': (once('LAMP'), lambda: PruneCB(.8, score=lamp_score, seed=1)),
            'random': (once('random'), lambda: PruneCB(.8, score=random_score, seed=1)),
            'noise': (NOISE,
                      lambda: StochasticPruning(.8, sigma, n=3, select=median, allocation=erk, seed=1)),
            'extreme': (GEV, lambda: ExtremeValuePruning(9, .1, .9, kernel=False, least=60, seed=1)),
            'drop': ({**DROP, 'value': 'dropped', 'back to': 0., 'exact': False, 'allocation': 'global'},
                     lambda: DropPruning(.8, away=.9, back=fading, schedule=five, seed=1)),
            'magnitude': ({**once('magnitude'), 'schedule': GRADUAL},
                          lambda: PruneCB(.8, schedule=five, seed=1))}

@pytest.mark.parametrize('name', ['dense', 'LAMP', 'random', 'noise', 'extreme', 'drop', 'magnitude'])
def test_an_arm_is_what_it_is_by_hand(net, ws, name):
    "From the dense weights, in other orders, as long as all others, counted on all test images"
    spec, make = hands(ws)[name]
    r = arms.trained(net, 1, spec, .8, [], 2, .02)
    before, after, p = by_hand(net, make())
    assert r['sparsity'] == p and torch.equal(unpack(r['after']['test']['bits']), after)
    assert r['after']['test']['n'] == len(net.learn.dls.test.dataset) == 360
    assert r['after']['valid']['n'] == 200
    assert r['after']['test']['right'] == int(after.sum())
    if name in ('drop', 'magnitude'): assert r['before'] is None
    else: assert torch.equal(unpack(r['before']['test']['bits']), before)
    n = sum(w.numel() for w in ws.values())
    if name not in ('dense', 'extreme'): assert round(p*n) == round(.8*n)

def test_the_dense_control_begins_where_everyone_begins_and_trains(net):
    r = arms.trained(net, 1, None, 0., [], 2, .02)
    assert r['before']['test']['bits'] == net.facts['test']['bits'] != r['after']['test']['bits']
    assert r['sparsity'] == 0 and r['kept'] == {}

def test_valid_images_are_counted_too(net):
    r = arms.counted(net.learn)
    assert r['valid'] == {'n': 200, 'right': int(right(net.learn.model, net.learn.dls.valid).sum())}

def test_no_batch_of_the_dense_training_comes_again_in_its_place(net):
    "An arm goes on with the orders of the epochs after the dense training"
    fresh = learner(TINY, 0, 'cpu').dls.train
    old = [next(iter(fresh))[1].tolist() for _ in range(TINY.epochs)]
    ours = net.again().dls.train
    new = [next(iter(ours))[1].tolist() for _ in range(2)]
    assert not any(a == b for a in old for b in new)
    assert new == [next(iter(fresh))[1].tolist() for _ in range(2)]

def test_moves_are_told_for_drop_pruning_alone(net, ws):
    spec = hands(ws)['drop'][0]
    moves = arms.trained(net, 1, spec, .8, [], 2, .02)['moves']
    assert moves['left'] > moves['returned'] > 0 and moves['returned'] >= moves['stayed']
    away = arms.trained(net, 1, {**spec, 'back': 0.}, .8, [], 2, .02)['moves']
    assert away['returned'] == away['stayed'] == 0 and away['left'] > 0
    assert 'moves' not in arms.trained(net, 1, once('LAMP'), .8, [], 1, .02)

def test_rivals_keep_as_many_weights_as_the_rule(net):
    counts = {}
    for k, spec in {'ours': GEV, 'LAMP': once('LAMP'), 'uniform': once('magnitude', 'uniform')}.items():
        kept = arms.trained(net, 1, spec, GEV, ['fc2'], 1, .02)['kept']
        assert 'fc2.weight' not in kept and len(kept) == 3
        counts[k] = sum(k for k, _ in kept.values())
    assert len(set(counts.values())) == 1

def test_seeds_do_not_share_initial_weights():
    a, b = (learner(TINY, seed, 'cpu').model.fc1.weight for seed in (0, 1))
    assert not torch.equal(a, b) and torch.equal(a, learner(TINY, 0, 'cpu').model.fc1.weight)

@pytest.mark.parametrize('name', ['dense', 'LAMP', 'noise', 'extreme', 'drop', 'regrow'])
def test_a_unit_that_was_stopped_goes_on(net, ws, tmp_path, monkeypatch, name):
    "Stopped after its first epoch and begun again, an arm ends where an undisturbed one ends"
    spec = REGROW if name == 'regrow' else hands(ws)[name][0]
    whole = arms.trained(net, 1, spec, .8, [], 2, .02)
    with monkeypatch.context() as m:
        m.setattr(arms, 'fit', partial(fit, deadline=0.))
        with pytest.raises(TimeUp): arms.trained(net, 1, spec, .8, [], 2, .02, tmp_path/'state')
    assert arms.trained(net, 1, spec, .8, [], 2, .02, tmp_path/'state') == whole

def test_epochs_rate_and_state_are_handed_on(net, monkeypatch, tmp_path):
    "Every arm gets the epochs and the rate that it declares, the dense control too"
    seen = []
    def fit(learn, epochs, lr, pruner=None, state=None): seen.append((epochs, lr, pruner, state))
    monkeypatch.setattr(arms, 'fit', fit)
    for spec in (None, once('LAMP'), GEV): arms.trained(net, 1, spec, .8, [], 7, .03, tmp_path/'s')
    assert [s[:2] for s in seen] == [(7, .03)]*3 and {s[3] for s in seen} == {tmp_path/'s'}
    assert [type(s[2]) for s in seen] == [type(None), PruneCB, ExtremeValuePruning]
