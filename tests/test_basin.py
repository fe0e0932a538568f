"`prunelab.basin`: noisy copies of which each one can be repeated alone"
import numpy as np
import pytest
import torch
from prunelab.allocation import global_
from prunelab.basin import noise, perturb, population
from prunelab.core import generator, weights
from prunelab.masks import apply_, sparsity
from prunelab.scores import magnitude
from .test_evaluate import new_net, same

@pytest.fixture
def net(): return new_net()

def detached(ws): return {n: w.detach() for n, w in ws.items()}

# Which draw

@pytest.mark.parametrize('n', [4, 9])
def test_member_depends_on_seed_and_number_alone(net, n):
    ws = weights(net)
    assert same(list(population(ws, .1, n, seed=7))[3], perturb(ws, .1, (7, 3)))
    assert not same(list(population(ws, .1, n, seed=8))[3], perturb(ws, .1, (7, 3)))

def test_a_population_may_have_several_seeds(net):
    ws = weights(net)
    assert same(list(population(ws, .1, 2, seed=(7, 3)))[1], perturb(ws, .1, (7, 3, 1)))

SIGMAS = {'list': [.1, .2, 0], 'tuple': (.1, .2, 0), 'array': np.array([.1, .2, 0]),
          'one by layer': [{'fc.weight': .1}, .2, 0]}

@pytest.mark.parametrize('kind', SIGMAS)
def test_sigmas_share_the_draw_in_their_order(net, kind):
    ws, sigmas = weights(net), SIGMAS[kind]
    members = list(population(ws, sigmas, 2, seed=1))
    assert len(members) == 6 and same(members[5], detached(ws))
    small, large = (members[i]['fc.weight'] - ws['fc.weight'] for i in (3, 4))
    assert torch.allclose(large, 2*small, atol=1e-6)
    assert torch.equal(members[3]['conv.weight'], ws['conv.weight']) == isinstance(sigmas[0], dict)

def test_a_generator_goes_on_and_the_global_one_stands_still(net):
    state, gen = torch.get_rng_state(), generator(5)
    a, b = perturb(weights(net), .1, gen), perturb(weights(net), .1, gen)
    assert same(a, perturb(weights(net), .1, 5)) and not same(a, b)
    assert torch.equal(torch.get_rng_state(), state)

# What the noise is

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('kind, want', [('add', .25), ('mul', .5)])
def test_noise_is_unit_and_keeps_the_dtype(dtype, kind, want):
    ws = {'a': torch.full((300, 300), 2., dtype=dtype)}
    eps = noise(ws, 0)['a']
    assert eps.dtype == dtype and abs(eps.double().mean()) < .02 and abs(eps.double().std() - 1) < .01
    out = perturb(ws, .25, 0, kind)['a']
    assert out.dtype == dtype and abs(out.double().std() - want) < .01
    assert bool((ws['a'] == 2).all())

def test_quadratic_loss_rises_by_half_the_trace():
    h = torch.tensor([5., 1., 0., .3])
    ws = {'a': torch.zeros(4)}
    cost = torch.stack([(h*m['a']**2).sum()/2 for m in population(ws, .5, 4000)])
    assert abs(cost.mean() - .125*h.sum()) < 5*cost.std()/4000**.5

@pytest.mark.parametrize('kind', ['add', 'mul'])
def test_copies_are_detached_and_new(net, kind):
    ws = weights(net)
    copy = perturb(ws, 0., kind=kind)
    assert not any(m.requires_grad for m in copy.values())
    copy['fc.weight'].zero_()
    assert ws['fc.weight'].abs().sum() > 0

def test_multiplicative_noise_keeps_zeros(net):
    ws = {n: w.detach().clone() for n, w in weights(net).items()}
    apply_(ws, global_(magnitude(ws), .5))
    assert sparsity(perturb(ws, .3, kind='mul')) == sparsity(ws) > .49
    assert sparsity(perturb(ws, .3, kind='add')) == 0

# Refused

REFUSED = {
    'negative': (lambda ws: perturb(ws, -1e-3), 'at least 0'),
    'nan': (lambda ws: perturb(ws, float('nan')), 'at least 0'),
    'infinite': (lambda ws: perturb(ws, float('inf')), 'finite'),
    'negative in a layer': (lambda ws: perturb(ws, {'fc.weight': -.1}), 'at least 0'),
    'unknown layer': (lambda ws: perturb(ws, {'fc': .1}), 'choose from'),
    'unknown kind': (lambda ws: perturb(ws, .1, kind='multiply'), "'mul'"),
    'nobody': (lambda ws: population(ws, .1, 0), 'at least one'),
    'one of two': (lambda ws: population(ws, [.1, -.1], 2), 'at least 0'),
    'kind of a population': (lambda ws: population(ws, .1, 2, kind='x'), "'add'")}

@pytest.mark.parametrize('what', REFUSED)
def test_refused_at_once(net, what):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says): call(weights(net))
