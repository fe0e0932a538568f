"`prunelab.tails`: known parameters come back, SciPy agrees, and what cannot be fitted is refused"
import subprocess
import sys
from functools import partial
from itertools import combinations
from math import inf, log, nan
import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.special import gamma
from prunelab.core import generator
from prunelab.tails import GEV, GPD, fit_gev, fit_gpd, fit_gumbel, ks, l_moments
from prunelab.tails import mean_excess, p_value, qq, solve_shape

def uniform(*size, seed=0):
    gen = generator(seed, 'cpu')
    return torch.rand(*size, generator=gen, dtype=torch.float64, device='cpu').clamp_(1e-12)

def draw(law, *size, seed=0): return law.quantile(uniform(*size, seed=seed))

def close(a, b, eps=1e-9):
    np.testing.assert_allclose(np.asarray(torch.as_tensor(a).cpu()), np.asarray(b), rtol=eps, atol=eps)

def peer(law):
    "SciPy's law, by its own convention of the sign"
    xi, at, scale = law.xi.item(), law.location.item(), law.scale.item()
    return stats.genextreme(-xi, at, scale) if isinstance(law, GEV) else stats.genpareto(xi, at, scale)

XI = [-1.5, -.3, -1e-5, 0., 1e-9, .2, .8]
LAWS = [GEV(xi, 1., .5) for xi in XI] + [GPD(xi, 1., .5, .1) for xi in XI]

@pytest.mark.parametrize('law', LAWS, ids=str)
def test_scipy_agrees_on_probabilities_and_quantiles(law):
    x = np.concatenate([np.linspace(-3, 9, 97), [1e6, -1e6]])
    p = np.array([1e-6, .01, .3, .5, .9, .999, 1 - 1e-9])
    near_0 = abs(law.xi) < 1e-4                             # where SciPy loses digits
    close(law.cdf(x), peer(law).cdf(x), 1e-7 if near_0 else 1e-12)
    close(law.quantile(p), peer(law).ppf(p), 1e-6)
    close(law.cdf(law.quantile(p)), p, 1e-9)
    assert law.cdf(torch.tensor([-inf, inf], dtype=torch.float64)).tolist() == [0, 1] and law.cdf(nan).isnan()

def test_gumbel_is_the_limit():
    x = np.linspace(-3, 9, 50)
    close(GEV(0., 1., .5).cdf(x), stats.gumbel_r.cdf(x, 1, .5), 1e-11)
    close(GPD(0., 1., .5).cdf(x), stats.expon.cdf(x, 1, .5), 1e-11)

@pytest.mark.parametrize('law', [LAWS[1], LAWS[3], LAWS[5], LAWS[8], LAWS[10]], ids=str)
def test_a_weight_keeps_its_dtype_device_and_shape(law, device):
    w = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator(0, 'cpu'), device='cpu')).to(device)
    before, q = w.detach().clone(), law.cdf(w)
    assert q.dtype == torch.float32 and q.device == w.device and q.shape == w.shape and not q.requires_grad
    assert torch.equal(w, before)
    close(q, peer(law).cdf(w.detach().cpu().double()), 2e-6)
    assert law.cdf(w.half()).dtype == torch.float32 and law.cdf(w.bfloat16()).dtype == torch.float32

def test_cdf_uses_one_tensor(monkeypatch):
    w, law, made = torch.rand(1000), GEV(-.1, .5, .2), []
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() == 1000:
                made.append(out.untyped_storage().data_ptr())
            return out
    with Watch(): law.cdf(w)
    assert len(set(made) - {w.untyped_storage().data_ptr()}) == 1

def test_return_levels():
    close(GEV(.1, 1., .5).return_level([2, 100]), stats.genextreme.ppf([.5, .99], -.1, 1, .5))
    close(GPD(.1, 1., .5, .05).return_level([100, 1000]), stats.genpareto.ppf([.8, .98], .1, 1, .5))
    for law, every in ((GEV(.1, 1., .5), 1), (GPD(.1, 1., .5, .05), 20)):
        with pytest.raises(ValueError, match='strictly between'): law.return_level(every)

def test_laws_are_checked_and_taken_apart():
    laws = GEV([.1, .2], 0., [1., 2.])
    assert [d.xi.item() for d in laws] == [.1, .2] and isinstance(laws[0], GEV)
    assert laws[1].scale == 2 and laws[1].mu == 0
    assert laws.xi.dtype == torch.float64 and laws[:, None].cdf(np.zeros((2, 5))).shape == (2, 5)
    with pytest.raises(AttributeError): laws.xi = 0
    for bad in ((0., 0., 0.), (0., 0., -1.), (nan, 0., 1.), (0., inf, 1.), (0., 0., [1., 0.]),
                ([0., nan], 0., 1.)):
        with pytest.raises(ValueError, match='scale is above 0'): GEV(*bad)
    for p in (0., 1., -.1, 1.1, nan):
        with pytest.raises(ValueError, match='strictly between'): laws.quantile(p)

# Moments

def brute(x):
    "L-moments from the means of the largest of all pairs, triples, quadruples"
    b = [np.mean([max(c) for c in combinations(x, r)])/r for r in (1, 2, 3, 4)]
    l2 = 2*b[1] - b[0]
    return [b[0], l2, (6*b[2] - 6*b[1] + b[0])/l2, (20*b[3] - 30*b[2] + 12*b[1] - b[0])/l2]

def test_moments_by_counting(device):
    x = uniform(12).mul_(5).sub_(2)
    close(l_moments(x.to(device)), [*brute(x.tolist()), 1])
    many = torch.cat([x + 3, torch.linspace(-9, .9, 30, dtype=torch.float64)])
    l1, *rest = brute((x + 3).tolist())
    close(l_moments(many.to(device), 1.), [l1 - 1, *rest, 12/42])

def test_moments_of_small_weights_and_far_ones():
    x = uniform(50)
    l1, *rest = l_moments(x)[:4].tolist()
    close(l_moments(1e-6*x)[:4], [1e-6*l1, 1e-6*rest[0], *rest[1:]], 1e-12)
    close(l_moments(x + 1e6)[1:4], rest, 1e-8)

@pytest.mark.parametrize('fit', [fit_gev, fit_gumbel, partial(fit_gpd, threshold=.4)])
def test_rows_and_lists_are_what_each_is_alone(fit, device):
    xs = uniform(3, 60).to(device)
    rows, samples = fit(xs), [xs[0], xs[1, :40], xs[2].float()]
    ragged = fit(samples)
    for k in vars(rows):
        v = getattr(rows, k)
        assert v.shape == (3,) and v.dtype == torch.float64 and v.device == xs.device
        close(v, [getattr(fit(x), k).item() for x in xs], 1e-12)
        close(getattr(ragged, k), [getattr(fit(x), k).item() for x in samples], 1e-12)
    assert fit(xs.view(1, 3, 60)).xi.shape == (1, 3)

def test_a_fit_leaves_the_sample_alone():
    x = uniform(100).requires_grad_()
    before = x.detach().clone()
    for f in (fit_gev, fit_gumbel, lambda x: fit_gpd(x, .2)): assert not f(x).xi.requires_grad
    ks(x, fit_gev(x))
    qq(x, fit_gev(x))
    mean_excess(x)
    assert torch.equal(x, before)

def test_thresholds_of_one_sample():
    x, us = uniform(500), [0., .3, .9]
    laws = fit_gpd(x, us)
    for law, u in zip(laws, us):
        alone = fit_gpd(x, u)
        for k in vars(law): assert getattr(law, k).item() == pytest.approx(getattr(alone, k).item())
        assert law.threshold == u
        assert law.rate == (x > u).double().mean()

@pytest.mark.parametrize('t3', [-.97, -.8, -.3, .1, .16992, 2*log(3)/log(2) - 3, .17, .5, .9, .97])
def test_the_shape_solves_its_equation(t3):
    "A sample with this L-skewness, against SciPy's solver, also where the shape is 0"
    base, sign = (torch.arange(40, dtype=torch.float64, device='cpu') + .5)/40, 1 if t3 > 0 else -1
    x = sign*base**optimize.brentq(lambda a: l_moments(base**a)[2].item() - abs(t3), .3, 300, xtol=1e-14)
    l1, l2, got, *_ = l_moments(x).tolist()
    assert got == pytest.approx(t3, abs=1e-9)
    def f(k):
        ratio = np.expm1(-k*log(3))/np.expm1(-k*log(2)) if k else log(3)/log(2)
        return ratio - (3 + got)/2
    k = optimize.brentq(f, -.99999, 40, xtol=1e-14)
    law = fit_gev(x)
    assert law.xi.item() == pytest.approx(-k, abs=2e-6)
    g, h = ((gamma(1 + k) - 1)/k, (1 - 2**-k)/k) if abs(k) > 1e-4 else (-np.euler_gamma, log(2))
    s = l2/(gamma(1 + k)*h)
    assert law.scale.item() == pytest.approx(s, rel=1e-4)
    assert law.mu.item() == pytest.approx(l1 + s*g, abs=1e-4*s)

# Known parameters

@pytest.mark.parametrize('xi', [-1., -.4, -.1, 0., .1, .3])
def test_gev_recovers_its_parameters(xi, device):
    found = fit_gev(draw(GEV(xi, 3., .2), 1000, 400, seed=1).to(device))
    for v, true, unit in ((found.xi, xi, 1), (found.mu, 3, .2), (found.scale, .2, .2)):
        assert abs(v.mean().item() - true)/unit < 4/400 and .5 < v.std().item()/unit*400**.5 < 3
    one = fit_gev(draw(GEV(xi, 3., .2), 400_000, seed=2))
    close([one.xi, (one.mu - 3)/.2, one.scale/.2], [xi, 0, 1], .01)

def test_gumbel_recovers_its_parameters():
    found = fit_gumbel(draw(GEV(0., 3., .2), 1000, 400, seed=3))
    assert (found.xi == 0).all() and abs(found.mu.mean() - 3) < .001 and abs(found.scale.mean() - .2) < .001
    assert found.scale.std()*400**.5/.2 == pytest.approx(.896, rel=.1)          # sqrt(.8046), Phien 1987

@pytest.mark.parametrize('xi', [-.8, -.3, 0., .1, .25])
def test_gpd_recovers_its_parameters(xi):
    n, found = 400, fit_gpd(draw(GPD(xi, 3., .2), 1000, 400, seed=4), 3.)
    k = -xi
    sd = ((1 + k)*(2 + k)**2*(1 + k + 2*k*k)/((1 + 2*k)*(3 + 2*k)*n))**.5       # Hosking and Wallis 1987
    assert abs(found.xi.mean().item() - xi) < .012 and abs(found.scale.mean().item()/.2 - 1) < .01
    assert found.xi.std().item() == pytest.approx(sd, rel=.12)
    assert (found.rate == 1).all() and (found.threshold == 3).all()

def test_maximum_likelihood_agrees():
    x = draw(GEV(-.15, 1.6, .45), 20_000, seed=5)
    law, (c, mu, scale) = fit_gev(x), stats.genextreme.fit(x.numpy())
    close([law.xi, law.mu, law.scale], [-c, mu, scale], .015)
    y = draw(GEV(0., 1., .5), 20_000, seed=6)
    g, (mu, scale) = fit_gumbel(y), stats.gumbel_r.fit(y.numpy())
    close([g.mu, g.scale], [mu, scale], .015)
    z = draw(GPD(.15, 0., .5), 20_000, seed=7)
    p, (c, _, scale) = fit_gpd(z, 0.), stats.genpareto.fit(z.numpy(), floc=0)
    close([p.xi, p.scale], [c, scale], .03)

def test_location_and_scale_go_along():
    x = uniform(200)
    a, b = fit_gev(x), fit_gev(3*x - 7)
    close([b.xi, b.mu, b.scale], [a.xi, 3*a.mu - 7, 3*a.scale], 1e-9)

# What cannot be fitted

TEN = torch.arange(10.)
@pytest.mark.parametrize('fit', [fit_gev, fit_gumbel, l_moments, partial(fit_gpd, threshold=-1.)])
@pytest.mark.parametrize('x, says', [
    (TEN[:9], 'the sample has fewer than 10 values'),
    (TEN[:0], 'fewer than 10'),
    (torch.full((50,), .1), 'is constant'),
    (torch.cat([torch.zeros(50), TEN[1:2]]), 'is constant, at least but for one'),
    (torch.cat([TEN, torch.tensor([nan])]), 'NaN or infinity'),
    (torch.cat([TEN, torch.tensor([inf])]), 'NaN or infinity'),
    (torch.stack([TEN, TEN*0]), r'sample \[1\] of the batch is constant'),
    ([TEN, TEN, TEN[:3]], 'sample 2 of the list: the sample has fewer'),
    ([TEN, TEN*nan], 'sample 1 of the list')])
def test_refused(fit, x, says):
    with pytest.raises(ValueError, match=says): fit(x)

def test_minus_infinity_is_refused():
    for fit in (fit_gev, fit_gumbel):
        with pytest.raises(ValueError, match='NaN or infinity'): fit(torch.cat([TEN, torch.tensor([-inf])]))

@pytest.mark.parametrize('n', [11, 50, 333])
@pytest.mark.parametrize('c', [.1, .3, 7., 1e-8])
def test_constant_samples_of_any_size_are_refused(c, n):
    for fit in (fit_gev, fit_gumbel, partial(fit_gpd, threshold=c/3)):
        with pytest.raises(ValueError, match='is constant'): fit(torch.full((n,), c, dtype=torch.float64))

def test_half_precision_is_sorted_as_it_is():
    for dtype in (torch.half, torch.bfloat16):
        x = uniform(100).to(dtype)
        assert fit_gev(x).xi == fit_gev(x.double()).xi

def test_a_high_threshold_is_refused():
    with pytest.raises(ValueError, match='lower threshold'): fit_gpd(uniform(100), .99)

@pytest.mark.parametrize('fit', [fit_gev, fit_gumbel, l_moments, partial(fit_gpd, threshold=-1.)])
@pytest.mark.parametrize('x, says', [
    (TEN.tolist(), r'number 0 has the shape \(\): pass a single sample as a tensor, torch.tensor\(x\)'),
    ([TEN, TEN.view(2, 5)], r'number 1 has the shape \(2, 5\)'),
    ([], 'is empty')])
def test_a_list_holds_samples(fit, x, says):
    with pytest.raises(ValueError, match=says): fit(x)

def test_one_number_is_no_sample():
    with pytest.raises(ValueError, match='one number is no sample'): fit_gev(torch.tensor(3.))

def test_a_p_value_below_the_threshold_is_refused():
    "A GPD says nothing about values below u, and the distance from it is meaningless there"
    x = draw(GPD(.2, 1., .5), 300, seed=12)
    with pytest.raises(ValueError, match=r'values are not above the threshold.*pass x\[x > u\]'):
        p_value(x, partial(fit_gpd, threshold=1.2), draws=9)
    assert p_value(x[x > 1.2], partial(fit_gpd, threshold=1.2), draws=9)[2] < 300

@pytest.mark.parametrize('xi', [-.9, -.3, 0., .3, .8])
def test_newton_ends_where_f_is_zero(xi):
    ratio = (1 - 3**xi)/(1 - 2**xi) if xi else log(3)/log(2)
    k = solve_shape(torch.tensor(2*ratio - 3, dtype=torch.float64))
    assert k.item() == pytest.approx(-xi, abs=2e-6)

# Looking

def test_qq_ranks_and_ranges(device):
    law, n = GEV(-.2, 1., .5), 50
    lo, mid, hi, seen = qq(x := draw(law, n, seed=8).to(device), law)
    assert torch.equal(seen, x.sort().values) and (lo < mid).all() and (mid < hi).all()
    i = np.arange(1, n + 1)
    for line, level in ((lo, .025), (mid, .5), (hi, .975)):
        close(line, peer(law).ppf(stats.beta.ppf(level, i, n + 1 - i)))
    *_, seen = qq(x := draw(law, 100_000, seed=9), law)
    assert len(seen) <= 200 and seen[0] == x.min() and seen[-1] == x.max()

def test_mean_excess_by_hand():
    x = uniform(300).mul_(4).sub_(2)
    u, e, se, m = mean_excess(x, [-3., 0., 1.5])
    for i, t in enumerate((-3., 0., 1.5)):
        y = x[x > t] - t
        assert m[i] == len(y) and e[i].item() == pytest.approx(y.mean().item())
        assert se[i].item() == pytest.approx(y.std().item()/len(y)**.5)
    u, e, se, m = mean_excess(x)
    assert len(u) == 40 and m.min() == 20 and m.max() == 299
    for t in (2., x.sort().values[-2].item()):
        with pytest.raises(ValueError, match='fewer than two'): mean_excess(x, [t])

# How far

@pytest.mark.parametrize('law', [GEV(-.2, 1., .5), GPD(.1, 1., .5)], ids=str)
def test_ks_is_scipys(law):
    xs = [draw(law, n, seed=n) for n in (30, 500)]
    want = [stats.kstest(x.numpy(), peer(law).cdf).statistic for x in xs]
    D, n = ks(xs[1], law)
    assert D.item() == pytest.approx(want[1]) and n == 500
    D, n = ks(xs, type(law)(*(v.expand(2) for v in vars(law).values())))
    close(D, want)
    assert n.tolist() == [30, 500]
    close(ks(torch.stack([xs[1], xs[1]]), law)[0], [want[1]]*2)
    with pytest.raises(ValueError): ks(xs, GEV([0., 0., 0.], 0., 1.))

def test_p_values_are_uniform_when_the_law_is_right():
    samples = draw(GEV(.1, 1., .5), 150, 60, seed=10)
    ps = np.array([p_value(x, draws=99, seed=i)[0] for i, x in enumerate(samples)])
    assert .005 < (ps <= .05).mean() < .12 and .35 < (ps <= .5).mean() < .65 and ps.min() >= .01

def test_p_values_see_a_wrong_law():
    x = draw(GEV(-.4, 1., .5), 1000, seed=11)
    assert p_value(x, fit_gumbel, draws=199)[0] == 1/200 and p_value(x, draws=199)[0] > .05
    assert p_value(draw(GPD(.2, 1., .5), 500, seed=12), partial(fit_gpd, threshold=1.), draws=199)[0] > .05
    no_gpd = draw(GEV(0., 1., .5), 500, seed=13).clamp(min=.3) + .001*uniform(500)
    assert p_value(no_gpd, partial(fit_gpd, threshold=.29), draws=199)[0] < .05

def test_p_value_takes_at_most_a_thousand_blocks(device):
    x = draw(GEV(0., 1., .5), 5000, seed=14).to(device)
    a, b, c = p_value(x, draws=19, seed=1), p_value(x, draws=19, seed=1), p_value(x, draws=19, seed=2)
    assert a == b and a[2] == 1000 and a[1] != c[1]
    p, D, n = p_value(x, draws=19, blocks=5000)
    assert n == 5000 and D == pytest.approx(ks(x, fit_gev(x))[0].item())
    with pytest.raises(ValueError, match='one sample'): p_value(x.view(5, 1000))

def test_p_value_counts_every_draw():
    "Also where the draws do not fit into one piece: a sample from far outside is never reached"
    x = draw(GEV(.3, 1., .5), 300_000, seed=15)
    assert p_value(x, fit_gumbel, draws=13, blocks=300_000)[0] == 1/14
    squares = torch.linspace(0, 1, 50, dtype=torch.float64).pow(2)
    assert p_value(squares, lambda x: GEV(0., 0., 1.), draws=13)[0] == 1/14

def test_the_global_random_state_is_untouched():
    state = torch.get_rng_state()
    p_value(uniform(100), draws=9)
    assert torch.equal(state, torch.get_rng_state())

def test_imports_without_vision():
    heavy = ('fastai.vision', 'fastai.vision.all', 'torchvision', 'scipy.stats')
    code = f"import sys, prunelab.tails; print([m for m in {heavy} if m in sys.modules])"
    cmd = [sys.executable, '-W', 'ignore', '-c', code]
    assert subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.strip() == '[]'
