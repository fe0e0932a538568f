"What holds for any network, allocation, dtype, sparsity and seed; and the same from PyTorch, or a formula"
import copy
import math
import pytest
import torch
from fastai.optimizer import SGD, Adam, RMSProp
from functools import partial
from hypothesis import assume, example, given, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from prunelab.allocation import erk, global_, lamp, uniform
from prunelab.callbacks import PruneCB
from prunelab.checkpoint import load_sparse, pack, save_sparse, unpack
from prunelab.core import generator, seeded, weights
from prunelab.drop import DropPruning
from prunelab.evaluate import evaluate_population
from prunelab.gradient_scores import snip, synflow
from prunelab.masks import apply_, kept, sparsity
from prunelab.report import sizes, table
from prunelab.sampling import sample_exactly
from prunelab.schedules import gradual
from prunelab.scores import lamp_score, magnitude
from prunelab.stochastic import stochastic_prune
from .conftest import make_learner
from .examples import examples

pytestmark = pytest.mark.filterwarnings('ignore')

ALLOCATIONS = [global_, uniform, erk, lamp]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPARSITIES = st.one_of(st.floats(0, .9999), st.sampled_from([0., .5, .9, .99]))
SEEDS = st.integers(0, 2**64)

@st.composite
def shapes(draw):
    "Sizes of the weights of some layers: linear ones, and convolutions with a square kernel"
    size = st.integers(1, 9)
    linear, conv = st.tuples(size, size), st.tuples(size, size, st.just(3), st.just(3))
    return draw(st.lists(st.one_of(linear, conv), min_size=1, max_size=4))

def layer(shape):
    "A layer whose weight has this shape"
    return nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])

class Any(nn.Module):
    "Layers of any shape, and a loss that depends on every number in them; the input is only counted"
    def __init__(self, shapes):
        super().__init__()
        self.layers = nn.ModuleList(map(layer, shapes))
        self.out = nn.Parameter(torch.zeros(4, device='cpu'))
    def forward(self, x):
        total = sum(((p.double() - .3)**2).sum() + p.double().sin().sum() for p in self.layers.parameters())
        return (self.out*total.to(self.out.dtype)).expand(len(x), 4)

VALUES = {'normal': torch.randn_like, 'tiny and large': lambda w: torch.randn_like(w)**9,
          'all equal': lambda w: torch.full_like(w, -.5),
          'few values': lambda w: torch.randint_like(w, 1, 4)/4}

@st.composite
def networks(draw, dtypes=FLOATS):
    "A network, its numbers and its dtype; no weight is 0"
    net, dtype = Any(draw(shapes())), draw(st.sampled_from(dtypes))
    kind = VALUES[draw(st.sampled_from([*VALUES]))]
    with seeded(draw(SEEDS)), torch.no_grad():
        for w in weights(net).values():
            largest = min(torch.finfo(dtype).max, torch.finfo(w.dtype).max)
            w.copy_(kind(w).clamp(-largest, largest))
            w[w.to(dtype) == 0] = 1
    return net.to(dtype)

def total(ws): return sum(w.numel() for w in ws.values())
def count(tensors): return sum(int(t.count_nonzero()) for t in tensors.values())
def copies(ws): return {n: w.detach().clone() for n, w in ws.items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

# counts, idempotence, what is left alone

@examples(40)
@given(networks(), SPARSITIES, st.sampled_from(ALLOCATIONS))
def test_pruning_counts_and_leaves_the_rest_alone(net, p, allocation):
    before = copy.deepcopy(net.state_dict())
    learn = make_learner(model=net)
    cb = learn.prune(p, allocation=allocation)
    ws = weights(net)
    assert total(ws) - count(ws) == round(p*total(ws)) == total(ws) - count(cb.masks)
    assert all(torch.equal(w, before[n].masked_fill(~cb.masks[n], 0)) for n, w in ws.items())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items() if n not in ws)

@examples(25)
@given(networks(), SPARSITIES, st.floats(0, .99), st.sampled_from(ALLOCATIONS))
def test_pruning_again_is_nothing_and_further_is_nested(net, p, further, allocation):
    learn = make_learner(model=net)
    first = learn.prune(p, allocation=allocation).masks
    state = copies(weights(net))
    again = learn.prune(p, allocation=allocation).masks
    assert same(first, again) and same(copies(weights(net)), state)
    q = p + (1 - p)*further*.999
    later = learn.prune(q, allocation=allocation).masks
    assert count(later) == kept(total(state), q) and all((later[n] <= first[n]).all() for n in first)

@examples(25)
@given(networks(), SPARSITIES, st.sampled_from(ALLOCATIONS), SEEDS, st.floats(0, 2))
def test_a_noisy_draw_counts_and_can_be_repeated(net, p, allocation, seed, sigma):
    ws = weights(net)
    before = copies(ws)
    masks, noisy = stochastic_prune(ws, p, sigma, seed, allocation=allocation)
    again = stochastic_prune(ws, p, sigma, seed, allocation=allocation)
    assert count(masks) == kept(total(ws), p) and same(copies(ws), before)
    assert same(masks, again[0]) and same(noisy, again[1])
    assert all(noisy[n].dtype == w.dtype for n, w in ws.items())

# zeros stay

OPTIMIZERS = [partial(SGD, mom=.9), Adam, partial(RMSProp, mom=.9)]

@examples(15)
@given(networks([torch.float32, torch.float64]), SPARSITIES, st.sampled_from(ALLOCATIONS),
       st.sampled_from(OPTIMIZERS), st.integers(1, 9), SEEDS)
def test_zeros_stay_and_the_rest_trains(net, p, allocation, opt, n, seed):
    learn = make_learner(model=net, opt_func=opt, wd=.1, metrics=[], bs=32)
    learn.loss_func = lambda out, y: out.float().sum()
    with torch.no_grad(): net.out.fill_(.01)
    cb = PruneCB(p, allocation=allocation, schedule=gradual(n=n), seed=seed)
    learn.fit(1, .01, cbs=cb)
    before = copies(weights(net))
    learn.fit(1, .01)
    assert total(before) - count(cb.masks) == round(p*total(before)) == total(before) - count(weights(net))
    assert all((w != before[n])[cb.masks[n]].any() or not cb.masks[n].any() for n, w in weights(net).items())

@examples(10)
@given(SPARSITIES, SEEDS, st.integers(2, 9), st.floats(.3, 1), st.floats(0, .3), st.booleans())
def test_drop_pruning_lands_on_its_target(p, seed, n, away, back, exact):
    how = dict(schedule=gradual(n=n), seed=seed % 2**63, exact=exact)
    try: cb = DropPruning(p, away, lambda t: back*(1 - t), **how)
    except ValueError: assume(False)                            # a schedule that can't be followed is refused
    learn = make_learner(bs=32)
    learn.fit(1, .01, cbs=cb)
    assert total(cb.masks) - count(cb.masks) == round(p*480) == 480 - count(weights(learn.model))
    assert all(m.kept == count({'': cb.masks[m.layer]}) for m in cb.moves[-1].values())

# round trips

def bits(t): return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize])
def same_bits(a, b): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))

@examples(40)
@given(networks(), SPARSITIES, st.sampled_from(ALLOCATIONS))
def test_a_sparse_file_is_the_network(tmp_path_factory, net, p, allocation):
    ws, path = weights(net), tmp_path_factory.getbasetemp()/'net.safetensors'
    apply_(ws, allocation(magnitude(ws), p))
    state = load_sparse(save_sparse(net, path))
    assert state.keys() == net.state_dict().keys()
    assert all(same_bits(t, state[n]) for n, t in net.state_dict().items())
    assert all(same_bits(unpack(*pack(w), list(w.shape), w.dtype), w.detach()) for w in ws.values())

@examples(25)
@given(networks(), SPARSITIES)
def test_the_report_says_what_the_weights_say(net, p):
    ws = weights(net)
    apply_(ws, global_(magnitude(ws), p))
    report, size = table(net), sizes(net)
    n, everything = total(ws), sum(t.numel() for t in net.parameters())
    assert all(report.loc[name, 'kept'] == count({'': w}) for name, w in ws.items())
    assert report.loc['prunable weights', 'kept'] == count(ws) == n - round(p*n)
    assert report.loc['prunable weights', 'sparsity'] == pytest.approx(sparsity(ws))
    assert report.loc['all parameters', 'weights'] == size['parameters'] == everything
    assert report.loc['all parameters', 'kept'] == everything - round(p*n)
    assert size['nonzeros'] == sum(int(t.count_nonzero()) for t in net.parameters())

@examples(15)
@given(networks([torch.float32]), st.lists(st.floats(0, .99), min_size=1, max_size=5), st.integers(1, 4))
def test_members_are_what_copies_are(net, ps, chunk):
    ws = weights(net)
    members = [apply_(copies(ws), global_(magnitude(ws), p)) for p in ps]
    with torch.no_grad(): net.out.fill_(.1)
    x = torch.zeros(3, 12, device='cpu')
    def value(out, y): return out[:, 0]
    def of_a_copy(member):
        other = copy.deepcopy(net)
        other.load_state_dict({**net.state_dict(), **member})
        return other(x)[:, 0].double().mean().item()
    found = evaluate_population(net, members, [(x, x[:, 0])], value, chunk).tolist()
    assert found == [of_a_copy(m) for m in members]

# the same from PyTorch

def distinct(net, seed):
    "Give every weight of a network another size"
    ws, gen = weights(net), generator(seed, 'cpu')
    sizes = (torch.randperm(total(ws), generator=gen, device='cpu') + 1).float()
    signs = torch.randint(0, 2, sizes.shape, generator=gen, device='cpu')*2 - 1
    with torch.no_grad():
        for w, part in zip(ws.values(), (sizes*signs/total(ws)).split([w.numel() for w in ws.values()])):
            w.copy_(part.view(w.shape))
    return net

@examples(40)
@given(shapes(), SPARSITIES, SEEDS)
def test_global_masks_are_those_of_torch(shapes, p, seed):
    net = distinct(Any(shapes), seed)
    ours = global_(magnitude(weights(net)), p)
    prune.global_unstructured([(m, 'weight') for m in net.layers], prune.L1Unstructured, amount=p)
    theirs = [m.weight_mask.bool() for m in net.layers]
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs))

@examples(40)
@given(shapes(), SPARSITIES, SEEDS)
def test_masks_of_one_layer_are_those_of_torch(shapes, p, seed):
    net = distinct(Any(shapes[:1]), seed)
    ours, = uniform(magnitude(weights(net)), p).values()
    assert torch.equal(ours, prune.l1_unstructured(net.layers[0], 'weight', amount=p).weight_mask.bool())

# the same from a formula

@examples(60)
@given(shapes(), SPARSITIES, SEEDS)
def test_shares_of_layers_are_closed_forms(shapes, p, seed):
    ws = weights(distinct(Any(shapes), seed))
    k, n = kept(total(ws), p), total(ws)
    even = {name: k*w.numel()/n for name, w in ws.items()}
    by_shape = {name: k*sum(w.shape)/sum(sum(v.shape) for v in ws.values()) for name, w in ws.items()}
    for allocation, share in ((uniform, even), (erk, by_shape)):
        masks = allocation(magnitude(ws), p)
        if any(share[name] > w.numel() for name, w in ws.items()): continue         # a full layer gives
        assert all(abs(count({'': masks[name]}) - share[name]) < 1 for name in ws)

@examples(40)
@given(shapes(), SPARSITIES, SEEDS)
def test_lamp_is_its_definition(shapes, p, seed):
    ws = copies(weights(distinct(Any(shapes), seed).double()))
    def share(w):
        "Each weight's part of what is left when all smaller ones are gone, one by one"
        sq = w.flatten()**2
        return torch.stack([x/sq[sq >= x].sum() for x in sq]).view(w.shape)
    defined = {n: share(w) for n, w in ws.items()}
    found = lamp_score(ws)
    assert all(torch.allclose(found[n], defined[n], rtol=1e-9) for n in ws)
    assert count(lamp(magnitude(ws), p)) == kept(total(ws), p)

@examples(30)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), SEEDS)
def test_synflow_of_two_layers_is_a_product(a, b, c, seed):
    with seeded(seed): net = nn.Sequential(nn.Linear(a, b), nn.Linear(b, c)).double()
    first, second = (net[i].weight.detach().abs() for i in (0, 1))
    R = (second @ first).sum()
    found = synflow(weights(net), net, ((torch.zeros(1, a).double(),), ()))
    assert torch.allclose(found['0.weight'].double(), first*second.sum(0)[:, None]/R, rtol=1e-5)
    assert torch.allclose(found['1.weight'].double(), second*first.sum(1)/R, rtol=1e-5)

@examples(30)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), SEEDS)
def test_snip_of_a_linear_network_is_a_formula(n_in, n_out, n, seed):
    with seeded(seed):
        net = nn.Linear(n_in, n_out).double()
        x, y = torch.randn(n, n_in).double(), torch.randn(n, n_out).double()
    w, error = net.weight.detach(), (net(x) - y).detach()
    gradient = 2*error.T @ x/error.numel()
    found = snip(weights(net), net, ((x,), (y,)), F.mse_loss)['weight'].double()
    assert torch.allclose(found, (w*gradient).abs(), rtol=1e-4, atol=1e-7)

@examples(60)
@given(st.integers(1, 60), st.floats(.1, 9), st.floats(0, .5), st.floats(.5, 1))
@example(14, 1., .3246352506929045, 1.)     # rounding would carry the last position beyond 1
def test_a_gradual_schedule_is_its_formula(n, power, start, end):
    s = gradual(start, end, n, power)
    for i, (at, progress) in enumerate(zip(s.at, s.progress)):
        assert math.isclose(at, start + (end - start)*i/max(n - 1, 1), abs_tol=1e-12)
        assert math.isclose(progress, 1 - (1 - (i + 1)/n)**power, abs_tol=1e-12)
    assert s(1.) == 1 and s(start - .01) == 0

@examples(60)
@given(st.integers(1, 400), st.data(), SEEDS)
def test_a_subset_has_its_size_and_no_member_twice(n, data, seed):
    k = data.draw(st.integers(0, n))
    places = sample_exactly(n, k, generator(seed, 'cpu'))
    assert len(places) == k == len(set(places.tolist())) and places.tolist() == sorted(places.tolist())
    assert not k or 0 <= places.min() and places.max() < n

@examples(200)
@given(st.integers(0, 10**15), SPARSITIES)
@example(5, .5)
def test_what_is_kept_and_what_is_removed_are_all(n, p):
    assert kept(n, p) + round(p*n) == n and 0 <= kept(n, p) <= n
