"`prunelab.basin`: noisy copies that can be repeated alone, slices and lines, and their evaluation without a trace in the network"
import gc, weakref
import numpy as np, pytest, torch
from fastai.data.core import DataLoaders
from fastai.torch_core import TensorImage, TensorCategory
from torch import nn
from torch.nn import functional as F
from prunelab.basin import noise, perturb, population, evaluate_population, filter_normalised, slice1d, slice2d, interpolate
from prunelab.core import generator, seeded, weights
from prunelab.allocation import global_
from prunelab.masks import apply_, sparsity
from prunelab.scores import magnitude

class Net(nn.Module):
    "A convolution, a normalisation with buffers, dropout and a classifier"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Linear(4*36, 3)
    def forward(self, x): return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))

@pytest.fixture
def net():
    with seeded(0): return Net()

@pytest.fixture
def dl():
    "Three batches of 4, 4 and 3"
    with seeded(1): return [(torch.randn(n, 1, 8, 8), torch.randint(3, (n,))) for n in (4, 4, 3)]

def by_hand(net, member, dl):
    "How many are right when the member's weights are written into a copy"
    with seeded(0): other = Net()
    other.load_state_dict({**net.state_dict(), **member})
    other.eval()
    with torch.no_grad(): return sum(int((other(x).argmax(1) == y).sum()) for x, y in dl)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

def test_member_depends_on_seed_and_number_alone(net):
    ws = weights(net)
    alone = perturb(ws, .1, (7, 3))
    assert same(list(population(ws, .1, 4, seed=7))[3], alone)
    assert same(list(population(ws, .1, 9, seed=7))[3], alone)
    assert same(list(population(ws, [.2, .1], 4, seed=7))[7], alone)
    assert not same(list(population(ws, .1, 4, seed=8))[3], alone)
    assert same(list(population(ws, .1, 2, seed=(7, 3)))[1], perturb(ws, .1, (7, 3, 1)))

def test_sigmas_share_the_draw_in_their_order(net):
    ws = weights(net)
    for sigmas in ([.1, .2, 0], (.1, .2, 0), np.array([.1, .2, 0]), [{'fc.weight': .1}, .2, 0]):
        members = list(population(ws, sigmas, 2, seed=1))
        assert len(members) == 6
        assert torch.allclose(members[4]['fc.weight'] - ws['fc.weight'], 2*(members[3]['fc.weight'] - ws['fc.weight']), atol=1e-6)
        assert same(members[5], {n: w.detach() for n, w in ws.items()})
        assert torch.equal(members[3]['conv.weight'], ws['conv.weight']) == isinstance(sigmas[0], dict)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('kind', ['add', 'mul'])
def test_noise_is_unit_and_keeps_the_dtype(dtype, kind):
    ws = {'a': torch.full((300, 300), 2., dtype=dtype)}
    eps = noise(ws, 0)['a']
    assert eps.dtype == dtype and abs(eps.double().mean()) < .02 and abs(eps.double().std() - 1) < .01
    out = perturb(ws, .25, 0, kind)['a']
    assert out.dtype == dtype and abs(out.double().std() - (.25 if kind == 'add' else .5)) < .01
    assert bool((ws['a'] == 2).all())

def test_quadratic_loss_rises_by_half_the_trace():
    h = torch.tensor([5., 1., 0., .3])
    ws = {'a': torch.zeros(4)}
    cost = torch.stack([(h*m['a']**2).sum()/2 for m in population(ws, .5, 4000)])
    assert abs(cost.mean() - .125*h.sum()) < 5*cost.std()/4000**.5

def test_copies_are_detached_and_new(net):
    ws = weights(net)
    for kind in ('add', 'mul'):
        for m in perturb(ws, 0., kind=kind).values(): assert not m.requires_grad
        copy = perturb(ws, 0., kind=kind)['fc.weight']
        copy.zero_()
        assert ws['fc.weight'].abs().sum() > 0

def test_generator_and_global_state(net):
    state = torch.get_rng_state()
    gen = generator(5)
    a, b = perturb(weights(net), .1, gen), perturb(weights(net), .1, gen)
    assert same(a, perturb(weights(net), .1, 5)) and not same(a, b)
    assert torch.equal(torch.get_rng_state(), state)

def test_excluded_weights_keep_the_models_values(net, dl):
    ws = weights(net, exclude='fc')
    member = perturb(ws, .5, 0)
    assert list(member) == ['conv.weight']
    assert round(evaluate_population(net, [member], dl)[0].item()*11) == by_hand(net, member, dl)

def test_multiplicative_noise_keeps_zeros(net):
    ws = {n: w.detach().clone() for n, w in weights(net).items()}
    apply_(ws, global_(magnitude(ws), .5))
    assert sparsity(perturb(ws, .3, kind='mul')) == sparsity(ws) > .49
    assert sparsity(perturb(ws, .3, kind='add')) == 0

@pytest.mark.parametrize('call, says', [
    (lambda ws: perturb(ws, -1e-3), 'at least 0'), (lambda ws: perturb(ws, float('nan')), 'at least 0'), (lambda ws: perturb(ws, float('inf')), 'finite'),
    (lambda ws: perturb(ws, {'fc.weight': -.1}), 'at least 0'), (lambda ws: perturb(ws, {'fc': .1}), 'choose from'),
    (lambda ws: perturb(ws, .1, kind='multiply'), "'mul'"), (lambda ws: population(ws, .1, 0), 'at least one'),
    (lambda ws: population(ws, [.1, -.1], 2), 'at least 0'), (lambda ws: population(ws, .1, 2, kind='x'), "'add'")])
def test_refused_at_once(net, call, says):
    with pytest.raises(ValueError, match=says): call(weights(net))

@pytest.mark.parametrize('chunk', [1, 2, 3, 8])
def test_accuracy_is_an_exact_count(net, dl, chunk):
    members = list(population(weights(net), .3, 5))
    acc = evaluate_population(net, members, dl, chunk=chunk)
    assert acc.dtype == torch.float64 and acc.device.type == 'cpu'
    assert acc.tolist() == [by_hand(net, m, dl)/11 for m in members]
    assert len(set(acc.tolist())) > 1 and len(members) == 5          # a list is not emptied

def test_a_metric_per_example(net, dl):
    net.eval()
    want = sum(F.cross_entropy(net(x), y, reduction='sum').item() for x, y in dl)/11
    got = evaluate_population(net, [{}], dl, metric=lambda out, y: F.cross_entropy(out, y, reduction='none'))
    assert abs(got[0].item() - want) < 1e-6

def test_network_stays_as_it_is(net, dl):
    net.train(); net.bn.eval()                                       # a frozen normalisation in a training network
    modes, state = {n: m.training for n, m in net.named_modules()}, {n: t.clone() for n, t in net.state_dict().items()}
    ids = {n: id(p) for n, p in net.named_parameters()}
    members = lambda: population(weights(net), .3, 3)
    evaluate_population(net, members(), dl)
    with pytest.raises(ZeroDivisionError): evaluate_population(net, members(), dl, metric=lambda out, y: 1/0)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert same(dict(net.state_dict()), state) and {n: id(p) for n, p in net.named_parameters()} == ids
    assert all(p.requires_grad and p.grad is None for p in net.parameters())

def test_dropout_and_batch_statistics_are_off(net, dl):
    assert len(set(evaluate_population(net, [{}]*6, dl, metric=lambda out, y: out[:, 0], chunk=1).tolist())) == 1

def test_never_more_than_chunk_members_alive(net, dl):
    class Member(dict): pass                                         # a plain dict takes no weak reference
    refs, most = [], []
    def members():
        for m in population(weights(net), .1, 7):
            refs.append(weakref.ref(m := Member(m)))
            most.append(sum(r() is not None for r in refs))
            yield m
            del m
    gc.disable()
    try: evaluate_population(net, members(), dl, chunk=3)
    finally: gc.enable()
    assert max(most) == 3

def test_one_pass_serves_a_chunk(net, dl):
    class Counting(list):
        passes = 0
        def __iter__(self): self.passes += 1; return super().__iter__()
    counted = Counting(dl)
    evaluate_population(net, population(weights(net), .1, 7), counted, chunk=3)
    assert counted.passes == 3

def test_members_may_use_the_network_while_they_are_made(net, dl):
    "A score such as SNIP needs gradients and the network's own mode"
    seen = []
    def members():
        for m in population(weights(net), .1, 3):
            seen.append((net.training, torch.is_grad_enabled()))
            yield m
    net.train()
    evaluate_population(net, members(), dl, chunk=2)
    assert seen == [(True, True)]*3

def test_members_may_carry_buffers(net, dl):
    mean = {'bn.running_mean': net.bn.running_mean + 2}
    a, b = evaluate_population(net, [{}, mean], dl, metric=lambda out, y: out[:, 0]).tolist()
    assert a != b and bool((net.bn.running_mean == 0).all())

def test_tied_weights_move_together():
    with seeded(0): net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    member, x = {'0.weight': torch.eye(3)}, torch.tensor([[1., 2., 3.]])
    got = evaluate_population(net, [member], [(x, torch.tensor([0]))], metric=lambda out, y: (out - x).abs().sum(1))
    assert got.item() == 0

def test_several_inputs():
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.fc = nn.Linear(2, 2)
        def forward(self, a, b): return self.fc(a + b)
    dl = [(torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4, dtype=torch.long))]
    assert evaluate_population(Two(), [{}], dl).shape == (1,)

def test_fastai_loader(net, dl):
    items = [(TensorImage(x), TensorCategory(y)) for xs, ys in dl for x, y in zip(xs, ys)]
    dls = DataLoaders.from_dsets(items, items, bs=4, num_workers=0, device='cpu')
    members = list(population(weights(net), .3, 4))
    def metric(out, y):
        assert type(out) is torch.Tensor and type(y) is torch.Tensor and not out.requires_grad
        return out.argmax(1) == y
    acc = evaluate_population(net, members, dls.valid, metric, chunk=3)
    assert acc.tolist() == [by_hand(net, m, dl)/11 for m in members]

@pytest.mark.parametrize('kwargs, says', [
    (dict(members=[{'head.weight': torch.ones(1)}]), 'head.weight'), (dict(members={'fc.weight': torch.ones(1)}), 'pass a list'),
    (dict(chunk=0), 'at least 1'), (dict(metric=F.cross_entropy), "reduction='none'"), (dict(dl=[]), 'dl must give')])
def test_evaluation_refuses(net, dl, kwargs, says):
    with pytest.raises(ValueError, match=says): evaluate_population(net, **{**dict(members=[{}], dl=dl), **kwargs})

def test_a_used_up_loader_is_an_error(net, dl):
    assert len(evaluate_population(net, [{}, {}], iter(dl), chunk=2)) == 2      # one pass is enough for two
    with pytest.raises(ValueError, match='a generator does not'): evaluate_population(net, [{}, {}], iter(dl), chunk=1)

def test_no_members(net, dl): assert evaluate_population(net, [], dl).shape == (0,)

def filters(d): return {n: t.detach().double().flatten(1).norm(dim=1) for n, t in d.items()}

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_a_normalised_filter_has_the_weights_length_and_the_draws_direction(net, dtype):
    ws = {n: (w*(i + 1)).to(dtype) for i, (n, w) in enumerate(weights(net).items())}
    eps = noise(ws, 0)
    d = filter_normalised(eps, ws)
    for n, length in filters(ws).items():
        assert d[n].dtype == dtype and not d[n].requires_grad and d[n].shape == ws[n].shape
        assert torch.allclose(filters(d)[n], length, rtol=.02 if dtype == torch.bfloat16 else 1e-5)
        assert (F.cosine_similarity(d[n].flatten(1).double(), eps[n].flatten(1).double()) > .999).all()
    assert torch.equal(eps['fc.weight'], noise(ws, 0)['fc.weight'])

def test_no_direction_for_zero_filters_vectors_and_zero_draws():
    ws = {'a': torch.tensor([[3., 4.], [0., 0.], [1e3, 0.]]), 'b': torch.ones(3)}
    d = filter_normalised({'a': torch.tensor([[0., 2.], [1., 1.], [0., 0.]]), 'b': torch.ones(3)}, ws)
    assert d['a'].tolist() == [[0., 5.], [0., 0.], [0., 0.]] and d['b'].tolist() == [0., 0., 0.]
    assert list(filter_normalised({'b': torch.ones(3)}, ws)) == ['b']

def test_filter_normalised_slice_does_not_see_a_layers_scale():
    "Two networks of one function; noise of one size tells them apart, filter-normalised directions do not"
    with seeded(0): net, other = (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    other.load_state_dict({n: t*{'0': 8., '2': 1.}[n[0]] / {'0.weight': 1., '0.bias': 1., '2.weight': 8., '2.bias': 1.}[n] for n, t in net.state_dict().items()})
    with seeded(1): batches = [(torch.randn(50, 8), torch.randint(3, (50,)))]
    ce = lambda out, y: F.cross_entropy(out, y, reduction='none')
    eps, ts = noise(weights(net), 0), [-1, -.5, 0, .5, 1]
    plain, normal = ([evaluate_population(m, slice1d(weights(m), make(weights(m)), ts), batches, ce) for m in (net, other)] for make in (lambda ws: eps, lambda ws: filter_normalised(eps, ws)))
    assert torch.allclose(*normal, atol=1e-5) and (plain[0] - plain[1]).abs().max() > .1
    assert normal[0].std() > .01

def test_slices_are_the_origin_and_steps(net):
    ws = weights(net)
    d1, d2 = noise(ws, 1), {'fc.weight': noise(ws, 2)['fc.weight']}
    line = list(slice1d(ws, d1, torch.tensor([-1., 0., 2.])))
    assert same(line[1], {n: w.detach() for n, w in ws.items()}) and list(line[0]) == list(ws)
    for n in ws: assert torch.allclose(line[2][n], ws[n] + 2*d1[n]) and torch.allclose(line[0][n], ws[n] - d1[n])
    plane = list(slice2d(ws, d1, d2, [0, 1, 2], [0, .5]))
    assert len(plane) == 6
    for k, (s, t) in enumerate([(0, 0), (0, .5), (1, 0), (1, .5), (2, 0), (2, .5)]):
        assert torch.allclose(plane[k]['fc.weight'], ws['fc.weight'] + s*d1['fc.weight'] + t*d2['fc.weight'], atol=1e-6)
        assert torch.allclose(plane[k]['conv.weight'], ws['conv.weight'] + s*d1['conv.weight'], atol=1e-6)

def test_a_plane_through_three_networks(net):
    a, b, c = (dict(perturb(weights(net), .1, i)) for i in range(3))
    corners = list(slice2d(a, {n: b[n] - a[n] for n in a}, {n: c[n] - a[n] for n in a}, [0, 1], [0, 1]))
    for got, want in zip(corners, (a, c, b)):
        for n in a: assert torch.allclose(got[n], want[n], atol=1e-6)

def test_line_between_two_state_dicts(net):
    with seeded(9): other = Net()
    other.bn.num_batches_tracked += 5; other.bn.running_mean += 1
    a, b = net.state_dict(), other.state_dict()
    start, half, end, beyond = interpolate(a, b, [0, .5, 1, 2])
    assert same(start, dict(a)) and same({**end, 'bn.num_batches_tracked': b['bn.num_batches_tracked']}, dict(b))     # the ends exactly
    assert end['bn.num_batches_tracked'] == 0 and end['bn.num_batches_tracked'].dtype == torch.long
    assert half['bn.running_mean'].tolist() == [.5]*4 and beyond['bn.running_mean'].tolist() == [2.]*4
    for n in weights(net): assert torch.allclose(half[n], (a[n] + b[n])/2, atol=1e-7)

def test_lines_and_slices_copy(net, dl):
    "A member may be pruned in place, and asks for no gradient"
    net.bn.num_batches_tracked += 3
    ws = weights(net)
    before = {n: w.detach().clone() for n, w in ws.items()}
    state, was = dict(net.state_dict()), {n: t.clone() for n, t in net.state_dict().items()}
    for m in [*slice1d(ws, {}, [0, 1]), *slice2d(ws, noise(ws), {}, [0], [0]), *interpolate(ws, ws, [0, .5, 1]), *interpolate(state, state, [0, 1])]:
        for t in m.values(): assert not t.requires_grad; t.zero_()
    assert same({n: w.detach() for n, w in ws.items()}, before) and same(dict(net.state_dict()), was)

@pytest.mark.parametrize('make', [lambda ws, d: slice1d(ws, d, [0.]*6), lambda ws, d: slice2d(ws, d, d, [0., 1.], [0., 1., 2.]), lambda ws, d: interpolate(ws, d, [0.]*6)])
def test_one_member_alive_at_a_time(net, make):
    refs, most = [], []
    ws = weights(net)
    gc.disable()
    try:
        for m in make(ws, noise(ws)):
            refs.append(weakref.ref(m['fc.weight']))
            del m
            most.append(sum(r() is not None for r in refs))
    finally: gc.enable()
    assert len(refs) == 6 and max(most) == 0

@pytest.mark.parametrize('call, says', [
    (lambda ws: filter_normalised({'fc': torch.ones(1)}, ws), 'choose from'), (lambda ws: filter_normalised({'fc.weight': torch.ones(3)}, ws), 'same architecture'),
    (lambda ws: slice1d(ws, {'head': torch.ones(1)}, [0]), 'choose from'), (lambda ws: slice1d(ws, {'fc.weight': torch.ones(1)}, [0]), 'same architecture'),
    (lambda ws: slice2d(ws, {}, {'head': torch.ones(1)}, [0], [0]), 'choose from'), (lambda ws: slice2d(ws, {}, {'fc.weight': torch.ones(1)}, [0], [0]), 'same architecture'),
    (lambda ws: interpolate(ws, {'fc.weight': ws['fc.weight']}, [0]), 'only one end .*conv.weight'), (lambda ws: interpolate({'fc.weight': ws['fc.weight']}, ws, [0]), 'only one end .*conv.weight'),
    (lambda ws: interpolate(ws, {n: w[:1] for n, w in ws.items()}, [0]), 'same architecture')])
def test_lines_and_slices_refuse_at_once(net, call, says):
    with pytest.raises(ValueError, match=says): call(weights(net))
