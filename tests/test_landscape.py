"`prunelab.landscape`: directions, slices and lines through networks, which never write into them"
import copy
import gc
import weakref
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from prunelab.basin import noise, perturb
from prunelab.core import seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.landscape import filter_normalised, interpolate, slice1d, slice2d
from .test_evaluate import Net, loss, new_net, same

@pytest.fixture
def net(): return new_net()

def detached(ws): return {n: w.detach() for n, w in ws.items()}

# Directions

def lengths(d): return {n: t.detach().double().flatten(1).norm(dim=1) for n, t in d.items()}

@pytest.mark.parametrize('dtype, off', [(torch.bfloat16, .02), (torch.float32, 1e-5), (torch.float64, 1e-5)])
def test_a_normalised_filter_has_the_weights_length_and_the_draws_direction(net, dtype, off):
    ws = {n: (w*(i + 1)).to(dtype) for i, (n, w) in enumerate(weights(net).items())}
    eps = noise(ws, 0)
    d = filter_normalised(eps, ws)
    for n, length in lengths(ws).items():
        assert d[n].dtype == dtype and not d[n].requires_grad and d[n].shape == ws[n].shape
        assert torch.allclose(lengths(d)[n], length, rtol=off)
        cosine = F.cosine_similarity(d[n].flatten(1).double(), eps[n].flatten(1).double())
        assert (cosine > .999).all()
    assert same(eps, noise(ws, 0))

def test_no_direction_for_zero_filters_vectors_and_zero_draws():
    ws = {'a': torch.tensor([[3., 4.], [0., 0.], [1e3, 0.]]), 'b': torch.ones(3)}
    d = filter_normalised({'a': torch.tensor([[0., 2.], [1., 1.], [0., 0.]]), 'b': torch.ones(3)}, ws)
    assert d['a'].tolist() == [[0., 5.], [0., 0.], [0., 0.]] and d['b'].tolist() == [0., 0., 0.]
    assert list(filter_normalised({'b': torch.ones(3)}, ws)) == ['b']

def rescaled_pair():
    "Two networks of one function: eight times the first layer, an eighth of the last"
    with seeded(0): net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    other = copy.deepcopy(net)
    factors = {'0.weight': 8., '0.bias': 8., '2.weight': 1/8, '2.bias': 1.}
    other.load_state_dict({n: factors[n]*t for n, t in net.state_dict().items()})
    return net, other

def test_filter_normalised_slice_does_not_see_a_layers_scale():
    "Noise of one size tells the two apart, filter-normalised directions do not"
    pair = rescaled_pair()
    with seeded(1): batches = [(torch.randn(50, 8), torch.randint(3, (50,)))]
    eps = noise(weights(pair[0]), 0)
    def along(net, d):
        line = slice1d(weights(net), d, [-1, -.5, 0, .5, 1])
        return evaluate_population(net, line, batches, loss)
    plain = [along(net, eps) for net in pair]
    normal = [along(net, filter_normalised(eps, weights(net))) for net in pair]
    assert torch.allclose(*normal, atol=1e-5) and (plain[0] - plain[1]).abs().max() > .1
    assert normal[0].std() > .01

# Slices

def test_a_line_is_the_origin_and_steps(net):
    ws, d = weights(net), noise(weights(net), 1)
    back, here, there = slice1d(ws, d, torch.tensor([-1., 0., 2.]))
    assert same(here, detached(ws)) and list(back) == list(ws)
    for n in ws: assert torch.allclose(there[n], ws[n] + 2*d[n]) and torch.allclose(back[n], ws[n] - d[n])

def test_a_plane_is_the_origin_and_steps_in_two_directions(net):
    ws = weights(net)
    d1, d2 = noise(ws, 1), {'fc.weight': noise(ws, 2)['fc.weight']}
    plane = list(slice2d(ws, d1, d2, [0, 1, 2], [0, .5]))
    places = [(0, 0), (0, .5), (1, 0), (1, .5), (2, 0), (2, .5)]
    assert len(plane) == len(places)
    for member, (s, t) in zip(plane, places):
        fc = ws['fc.weight'] + s*d1['fc.weight'] + t*d2['fc.weight']
        conv = ws['conv.weight'] + s*d1['conv.weight']
        assert torch.allclose(member['fc.weight'], fc, atol=1e-6)
        assert torch.allclose(member['conv.weight'], conv, atol=1e-6)

def test_a_plane_through_three_networks(net):
    a, b, c = (dict(perturb(weights(net), .1, i)) for i in range(3))
    corners = slice2d(a, {n: b[n] - a[n] for n in a}, {n: c[n] - a[n] for n in a}, [0, 1], [0, 1])
    for got, want in zip(corners, (a, c, b)):
        for n in a: assert torch.allclose(got[n], want[n], atol=1e-6)

# Lines between networks

def another(net):
    with seeded(9): other = Net()
    other.bn.num_batches_tracked += 5
    other.bn.running_mean += 1
    return other

def test_line_between_two_state_dicts(net):
    a, b = net.state_dict(), another(net).state_dict()
    start, half, end, beyond = interpolate(a, b, [0, .5, 1, 2])
    count = 'bn.num_batches_tracked'
    assert same(start, dict(a)) and same({**end, count: b[count]}, dict(b))                 # the ends exactly
    assert end[count] == 0 and end[count].dtype == torch.long
    assert half['bn.running_mean'].tolist() == [.5]*4 and beyond['bn.running_mean'].tolist() == [2.]*4
    for n in weights(net): assert torch.allclose(half[n], (a[n] + b[n])/2, atol=1e-7)

# No trace

MAKERS = {'slice1d': lambda ws, d: slice1d(ws, d, [0.]*6),
          'slice2d': lambda ws, d: slice2d(ws, d, d, [0., 1.], [0., 1., 2.]),
          'interpolate': lambda ws, d: interpolate(ws, d, [0., .5, 1.]*2)}

def wipe(members):
    "Write into every member, as pruning in place does"
    for member in members:
        for t in member.values():
            assert not t.requires_grad
            t.zero_()

@pytest.mark.parametrize('name', MAKERS)
def test_lines_and_slices_copy(net, name):
    was = {n: t.clone() for n, t in net.state_dict().items()}
    wipe(MAKERS[name](weights(net), weights(net)))
    wipe(slice1d(weights(net), {}, [0, 1]))                          # also where there is no direction
    assert same(dict(net.state_dict()), was)

def test_a_line_copies_counters(net):
    net.bn.num_batches_tracked += 3
    state, was = dict(net.state_dict()), {n: t.clone() for n, t in net.state_dict().items()}
    wipe(interpolate(state, state, [0, 1]))
    assert same(dict(net.state_dict()), was)

@pytest.mark.parametrize('name', MAKERS)
def test_one_member_alive_at_a_time(net, name):
    ws, refs, alive = weights(net), [], []
    gc.disable()
    try:
        for m in MAKERS[name](ws, noise(ws)):
            refs.append(weakref.ref(m['fc.weight']))
            del m
            alive.append(sum(r() is not None for r in refs))
    finally: gc.enable()
    assert len(refs) == 6 and max(alive) == 0

# Refused

SHORT, HEAD = {'fc.weight': torch.ones(3)}, {'head': torch.ones(1)}
def first_rows(ws): return {n: w[:1] for n, w in ws.items()}
def fc_of(ws): return {'fc.weight': ws['fc.weight']}

REFUSED = {
    'name of a draw': (lambda ws: filter_normalised(HEAD, ws), 'choose from'),
    'shape of a draw': (lambda ws: filter_normalised(SHORT, ws), 'same architecture'),
    'name on a line': (lambda ws: slice1d(ws, HEAD, [0]), 'choose from'),
    'shape on a line': (lambda ws: slice1d(ws, SHORT, [0]), 'same architecture'),
    'name on a plane': (lambda ws: slice2d(ws, {}, HEAD, [0], [0]), 'choose from'),
    'shape on a plane': (lambda ws: slice2d(ws, {}, SHORT, [0], [0]), 'same architecture'),
    'end without a name': (lambda ws: interpolate(ws, fc_of(ws), [0]), 'only one end .*conv.weight'),
    'start without a name': (lambda ws: interpolate(fc_of(ws), ws, [0]), 'only one end .*conv.weight'),
    'end of another shape': (lambda ws: interpolate(ws, first_rows(ws), [0]), 'same architecture')}

@pytest.mark.parametrize('what', REFUSED)
def test_refused_at_once(net, what):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says): call(weights(net))
