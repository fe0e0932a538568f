"Exact selection against sorting, for every floating type and every awkward value."
import pytest
import torch
from prunelab.core import generator
from prunelab.masks import Threshold, apply_, from_ordered_int, keep_top, kth_largest, ordered_int, sparsity

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INF, NAN = float('inf'), float('nan')
AWKWARD = [0., -0., INF, -INF, 1e-40, -1e-40, 6e-8, -6e-8, 65504., -65504., 1., -1., 1., 1.]
SHAPES = [(37, 5), (8, 3, 3, 3), (1, 1), (300, 7)]

def normal(shape, gen): return torch.randn(shape, generator=gen, device='cpu')
def positive(shape, gen): return torch.rand(shape, generator=gen, device='cpu')
def ties(shape, gen): return torch.randint(-2, 3, shape, generator=gen, device='cpu').float()
def constant(shape, gen): return torch.full(shape, -.5, device='cpu')
def awkward(shape, gen):
    which = torch.randint(len(AWKWARD), shape, generator=gen, device='cpu')
    return torch.tensor(AWKWARD, device='cpu')[which]

def draw(kind, dtype, seed):
    gen = generator(seed, 'cpu')
    return {str(i): kind(shape, gen).to(dtype) for i, shape in enumerate(SHAPES)}

def joined(tensors): return torch.cat([t.flatten() for t in tensors.values()])

# floats as ordered integers

@pytest.mark.parametrize('dtype', DTYPES)
def test_ordered_integers_sort_like_the_floats(dtype):
    x = joined(draw(awkward, dtype, 0))
    by_int = x[ordered_int(x).argsort()]
    assert torch.equal(by_int, x.sort().values)

@pytest.mark.parametrize('dtype', DTYPES)
def test_equal_floats_are_equal_integers(dtype):
    x = torch.tensor(AWKWARD, dtype=dtype, device='cpu')
    i = ordered_int(x)
    assert torch.equal(i[:, None] == i, x[:, None] == x)

@pytest.mark.parametrize('dtype', DTYPES)
def test_the_way_back(dtype):
    x = joined(draw(awkward, dtype, 1))
    assert torch.equal(from_ordered_int(ordered_int(x), dtype), x)

def test_no_floats():
    assert ordered_int(torch.zeros(0)).shape == (0,)

# the k-th largest

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', [normal, positive, ties, constant, awkward])
def test_kth_largest_is_what_sorting_says(kind, dtype):
    for seed in range(3):
        scores = draw(kind, dtype, seed)
        flat = joined(scores)
        falling, n = flat.sort(descending=True).values, len(flat)
        for k in {1, 2, n//3, n//2, n - 1, n}:
            value = falling[k - 1].item()
            above, equal = int((flat > value).sum()), int((flat == value).sum())
            assert kth_largest(scores, k) == Threshold(value, wanted=k - above, equal=equal)

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', [normal, positive, ties, constant, awkward])
def test_keep_top_keeps_the_first_of_equals(kind, dtype):
    for seed in range(3):
        scores = draw(kind, dtype, seed)
        flat = joined(scores)
        n = len(flat)
        for k in {1, 2, n//3, n//2, n - 1, n}:
            expected = torch.zeros(n, dtype=torch.bool, device='cpu')
            expected[flat.argsort(descending=True, stable=True)[:k]] = True
            assert torch.equal(joined(keep_top(scores, k)), expected)

def test_scores_of_more_than_one_piece():
    gen = generator(0, 'cpu')
    scores = {'a': torch.randint(5, (700, 1000), generator=gen, device='cpu').float(),
              'b': torch.randint(5, (1 << 18,), generator=gen, device='cpu').float()}
    flat = joined(scores)
    for k in (1, 100_000, 500_000, 900_000):
        mask = joined(keep_top(scores, k))
        assert mask.sum() == k and flat[mask].min() >= flat[~mask].max()

def test_the_layout_does_not_matter():
    w = torch.randn(8, 4, 3, 3, generator=generator(0, 'cpu'), device='cpu')
    plain, last = (keep_top({'w': t}, 50)['w'] for t in (w, w.to(memory_format=torch.channels_last)))
    assert torch.equal(plain, last)

def test_ties_in_any_layout_are_counted():
    ones = {'w': torch.ones(8, 4, 3, 3, device='cpu').to(memory_format=torch.channels_last),
            't': torch.ones(6, 5, device='cpu').T}
    assert joined(keep_top(ones, 17)).sum() == 17

def test_layers_of_different_types():
    w = torch.randn(8, 4, 3, 3, generator=generator(0, 'cpu'), device='cpu')
    mixed = {'a': w.half(), 'b': w.bfloat16(), 'c': w.double()}
    assert joined(keep_top(mixed, 101)).sum() == 101

# what is refused

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('sign', [1, -1])
def test_nan_is_refused_by_name(dtype, sign):
    bad = torch.tensor([1., NAN], device='cpu')*sign
    scores = {'a': torch.ones(2, dtype=dtype, device='cpu'), 'b': bad.to(dtype)}
    with pytest.raises(ValueError, match=r"\['b'\]"): keep_top(scores, 2)

@pytest.mark.parametrize('pattern', [0x7f800001, -0x7fffff])
def test_nan_whose_first_digit_is_that_of_infinity_is_refused(pattern):
    signalling = torch.tensor([pattern, 0], dtype=torch.int32, device='cpu').view(torch.float32)
    assert signalling[0].isnan()
    with pytest.raises(ValueError, match='not numbers'): keep_top({'a': signalling}, 1)

@pytest.mark.parametrize('k', [-1, 3])
def test_a_count_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f'cannot keep {k} of 2'): keep_top({'a': torch.ones(2)}, k)

# masks at work

def test_apply_leaves_other_names_alone():
    ws = {'a': torch.ones(3), 'b': torch.full((2,), NAN)}
    apply_(ws, {'a': torch.tensor([True, False, True])})
    assert ws['a'].tolist() == [1, 0, 1] and ws['b'].isnan().all()
    assert sparsity({'a': ws['a']}) == pytest.approx(1/3)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('dtype', DTYPES)
def test_cuda_agrees_with_cpu(dtype):
    scores = draw(ties, dtype, 0)
    on_gpu = keep_top({n: s.cuda() for n, s in scores.items()}, 500)
    assert all(torch.equal(m, on_gpu[n].cpu()) for n, m in keep_top(scores, 500).items())
