"`prunelab.sampling`: counts, uniformity, independence, and what the generator is used for."
import numpy as np
import pytest
import torch
from prunelab.core import generator
from prunelab.sampling import sample_exactly, sample_indices, sample_subset

def gen(device, seed=0): return generator(seed, device)

def frequencies(draw, n, times, device):
    "Which of `n` places each of many draws hits: (times, n)"
    g, hits = gen(device), torch.zeros(times, n)
    for row in hits: row[draw(g).cpu()] = 1
    return hits

# each with probability q

@pytest.mark.parametrize('q', [.02, .09, .11, .6])
def test_every_place_is_hit_equally_often(device, q):
    hits = frequencies(lambda g: sample_indices(80, q, g), 80, 2500, device)
    z = (hits.mean(0) - q)/(q*(1 - q)/2500)**.5
    assert z.abs().max() < 4.5 and .7 < z.std() < 1.3

@pytest.mark.parametrize('q', [.02, .09, .11, .6])
def test_sizes_are_binomial(device, q):
    sizes = frequencies(lambda g: sample_indices(80, q, g), 80, 2500, device).sum(1)
    variance = 80*q*(1 - q)
    assert abs(sizes.mean() - 80*q) < 5*(variance/2500)**.5
    assert abs(sizes.var()/variance - 1) < .2

@pytest.mark.parametrize('q', [.09, .4])
def test_neighbours_are_independent(device, q):
    hits = frequencies(lambda g: sample_indices(80, q, g), 80, 2500, device)
    both = (hits[:, :-1]*hits[:, 1:]).mean()
    assert abs(both - q*q) < 5*q/(80*2500)**.5

@pytest.mark.parametrize('q', [1e-12, 1e-4, .05, .5, 1])
def test_places_ascend_and_are_in_range(device, q):
    places = sample_indices(10_000, q, gen(device))
    assert places.dtype == torch.int64 and places.device.type == torch.device(device).type
    assert (places.diff() > 0).all() and (places >= 0).all() and (places < 10_000).all()

@pytest.mark.parametrize('n, q, hits', [(5, 0, 0), (5, 1, 5), (0, .05, 0), (0, .5, 0), (0, 1, 0)])
def test_none_and_all(device, n, q, hits): assert len(sample_indices(n, q, gen(device))) == hits

@pytest.mark.parametrize('q', [-.1, 1.1, float('nan')])
def test_no_probability(q):
    with pytest.raises(ValueError, match='from 0 to 1'): sample_indices(5, q, generator(0, 'cpu'))

# exactly k

@pytest.mark.parametrize('n, k', [(5, 2), (30, 1), (30, 29), (30, 30), (1000, 400)])
def test_exactly_k_ascending(device, n, k):
    for seed in range(20):
        places = sample_exactly(n, k, gen(device, seed))
        assert len(places) == k and (places.diff() > 0).all() and 0 <= places[0] and places[-1] < n

def test_every_subset_is_equally_likely(device):
    g, counts = gen(device), {}
    for _ in range(5000):
        pair = tuple(sample_exactly(5, 2, g).tolist())
        counts[pair] = counts.get(pair, 0) + 1
    chi_squared = sum((c - 500)**2/500 for c in counts.values())
    assert len(counts) == 10 and chi_squared < 35       # 9 degrees of freedom

def test_a_large_exact_subset_prefers_no_place(device):
    hits = frequencies(lambda g: sample_exactly(400, 3, g), 400, 8000, device)
    halves = hits[:, :200].sum()/hits.sum()
    assert abs(halves - .5) < 5*.5/(3*8000)**.5

def test_too_few_are_drawn_again(device, monkeypatch):
    real, calls = sample_indices, []
    def too_few_at_first(n, q, g):
        calls.append(q)
        return real(n, q, g)[:0 if len(calls) == 1 else None]
    monkeypatch.setattr('prunelab.sampling.sample_indices', too_few_at_first)
    assert len(sample_exactly(50, 5, gen(device))) == 5 and len(calls) == 2

@pytest.mark.parametrize('k', [-1, 6])
def test_no_count(k):
    with pytest.raises(ValueError, match=f'cannot choose {k} of 5'): sample_exactly(5, k, generator(0, 'cpu'))

# from a dict of masks

@pytest.fixture
def eligible(device):
    "Three tensors: some places, none, and all"
    some = torch.rand(40, 50, generator=generator(0, 'cpu')) < .3
    masks = {'some': some, 'none': torch.zeros(7).bool(), 'all': torch.ones(6, 5).bool()}
    return {n: m.to(device) for n, m in masks.items()}

def count(d): return sum(int(m.sum()) for m in d.values())

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('q', [0, .03, .5, 1])
def test_only_eligible_ones_are_chosen(eligible, q, exact):
    chosen = sample_subset(eligible, q, 1, exact)
    assert list(chosen) == list(eligible)
    for n, m in eligible.items():
        assert chosen[n].dtype == torch.bool and chosen[n].shape == m.shape and not (chosen[n] & ~m).any()
    expected = q*count(eligible)
    if exact or q in (0, 1): assert count(chosen) == round(expected)
    else: assert abs(count(chosen) - expected) < 5*(expected*(1 - q))**.5

@pytest.mark.parametrize('exact', [False, True])
def test_eligible_places_are_chosen_equally_often(eligible, exact):
    times, q = 800, .2
    total = sum(torch.cat([m.flatten() for m in sample_subset(eligible, q, (2, i), exact).values()]).float()
                for i in range(times))
    may = torch.cat([m.flatten() for m in eligible.values()])
    rate = round(q*count(eligible))/count(eligible) if exact else q
    z = (total[may]/times - rate)/(rate*(1 - rate)/times)**.5
    assert not total[~may].any() and z.abs().max() < 5 and .9 < z.std() < 1.1

def test_layers_share_an_exact_number_at_random(eligible):
    sizes = {int(sample_subset(eligible, .1, i, exact=True)['all'].sum()) for i in range(60)}
    assert len(sizes) > 3

def test_layout_does_not_matter():
    m = (torch.rand(8, 4, 3, 3, generator=generator(0, 'cpu')) < .5)
    other = m.to(memory_format=torch.channels_last)
    assert torch.equal(sample_subset({'w': m}, .5, 3)['w'], sample_subset({'w': other}, .5, 3)['w'])

# the generator

def test_a_seed_is_a_draw(eligible):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b, c = (sample_subset(eligible, .3, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert all(torch.equal(a[n], b[n]) for n in eligible) and any((a[n] ^ c[n]).any() for n in eligible)
    assert torch.equal(state, torch.get_rng_state())

def test_a_generator_goes_on(eligible, device):
    g = gen(device)
    a, b = (sample_subset(eligible, .3, g) for _ in range(2))
    assert any((a[n] ^ b[n]).any() for n in eligible)

def test_the_cost_follows_the_hits():
    "A million places and a thousand hits take less than three thousand numbers"
    g, other = generator(0, 'cpu'), generator(0, 'cpu')
    sample_indices(1_000_000, .001, g)
    used = next(i for i in range(1, 20_000) if _after(other, i, g))
    assert used < 3000

def _after(other, i, g):
    "Has `other`, one double further with each call, arrived at the state of `g`?"
    torch.rand(1, dtype=torch.float64, generator=other)
    return torch.equal(other.get_state(), g.get_state())

def test_numpy_agrees_on_the_distances():
    places = sample_indices(2_000_000, .01, generator(0, 'cpu')).numpy()
    distance = np.diff(places)
    for j in (1, 10, 50, 200):
        expected = .99**j
        assert abs((distance > j).mean() - expected) < 5*(expected*(1 - expected)/len(distance))**.5
