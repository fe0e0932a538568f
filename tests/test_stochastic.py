"`prunelab.stochastic`: noise first, then any score, also one that needs the network and data; what is masked is gone before the score looks"
import copy
import pytest, torch
import fastai.torch_core     # before tensors are compared
from torch import nn
from torch.nn import functional as F
from prunelab.basin import perturb
from prunelab.gradient_scores import grasp, iterated, snip, synflow
from prunelab.core import generator, seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.allocation import erk, global_, uniform
from prunelab.masks import apply_, sparsity
from prunelab.schedules import gradual, steps
from prunelab.scores import lamp_score, magnitude, random_score
from prunelab.stochastic import StochasticPruning, best, median, stochastic_prune
from .conftest import mlp
from .test_guarantees import N, zeros

SCORES = {'magnitude': magnitude, 'lamp_score': lamp_score, 'random': random_score, 'snip': snip, 'grasp': grasp, 'synflow': synflow, 'iterated': iterated(synflow, global_, .8, 5)}

@pytest.fixture
def net():
    with seeded(0): return mlp().eval()

@pytest.fixture
def offers(net):
    with seeded(1): batch = (torch.randn(16, 12),), (torch.randint(4, (16,)),)
    return dict(model=lambda: net, batch=lambda: batch, loss_func=lambda: F.cross_entropy)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def written(net, ws):
    "A copy of the network with these weights"
    other = copy.deepcopy(net)
    other.load_state_dict({**net.state_dict(), **ws})
    return other

# one draw

def test_magnitude_of_one_draw_by_hand(net):
    "Noise from the seed, add, keep the largest of all layers: digit by digit"
    ws, gen = weights(net), generator((3, 1, 4))
    noisy = {n: torch.add(w.detach(), torch.randn(w.shape, generator=gen), alpha=.2) for n, w in ws.items()}
    cut = torch.cat([v.abs().flatten() for v in noisy.values()]).sort().values[round(.8*N)]
    masks, values = stochastic_prune(ws, .8, .2, (3, 1, 4))
    assert same(values, noisy) and same(masks, {n: v.abs() >= cut for n, v in noisy.items()})
    assert same(stochastic_prune(ws, .8, .2, generator((3, 1, 4)))[1], noisy)

@pytest.mark.parametrize('name', SCORES)
def test_the_score_sees_the_noisy_weights(net, offers, name):
    ws, before = weights(net), {n: t.clone() for n, t in net.state_dict().items()}
    masks, noisy = stochastic_prune(ws, .8, .3, 7, score=SCORES[name], **offers)
    assert sum(int((~m).sum()) for m in masks.values()) == round(.8*N) and same(noisy, perturb(ws, .3, 7))
    if name == 'random': return
    other, asked = written(net, noisy), {}
    if name not in ('magnitude', 'lamp_score'): asked = dict(model=other, batch=offers['batch'](), **({} if name in ('synflow', 'iterated') else {'loss_func': F.cross_entropy}))
    assert same(masks, global_(SCORES[name](weights(other), **asked), .8))
    assert not same(masks, stochastic_prune(ws, .8, 0., 7, score=SCORES[name], **offers)[0])
    assert same(dict(net.state_dict()), before) and all(p.grad is None for p in net.parameters())

def test_chance_in_the_score_is_not_the_chance_in_the_noise():
    "One seed, two draws: random pruning must not prefer what got much noise"
    ws = {'a': torch.zeros(400, 400)}
    masks, noisy = stochastic_prune(ws, .5, 1., 3, score=random_score)
    kept, dropped = noisy['a'][masks['a']], noisy['a'][~masks['a']]
    assert abs(kept.abs().mean() - dropped.abs().mean()) < .02 and abs(kept.mean()) < .02
    again = stochastic_prune(ws, .5, 1., 3, score=random_score)
    assert same(again[0], masks) and not same(stochastic_prune(ws, .5, 1., 4, score=random_score)[0], masks)

def test_two_draws_of_one_generator_differ(net):
    gen = generator(1)
    a, b = stochastic_prune(weights(net), .5, .1, gen), stochastic_prune(weights(net), .5, .1, gen)
    assert not same(a[1], b[1])

@pytest.mark.parametrize('allocation', [erk, uniform], ids=lambda b: b.__name__)
def test_the_budget_shares_the_noisy_scores(net, allocation):
    masks, noisy = stochastic_prune(weights(net), .8, .3, 7, allocation=allocation)
    assert same(masks, allocation(magnitude(noisy), .8)) and not same(masks, global_(magnitude(noisy), .8))

def test_what_is_not_offered_is_named(net, offers):
    with pytest.raises(TypeError, match='loss_func'): stochastic_prune(weights(net), .5, .1, score=snip)
    with pytest.raises(ValueError, match=r"no argument \['budgt'\]"): stochastic_prune(weights(net), .5, .1, budgt=erk)
    stochastic_prune(weights(net), .5, .1, **{k: lambda: 1/0 for k in offers})      # magnitude asks for nothing, so nothing is made

# held masks

@pytest.mark.parametrize('name', SCORES)
def test_held_weights_stay_masked_and_the_score_sees_them_masked(net, offers, name):
    ws = weights(net)
    held = {n: torch.rand(w.shape, generator=generator((5, i))) > .5 for i, (n, w) in enumerate(ws.items())}
    seen = []
    def spy(ws, model, batch, loss_func, gen):
        seen.append({n: w.clone() for n, w in ws.items()})
        wanted = dict(model=model, batch=batch, loss_func=loss_func, gen=gen)
        names = {'magnitude': (), 'lamp_score': (), 'random': ('gen',), 'snip': ('model', 'batch', 'loss_func'), 'grasp': ('model', 'batch', 'loss_func')}.get(name, ('model', 'batch'))
        return SCORES[name](ws, **{k: wanted[k] for k in names})
    masks, noisy = stochastic_prune(ws, .8, .3, 7, score=spy, held=held, **offers)
    assert all((m <= held[n]).all() for n, m in masks.items()) and sum(int((~m).sum()) for m in masks.values()) == round(.8*N)
    assert same(seen[0], {n: w*held[n] for n, w in perturb(ws, .3, 7).items()}) and same(noisy, seen[0])

def test_held_masks_change_no_digit_of_magnitude(net):
    ws = weights(net)
    held = global_(magnitude(ws), .5)
    noisy = perturb(ws, .2, 3)
    scores = {n: torch.where(held[n], w.abs(), -torch.inf) for n, w in noisy.items()}
    masks, values = stochastic_prune(ws, .8, .2, 3, held=held)
    assert same(masks, global_(scores, .8)) and same(apply_(values, masks), apply_(noisy, masks))
    assert same(held, global_(magnitude(ws), .5))                               # the caller's masks are not written

def test_a_held_mask_changes_what_a_path_is_worth():
    "Two paths; the better one is already cut in its second layer, so its first layer is worth nothing"
    with seeded(0): net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    ws = {'0.weight': torch.tensor([[3.], [1.]]), '1.weight': torch.tensor([[3., 1.]])}
    offers = dict(model=lambda: net, batch=lambda: ((torch.ones(1, 1),), ()))
    held = {'0.weight': torch.ones(2, 1).bool(), '1.weight': torch.tensor([[False, True]])}
    assert stochastic_prune(ws, .5, 0., score=synflow, **offers)[0]['0.weight'].flatten().tolist() == [True, False]
    assert stochastic_prune(ws, .5, 0., score=synflow, held=held, **offers)[0]['0.weight'].flatten().tolist() == [False, True]

# the callback

@pytest.mark.parametrize('name', SCORES)
def test_every_score_in_the_callback(new_learner, name):
    learn, twin = new_learner(), new_learner()
    for l in (learn, twin): l.prune(StochasticPruning(.8, .1, n=3, score=SCORES[name]))
    assert zeros(learn) == round(.8*N) and same(learn.model.state_dict(), twin.model.state_dict())
    learn.fit(1, .01)
    assert zeros(learn) == round(.8*N)

def test_the_callback_uses_this_network_batch_and_loss(new_learner):
    learn, plain = new_learner(), new_learner()
    learn.prune(StochasticPruning(.8, 0., n=1, score=snip)); plain.prune(.8, score=snip)
    assert same(learn.model.state_dict(), plain.model.state_dict())             # without noise it is plain SNIP
    learn, got = new_learner(), []
    def spy(ws, model, batch, loss_func): got.append((model, loss_func)); return snip(ws, model, batch, loss_func)
    learn.prune(StochasticPruning(.8, .1, n=3, score=spy))
    assert len(got) == 4 and all(m is learn.model and f is learn.loss_func for m, f in got)      # three members, and the chosen one again

@pytest.mark.parametrize('score, fetched', [(magnitude, 0), (snip, 1)])
def test_one_batch_for_the_population_if_the_score_asks(new_learner, score, fetched):
    class Counting(StochasticPruning):
        n_batches = 0
        def batch(self): self.n_batches += 1; return super().batch()
    learn, cb = new_learner(), Counting(.8, .1, n=4, score=score)
    learn.prune(cb)
    assert cb.n_batches == fetched

def test_a_new_batch_for_each_population_while_training(new_learner):
    learn, seen = new_learner(), []
    def spy(ws, model, batch, loss_func): seen.append(batch[0][0]); return snip(ws, model, batch, loss_func)
    learn.fit(1, .01, cbs=StochasticPruning(.8, .1, n=2, score=spy, schedule=steps(2)))
    assert len(seen) == 6 and all(x is seen[0] for x in seen[:3]) and all(x is seen[3] for x in seen[3:]) and not torch.equal(seen[0], seen[3])

@pytest.mark.parametrize('score', [magnitude, lamp_score, snip, synflow], ids=lambda s: s.__name__)
def test_gradual_pruning_brings_nothing_back(new_learner, score):
    learn, kept, seen = new_learner(), [], []
    class Watching(StochasticPruning):
        def propose(self, t):
            out = super().propose(t)
            kept.append({n: m.clone() for n, m in out[0].items()})
            return out
    def spy(ws, model, batch, loss_func):
        seen.append(sparsity(ws))
        return {'snip': lambda: snip(ws, model, batch, loss_func), 'synflow': lambda: synflow(ws, model, batch)}.get(score.__name__, lambda: score(ws))()
    learn.fit(2, .01, cbs=Watching(.8, .1, n=2, score=spy, schedule=gradual(n=4)))
    assert zeros(learn) == round(.8*N) and len(kept) > 2
    assert all((b[n] <= a[n]).all() for a, b in zip(kept, kept[1:]) for n in a)
    assert all(abs(s - sparsity(m)) < 1e-6 for s, m in zip(seen[3::3], kept))     # each population's score sees the zeros of the last one

def test_another_pruners_zeros_are_seen(new_learner):
    "A score that needs the network meets it masked in the layers, too, that this callback leaves alone"
    learn, seen = new_learner(), []
    learn.prune(.5)
    def spy(ws, model, batch, loss_func): seen.append(int((model[0].weight == 0).sum())); return snip(ws, model, batch, loss_func)
    before = (learn.model[0].weight == 0).sum()
    learn.prune(StochasticPruning(.7, .1, n=2, score=spy, exclude='0'))
    assert seen == [int(before)]*3 and (learn.model[0].weight == 0).sum() == before

def test_members_can_be_drawn_again_outside(new_learner):
    "The population is a function of (seed, decision, member): a page can repeat what a callback did"
    learn = new_learner()
    dense, ws = copy.deepcopy(learn.model), {n: w.detach().clone() for n, w in weights(learn.model).items()}
    cb = learn.prune(StochasticPruning(.8, .2, n=5, seed=9))
    members = [apply_(v, m) for m, v in (stochastic_prune(ws, .8, .2, (9, 1, i)) for i in range(5))]
    acc = evaluate_population(dense, members, learn.dls.valid)
    assert cb.values.tolist() == acc.tolist() and len(set(acc.tolist())) > 1
    assert same({n: w.detach() for n, w in weights(learn.model).items()}, members[best(acc)])

def test_best_and_median():
    v = torch.tensor([.3, float('nan'), .9, .5, .7])
    assert (best(v), median(v[[0, 2, 3, 4]]), median(v[[0, 2, 3]])) == (2, 2, 2)

@pytest.mark.parametrize('kind', ['add', 'mul'])
def test_excluded_layers_get_no_noise(new_learner, kind):
    learn = new_learner()
    before = {n: w.detach().clone() for n, w in weights(learn.model).items()}
    learn.prune(StochasticPruning(.8, .2, n=2, kind=kind, exclude=['0', '5']))
    after = weights(learn.model)
    assert all(torch.equal(after[n], before[n]) for n in ('0.weight', '5.weight')) and int((after['3.weight'] == 0).sum()) == 160

def test_noise_on_the_excluded_layers_too(net):
    "The paper's other variant, as the page writes it: perturb all, prune those not excluded"
    noisy, inner = perturb(weights(net), .2, 3), list(weights(net, exclude=['0', '5']))
    member = apply_(noisy, global_(magnitude({n: noisy[n] for n in inner}), .8))
    assert inner == ['3.weight'] and int((member['3.weight'] == 0).sum()) == 160
    assert not torch.equal(member['0.weight'], weights(net)['0.weight']) and (member['0.weight'] != 0).all()
