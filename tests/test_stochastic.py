"`prunelab.stochastic`: noise first, then any score; what is masked is gone before the score looks"
import copy
import pytest
import torch
import fastai.torch_core     # noqa: F401 — before tensors are compared
from torch import nn
from torch.nn import functional as F
from prunelab.allocation import erk, global_, uniform
from prunelab.basin import perturb
from prunelab.core import generator, seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.gradient_scores import grasp, iterated, snip, synflow
from prunelab.masks import apply_, sparsity
from prunelab.schedules import gradual, steps
from prunelab.scores import lamp_score, magnitude, random_score
from prunelab.stochastic import (StochasticPruning, absolute_sigma, best, check_unit, median,
    stochastic_prune, threshold)
from .conftest import mlp
from .test_guarantees import N, zeros

SCORES = {'magnitude': magnitude, 'lamp_score': lamp_score, 'random': random_score, 'snip': snip,
          'grasp': grasp, 'synflow': synflow, 'iterated': iterated(synflow, global_, .8, 5)}
ASKED = {'magnitude': (), 'lamp_score': (), 'random': ('gen',),
         'snip': ('model', 'batch', 'loss_func'), 'grasp': ('model', 'batch', 'loss_func'),
         'synflow': ('model', 'batch'), 'iterated': ('model', 'batch')}

@pytest.fixture
def net():
    with seeded(0): return mlp().eval()

@pytest.fixture
def offers(net):
    with seeded(1): batch = (torch.randn(16, 12),), (torch.randint(4, (16,)),)
    return dict(model=lambda: net, batch=lambda: batch, loss_func=lambda: F.cross_entropy)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def removed(masks): return sum(int((~m).sum()) for m in masks.values())
def copied(ws): return {n: w.detach().clone() for n, w in ws.items()}

def written(net, ws):
    "A copy of the network with these weights"
    other = copy.deepcopy(net)
    other.load_state_dict({**net.state_dict(), **ws})
    return other

# One draw

def test_magnitude_of_one_draw_by_hand(net):
    "Noise from the seed, add, keep the largest of all layers: digit by digit"
    ws, gen = weights(net), generator((3, 1, 4))
    noisy = {n: torch.add(w.detach(), torch.randn(w.shape, generator=gen), alpha=.2) for n, w in ws.items()}
    cut = torch.cat([v.abs().flatten() for v in noisy.values()]).sort().values[round(.8*N)]
    masks, values = stochastic_prune(ws, .8, .2, (3, 1, 4))
    assert same(values, noisy) and same(masks, {n: v.abs() >= cut for n, v in noisy.items()})
    assert same(stochastic_prune(ws, .8, .2, generator((3, 1, 4)))[1], noisy)

@pytest.mark.parametrize('name', SCORES)
def test_a_draw_is_exact_and_leaves_the_network_alone(net, offers, name):
    ws, before = weights(net), {n: t.clone() for n, t in net.state_dict().items()}
    masks, noisy = stochastic_prune(ws, .8, .3, 7, score=SCORES[name], **offers)
    assert removed(masks) == round(.8*N) and same(noisy, perturb(ws, .3, 7))
    assert same(dict(net.state_dict()), before) and all(p.grad is None for p in net.parameters())

@pytest.mark.parametrize('name', [n for n in SCORES if n != 'random'])
def test_the_score_sees_the_noisy_weights(net, offers, name):
    ws, score = weights(net), SCORES[name]
    masks, noisy = stochastic_prune(ws, .8, .3, 7, score=score, **offers)
    other = written(net, noisy)
    given = {'model': other, 'batch': offers['batch'](), 'loss_func': F.cross_entropy}
    by_hand = score(weights(other), **{k: given[k] for k in ASKED[name]})
    assert same(masks, global_(by_hand, .8))
    assert not same(masks, stochastic_prune(ws, .8, 0., 7, score=score, **offers)[0])

def test_chance_in_the_score_is_not_the_chance_in_the_noise():
    "One seed, two draws: random pruning must not prefer what got much noise"
    ws = {'a': torch.zeros(400, 400)}
    masks, noisy = stochastic_prune(ws, .5, 1., 3, score=random_score)
    kept, dropped = noisy['a'][masks['a']], noisy['a'][~masks['a']]
    assert abs(kept.abs().mean() - dropped.abs().mean()) < .02 and abs(kept.mean()) < .02

@pytest.mark.parametrize('seed, again', [(3, True), (4, False)])
def test_chance_in_the_score_comes_from_the_seed(seed, again):
    ws = {'a': torch.zeros(40, 40)}
    first, other = (stochastic_prune(ws, .5, 1., s, score=random_score)[0] for s in (3, seed))
    assert same(first, other) == again

def test_two_draws_of_one_generator_differ(net):
    gen = generator(1)
    a, b = stochastic_prune(weights(net), .5, .1, gen), stochastic_prune(weights(net), .5, .1, gen)
    assert not same(a[1], b[1])

@pytest.mark.parametrize('allocation', [erk, uniform], ids=lambda b: b.__name__)
def test_the_allocation_shares_the_noisy_scores(net, allocation):
    masks, noisy = stochastic_prune(weights(net), .8, .3, 7, allocation=allocation)
    assert same(masks, allocation(magnitude(noisy), .8)) and not same(masks, global_(magnitude(noisy), .8))

def test_what_is_not_offered_is_named(net, offers):
    ws = weights(net)
    with pytest.raises(TypeError, match='loss_func'): stochastic_prune(ws, .5, .1, score=snip)
    with pytest.raises(ValueError, match=r"no argument \['budgt'\]"): stochastic_prune(ws, .5, .1, budgt=erk)
    stochastic_prune(ws, .5, .1, **{k: lambda: 1/0 for k in offers})      # magnitude asks for nothing

# The unit of σ

FIVE = {'w': torch.tensor([.1, -.2, .3, -.4, .5])}

@pytest.mark.parametrize('p, tau', [(0, .1), (.2, .2), (.4, .3), (.6, .4), (.8, .5)])
def test_the_threshold_is_the_smallest_that_stays(p, tau):
    assert threshold(FIVE, p) == pytest.approx(tau)

@pytest.mark.parametrize('p', [.5, .9, .99])
def test_the_threshold_is_that_of_the_masks(net, p):
    ws = weights(net)
    masks = global_(magnitude(ws), p)
    assert threshold(ws, p) == min(w[masks[n]].abs().min().item() for n, w in ws.items() if masks[n].any())

def test_sigma_in_units_of_the_threshold():
    assert absolute_sigma(FIVE, .4, .5, 'threshold') == pytest.approx(.15)
    assert absolute_sigma(FIVE, .4, {'w': 2.}, 'threshold') == {'w': pytest.approx(.6)}
    assert absolute_sigma(FIVE, .4, .5) == .5 and absolute_sigma(FIVE, .4, {'w': 2.}, None) == {'w': 2.}

@pytest.mark.parametrize('sigma', [.4, {'3.weight': .7}])
def test_a_draw_in_units_of_the_threshold(net, sigma):
    ws = weights(net)
    masks, noisy = stochastic_prune(ws, .8, sigma, 7, unit='threshold')
    by_hand = stochastic_prune(ws, .8, absolute_sigma(ws, .8, sigma, 'threshold'), 7)
    assert same(masks, by_hand[0]) and same(noisy, by_hand[1])
    assert not same(noisy, stochastic_prune(ws, .8, sigma, 7)[1])

@pytest.mark.parametrize('c', [.25, 8.])
def test_the_size_of_all_weights_does_not_matter_in_units_of_the_threshold(net, c):
    ws = weights(net)
    other = {n: c*w.detach() for n, w in ws.items()}                      # a power of two: exact
    assert same(*(stochastic_prune(w, .8, .4, 7, unit='threshold')[0] for w in (ws, other)))
    assert not same(*(stochastic_prune(w, .8, .1, 7)[0] for w in (ws, other)))

def test_held_weights_count_as_zero_for_the_threshold(net):
    ws = weights(net)
    held = global_(magnitude(ws), .5)
    held['5.weight'][:] = False
    left = {n: w.detach()*held[n] for n, w in ws.items()}
    noisy = stochastic_prune(ws, .8, .4, 7, unit='threshold', held=held)[1]
    want = perturb(ws, .4*threshold(left, .8), 7)
    assert same(noisy, {n: v*held[n] for n, v in want.items()}) and threshold(left, .8) < threshold(ws, .8)

UNITS = {'unknown': (dict(unit='tau'), "'threshold', for multiples"),
         'a number': (dict(unit=.3), 'unit is None'),
         'multiplicative': (dict(unit='threshold', kind='mul'), 'leave unit out')}

@pytest.mark.parametrize('what', UNITS)
def test_units_that_are_none(net, what):
    wrong, says = UNITS[what]
    with pytest.raises(ValueError, match=says): StochasticPruning(.8, .1, **wrong)
    with pytest.raises(ValueError, match=says): stochastic_prune(weights(net), .8, .1, **wrong)
    with pytest.raises(ValueError, match=says): check_unit(**wrong)

def test_the_callback_takes_the_unit(new_learner):
    learn, twin = new_learner(), new_learner()
    sigma = .4*threshold(weights(twin.model), .8)
    learn.prune(StochasticPruning(.8, .4, 'threshold', n=3))
    twin.prune(StochasticPruning(.8, sigma, n=3))
    assert same(learn.model.state_dict(), twin.model.state_dict())

def test_the_unit_follows_a_gradual_schedule(new_learner):
    "At each pruning the threshold is that of the weights and the sparsity of then"
    learn, used, wanted = new_learner(), [], []
    class Watching(StochasticPruning):
        def member(self, i, sparsity, sigma, batch):
            used.append(sigma)
            wanted.append(.4*threshold(self.weights(), sparsity))
            return super().member(i, sparsity, sigma, batch)
    learn.fit(2, .01, cbs=Watching(.8, .4, 'threshold', n=1, schedule=gradual(n=4)))
    assert used == wanted and len(set(used)) > 2 and zeros(learn) == round(.8*N)

# Held masks

def recorded(name, seen):
    "The score `name`, which writes down the weights that it sees"
    def spy(ws, model, batch, loss_func, gen):
        seen.append(copied(ws))
        given = dict(model=model, batch=batch, loss_func=loss_func, gen=gen)
        return SCORES[name](ws, **{k: given[k] for k in ASKED[name]})
    return spy

@pytest.mark.parametrize('name', SCORES)
def test_held_weights_stay_masked_and_the_score_sees_them_masked(net, offers, name):
    ws, seen = weights(net), []
    gen = generator(5)
    held = {n: torch.rand(w.shape, generator=gen) > .5 for n, w in ws.items()}
    masks, noisy = stochastic_prune(ws, .8, .3, 7, score=recorded(name, seen), held=held, **offers)
    assert all((m <= held[n]).all() for n, m in masks.items()) and removed(masks) == round(.8*N)
    assert same(seen[0], {n: w*held[n] for n, w in perturb(ws, .3, 7).items()}) and same(noisy, seen[0])

def test_held_masks_change_no_digit_of_magnitude(net):
    ws = weights(net)
    held = global_(magnitude(ws), .5)
    noisy = perturb(ws, .2, 3)
    scores = {n: torch.where(held[n], w.abs(), -torch.inf) for n, w in noisy.items()}
    masks, values = stochastic_prune(ws, .8, .2, 3, held=held)
    assert same(masks, global_(scores, .8)) and same(apply_(values, masks), apply_(noisy, masks))
    assert same(held, global_(magnitude(ws), .5))                         # the caller's masks are not written

@pytest.mark.parametrize('cut, wanted', [(False, [True, False]), (True, [False, True])])
def test_a_held_mask_changes_what_a_path_is_worth(cut, wanted):
    "Two paths; if the better one is cut in its second layer already, its first layer is worth nothing"
    with seeded(0): net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    ws = {'0.weight': torch.tensor([[3.], [1.]]), '1.weight': torch.tensor([[3., 1.]])}
    held = {'0.weight': torch.ones(2, 1).bool(), '1.weight': torch.tensor([[False, True]])} if cut else None
    masks, _ = stochastic_prune(ws, .5, 0., score=synflow, held=held, model=lambda: net,
                                batch=lambda: ((torch.ones(1, 1),), ()))
    assert masks['0.weight'].flatten().tolist() == wanted

# The callback

@pytest.mark.parametrize('name', SCORES)
def test_every_score_in_the_callback(new_learner, name):
    learn, twin = new_learner(), new_learner()
    for each in (learn, twin): each.prune(StochasticPruning(.8, .1, n=3, score=SCORES[name]))
    assert zeros(learn) == round(.8*N) and same(learn.model.state_dict(), twin.model.state_dict())
    learn.fit(1, .01)
    assert zeros(learn) == round(.8*N)

def test_without_noise_it_is_the_plain_score(new_learner):
    learn, plain = new_learner(), new_learner()
    learn.prune(StochasticPruning(.8, 0., n=1, score=snip))
    plain.prune(.8, score=snip)
    assert same(learn.model.state_dict(), plain.model.state_dict())

def test_the_callback_uses_this_network_and_loss(new_learner):
    learn, got = new_learner(), []
    def spy(ws, model, batch, loss_func):
        got.append((model, loss_func))
        return snip(ws, model, batch, loss_func)
    learn.prune(StochasticPruning(.8, .1, n=3, score=spy))
    assert len(got) == 4                                              # three members, the chosen one again
    assert all(m is learn.model and f is learn.loss_func for m, f in got)

@pytest.mark.parametrize('score, fetched', [(magnitude, 0), (snip, 1)])
def test_one_batch_for_the_population_if_the_score_asks(new_learner, score, fetched):
    class Counting(StochasticPruning):
        n_batches = 0
        def batch(self):
            self.n_batches += 1
            return super().batch()
    learn, cb = new_learner(), Counting(.8, .1, n=4, score=score)
    learn.prune(cb)
    assert cb.n_batches == fetched

def test_a_new_batch_for_each_population_while_training(new_learner):
    learn, seen = new_learner(), []
    def spy(ws, model, batch, loss_func):
        seen.append(batch[0][0])
        return snip(ws, model, batch, loss_func)
    learn.fit(1, .01, cbs=StochasticPruning(.8, .1, n=2, score=spy, schedule=steps(2)))
    assert len(seen) == 6 and not torch.equal(seen[0], seen[3])
    assert all(x is seen[0] for x in seen[:3]) and all(x is seen[3] for x in seen[3:])

class Watching(StochasticPruning):
    "Writes its masks down"
    def propose(self, t):
        if not hasattr(self, 'written'): self.written = []
        masks, values = super().propose(t)
        self.written.append({n: m.clone() for n, m in masks.items()})
        return masks, values

@pytest.mark.parametrize('name', ['magnitude', 'lamp_score', 'snip', 'synflow'])
def test_gradual_pruning_brings_nothing_back(new_learner, name):
    learn, seen = new_learner(), []
    cb = Watching(.8, .1, n=2, score=recorded(name, seen), schedule=gradual(n=4))
    learn.fit(2, .01, cbs=cb)
    assert zeros(learn) == round(.8*N) and len(cb.written) > 2
    assert all((b[n] <= a[n]).all() for a, b in zip(cb.written, cb.written[1:]) for n in a)
    for ws, masks in zip(seen[3::3], cb.written):                         # the zeros of the pruning before
        assert abs(sparsity(ws) - sparsity(masks)) < 1e-6

def test_another_pruners_zeros_are_seen(new_learner):
    "A score meets the network masked in the layers, too, that this callback leaves alone"
    learn, seen = new_learner(), []
    learn.prune(.5)
    def zeros_of(model): return int((model[0].weight == 0).sum())
    def spy(ws, model, batch, loss_func):
        seen.append(zeros_of(model))
        return snip(ws, model, batch, loss_func)
    before = zeros_of(learn.model)
    learn.prune(StochasticPruning(.7, .1, n=2, score=spy, exclude='0'))
    assert seen == [before]*3 and zeros_of(learn.model) == before

def test_members_can_be_drawn_again_outside(new_learner):
    "The population is a function of (seed, draws, member): a page can repeat what a callback did"
    learn = new_learner()
    dense, ws = copy.deepcopy(learn.model), copied(weights(learn.model))
    cb = learn.prune(StochasticPruning(.8, .2, n=5, seed=9))
    members = [apply_(v, m) for m, v in (stochastic_prune(ws, .8, .2, (9, 1, i)) for i in range(5))]
    acc = evaluate_population(dense, members, learn.dls.valid)
    assert cb.values.tolist() == acc.tolist() and len(set(acc.tolist())) > 1
    assert same(copied(weights(learn.model)), members[best(acc)])

def test_best_and_median():
    v = torch.tensor([.3, float('nan'), .9, .5, .7])
    assert (best(v), median(v[[0, 2, 3, 4]]), median(v[[0, 2, 3]])) == (2, 2, 2)

# Layers that are left out

@pytest.mark.parametrize('kind', ['add', 'mul'])
def test_excluded_layers_get_no_noise(new_learner, kind):
    learn = new_learner()
    before = copied(weights(learn.model))
    learn.prune(StochasticPruning(.8, .2, n=2, kind=kind, exclude=['0', '5']))
    after = weights(learn.model)
    assert all(torch.equal(after[n], before[n]) for n in ('0.weight', '5.weight'))
    assert int((after['3.weight'] == 0).sum()) == 160

def test_noise_on_the_excluded_layers_too(net):
    "The paper's other variant, as the page writes it: perturb all, prune those not excluded"
    noisy, inner = perturb(weights(net), .2, 3), list(weights(net, exclude=['0', '5']))
    member = apply_(noisy, global_(magnitude({n: noisy[n] for n in inner}), .8))
    assert inner == ['3.weight'] and int((member['3.weight'] == 0).sum()) == 160
    assert not torch.equal(member['0.weight'], weights(net)['0.weight'])
    assert (member['0.weight'] != 0).all()

SELECT = {'a tensor': (torch.argmax, None), 'too low': (lambda v: -1, 'from 0 to 2'),
          'too high': (lambda v: 99, 'select gave 99')}

@pytest.mark.parametrize('what', SELECT)
def test_select_gives_the_number_of_a_member(new_learner, what):
    select, says = SELECT[what]
    learn, cb = new_learner(), StochasticPruning(.5, .1, n=3, select=select)
    if says is None: learn.prune(cb)
    else:
        with pytest.raises(ValueError, match=says): learn.prune(cb)

def test_without_validation_data(new_learner):
    learn = new_learner()
    learn.dls = type(learn.dls)(learn.dls.train)
    with pytest.raises(ValueError, match='validation data, and there is none'):
        learn.prune(StochasticPruning(.5, .1))

def test_a_threshold_of_nothing():
    with pytest.raises(ValueError, match='none of 100 weights'): threshold({'w': torch.randn(100)}, .999)
