"Every allocation is exact in total, and LAMP without a sort is LAMP."
import numpy as np
import pytest
import torch
from prunelab.allocation import erk, fill, global_, lamp, largest_remainder, open_range, proportional, \
    size_bins, uniform
from prunelab.core import generator
from prunelab.masks import kept
from prunelab.scores import lamp_score, magnitude

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF, NAN = float('inf'), float('nan')
def size(ws): return sum(w.numel() for w in ws.values())
def count(masks): return sum(int(m.sum()) for m in masks.values())
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

# counts

@pytest.mark.parametrize('allocation', [global_, uniform, erk, lamp])
def test_exact_for_any_shapes(allocation):
    rng = np.random.default_rng(0)
    for _ in range(40):
        shapes = [tuple(rng.integers(1, 12, rng.choice([2, 4]))) for _ in range(rng.integers(1, 6))]
        scores = {str(i): torch.rand(shape, device='cpu') for i, shape in enumerate(shapes)}
        p = float(rng.uniform(0, .999))
        masks = allocation(scores, p)
        assert count(masks) == kept(size(scores), p)
        assert all(m.shape == scores[n].shape and m.dtype == torch.bool for n, m in masks.items())

def test_largest_remainder_keeps_the_sum_and_stays_near():
    rng = np.random.default_rng(1)
    for _ in range(200):
        shares = rng.uniform(0, 50, rng.integers(1, 9))
        total = round(shares.sum())
        shares *= total/shares.sum()
        whole = largest_remainder(shares.tolist())
        assert sum(whole) == total and np.abs(np.array(whole) - shares).max() < 1 + 1e-9

def test_a_full_layer_gives_to_the_others():
    assert fill(12, [1, 1, 1], [10, 10, 2]) == [5, 5, 2]
    assert fill(12, [0, 1, 5], [10, 10, 2]) == [0, 10, 2]

@pytest.mark.parametrize('allocation', [global_, uniform, erk, lamp])
def test_what_is_masked_stays_masked(allocation):
    gen = generator(0, 'cpu')
    scores = {n: torch.rand(20, 10, generator=gen, device='cpu') for n in 'ab'}
    scores['a'][:18] = -INF                                     # 20 of 200 are left in this layer
    masks = allocation(scores, .6)
    assert count(masks) == 160 and not masks['a'][:18].any()

@pytest.mark.parametrize('allocation', [global_, uniform, erk, lamp])
def test_more_than_is_left_takes_the_first_of_what_is_masked(allocation):
    scores = {'a': torch.tensor([[-INF, 1., -INF, 2.]], device='cpu'),
              'b': torch.full((1, 4), -INF, device='cpu')}
    masks = allocation(scores, .25)
    assert count(masks) == 6 and masks['a'][0, 1] and masks['a'][0, 3]

def test_proportional_follows_the_numbers():
    scores = {n: torch.rand(10, 10, device='cpu') for n in 'abc'}
    masks = proportional(scores, [1, 2, 3], .8)
    assert [int(m.sum()) for m in masks.values()] == [10, 20, 30]

# LAMP

def normal(shape, gen): return torch.randn(shape, generator=gen, device='cpu')*.03
def ties(shape, gen): return torch.randint(-3, 4, shape, generator=gen, device='cpu')/7
def equal(shape, gen): return torch.full(shape, -.25, device='cpu')
def zeros(shape, gen): return normal(shape, gen)*torch.randint(2, shape, generator=gen, device='cpu')
def tiny(shape, gen): return normal(shape, gen)*1e-37
def mixed(shape, gen): return torch.where(normal(shape, gen) > 0, .1, normal(shape, gen))

def network(kind, dtype, seed):
    gen = generator(seed, 'cpu')
    scales = 1, 10, .1, 1
    shapes = (40, 30), (8, 4, 3, 3), (1, 1), (200, 70)
    return {str(i): (c*kind(shape, gen)).to(dtype) for i, (c, shape) in enumerate(zip(scales, shapes))}

def holding(scores, held): return {n: torch.where(held[n], s, -INF) for n, s in scores.items()}

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', [normal, ties, equal, zeros, tiny, mixed])
def test_lamp_makes_the_masks_of_its_score(kind, dtype):
    for seed in range(2):
        ws = network(kind, dtype, seed)
        for p in (0, .1, .5, .9, .97, .999, .9999):
            assert same(lamp(magnitude(ws), p), global_(lamp_score(ws), p))

@pytest.mark.parametrize('kind', [normal, ties, zeros])
@pytest.mark.parametrize('masked', [.2, .8])
def test_lamp_of_a_network_that_is_pruned_already(kind, masked):
    ws, gen = network(kind, torch.float32, 0), generator(5, 'cpu')
    held = {n: torch.rand(w.shape, generator=gen, device='cpu') >= masked for n, w in ws.items()}
    zeroed = {n: w*held[n] for n, w in ws.items()}
    for p in (masked/2, .5, .85, .98):
        expected = global_(holding(lamp_score(zeroed), held), p)
        assert same(lamp(holding(magnitude(zeroed), held), p), expected)

def test_lamp_of_layers_of_different_types():
    ws = network(normal, torch.float32, 0)
    ws = {n: w.to(dtype) for (n, w), dtype in zip(ws.items(), DTYPES)}
    assert same(lamp(magnitude(ws), .8), global_(lamp_score(ws), .8))

def test_lamp_in_another_layout():
    ws = network(ties, torch.float32, 0)
    def moved(w): return w.to(memory_format=torch.channels_last) if w.ndim == 4 else w.T.contiguous().T
    last = {n: moved(w) for n, w in ws.items()}
    assert same(lamp(magnitude(last), .8), lamp(magnitude(ws), .8))

def test_lamp_sorts_few_weights():
    sizes = magnitude({n: normal((300, 400), generator(i, 'cpu')) for i, n in enumerate('abc')})
    ranges = open_range({n: size_bins(s) for n, s in sizes.items()}, kept(size(sizes), .9))
    is_open = {n: (s > ranges[n][0]) & (s <= ranges[n][1]) for n, s in sizes.items()}
    assert 0 < count(is_open) < .03*size(sizes)

@pytest.mark.parametrize('bad', [NAN, INF, -1.])
def test_lamp_refuses_what_is_no_size_by_name(bad):
    scores = {'a': torch.ones(3, 3), 'b': torch.ones(3, 3)}
    scores['b'][1, 1] = bad
    with pytest.raises(ValueError, match=r"sizes.*\['b'\]"): lamp(scores, .5)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
def test_lamp_on_cuda():
    ws = network(ties, torch.float32, 0)
    on_gpu = lamp(magnitude({n: w.cuda() for n, w in ws.items()}), .8)
    assert same({n: m.cpu() for n, m in on_gpu.items()}, lamp(magnitude(ws), .8))

def test_erk_counts_the_kernels_dimensions():
    "Shares in proportion to the sum of all dimensions: 4 + 2 + 3 + 3 against 10 + 8 (Evci et al. 2020)"
    scores = {'conv': torch.arange(72.).view(4, 2, 3, 3), 'linear': torch.arange(80.).view(10, 8)}
    masks = erk(scores, 1 - 30/152)
    assert {n: int(m.sum()) for n, m in masks.items()} == {'conv': 12, 'linear': 18}
