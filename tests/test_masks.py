"Exact selection against sorting, for every floating type and every awkward value."
import numpy as np, pytest, torch
from prunelab.core import generator
from prunelab.masks import erk, global_, keep_top, kth_largest, largest_remainder, uniform

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
AWKWARD = [0., -0., float('inf'), -float('inf'), 1e-40, -1e-40, 6e-8, -6e-8, 65504., -65504., 1., -1., 1., 1.]

def scores(kind, dtype, seed):
    gen = generator(seed, 'cpu')
    shapes = [(37, 5), (8, 3, 3, 3), (1, 1), (300, 7)]
    draw = {'normal': lambda s: torch.randn(s, generator=gen, device='cpu'), 'positive': lambda s: torch.rand(s, generator=gen, device='cpu'),
            'ties': lambda s: torch.randint(-2, 3, s, generator=gen, device='cpu').float(), 'constant': lambda s: torch.full(s, -.5, device='cpu'),
            'awkward': lambda s: torch.tensor(AWKWARD, device='cpu')[torch.randint(len(AWKWARD), s, generator=gen, device='cpu')]}[kind]
    return {str(i): draw(s).to(dtype) for i, s in enumerate(shapes)}

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', ['normal', 'positive', 'ties', 'constant', 'awkward'])
def test_selection_is_what_sorting_says(kind, dtype):
    for seed in range(3):
        s = scores(kind, dtype, seed)
        flat = torch.cat([v.flatten() for v in s.values()])
        order = flat.sort(descending=True)[0]
        n = len(flat)
        for k in {1, 2, n//3, n//2, n - 1, n}:
            t, wanted, equal = kth_largest(s, k)
            assert t == order[k-1].item() and equal == (flat == order[k-1]).sum() and wanted == k - (flat > order[k-1]).sum()
            m = torch.cat([v.flatten() for v in keep_top(s, k).values()])
            assert m.sum() == k and (k == n or flat[m].min() >= flat[~m].max())
            ties = (flat == order[k-1]).nonzero().flatten()
            assert m[ties].tolist() == [True]*wanted + [False]*(equal - wanted)        # the earlier position first

def test_more_than_one_piece():
    gen = generator(0, 'cpu')
    s = {'a': torch.randint(5, (700, 1000), generator=gen, device='cpu').float(), 'b': torch.randint(5, (1 << 18,), generator=gen, device='cpu').float()}
    flat = torch.cat([v.flatten() for v in s.values()])
    for k in (1, 100_000, 500_000, 900_000):
        m = torch.cat([v.flatten() for v in keep_top(s, k).values()])
        assert m.sum() == k and flat[m].min() >= flat[~m].max()

def test_layouts_and_mixed_types():
    gen = generator(0, 'cpu')
    w = torch.randn(8, 4, 3, 3, generator=gen, device='cpu')
    plain, last = keep_top({'w': w}, 50)['w'], keep_top({'w': w.to(memory_format=torch.channels_last)}, 50)['w']
    assert torch.equal(plain, last)
    ones = {'w': torch.ones(8, 4, 3, 3, device='cpu').to(memory_format=torch.channels_last), 't': torch.ones(6, 5, device='cpu').T}
    assert sum(int(m.sum()) for m in keep_top(ones, 17).values()) == 17
    mixed = {'a': w.half(), 'b': w.bfloat16(), 'c': w.double()}
    assert sum(int(m.sum()) for m in keep_top(mixed, 101).values()) == 101

@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('sign', [1, -1])
def test_nan_is_refused_by_name(dtype, sign):
    bad = torch.tensor([1., float('nan')], device='cpu')*sign
    with pytest.raises(ValueError, match="'b'"): keep_top({'a': torch.ones(2, dtype=dtype, device='cpu'), 'b': bad.to(dtype)}, 2)

@pytest.mark.parametrize('budget', [global_, uniform, erk])
def test_budgets_are_exact_for_any_shapes(budget):
    rng = np.random.default_rng(0)
    for _ in range(40):
        s = {str(i): torch.rand(tuple(rng.integers(1, 12, rng.choice([2, 4]))), device='cpu') for i in range(rng.integers(1, 6))}
        n, p = sum(v.numel() for v in s.values()), float(rng.uniform(0, .999))
        masks = budget(s, p)
        assert sum(int(m.sum()) for m in masks.values()) == n - round(p*n)
        assert all(m.shape == s[k].shape and m.dtype == torch.bool for k, m in masks.items())

def test_largest_remainder():
    rng = np.random.default_rng(1)
    for _ in range(200):
        x = rng.uniform(0, 50, rng.integers(1, 9)); total = round(x.sum()); x *= total/x.sum()
        whole = largest_remainder(x.tolist())
        assert sum(whole) == total and np.abs(np.array(whole) - x).max() < 1 + 1e-9

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
@pytest.mark.parametrize('dtype', DTYPES)
def test_cuda_agrees_with_cpu(dtype):
    s = scores('ties', dtype, 0)
    on_gpu = keep_top({k: v.cuda() for k, v in s.items()}, 500)
    assert all(torch.equal(m, on_gpu[k].cpu()) for k, m in keep_top(s, 500).items())

def test_erk_counts_the_kernels_dimensions():
    "Shares in proportion to the sum of all dimensions: 4 + 2 + 3 + 3 against 10 + 8 (Evci et al. 2020)"
    scores = {'conv': torch.arange(72.).view(4, 2, 3, 3), 'linear': torch.arange(80.).view(10, 8)}
    masks = erk(scores, 1 - 30/152)
    assert {n: int(m.sum()) for n, m in masks.items()} == {'conv': 12, 'linear': 18}
