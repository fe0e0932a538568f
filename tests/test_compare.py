"Paired differences: known answers, both kinds of luck, and a rule that can say no."
import numpy as np, pytest, torch
from prunelab.lab.answers import pack
from prunelab.lab.compare import holm, paired, resampled_means, without_loss

def answers(rng, seeds, images, p): return [torch.from_numpy(rng.random(images) < p) for _ in range(seeds)]

def test_the_mean_is_that_of_the_table():
    a, b = [torch.tensor([True, True, False])], [torch.tensor([True, False, False])]
    assert paired(a, b).mean == pytest.approx(100/3)
    assert paired(b, a).mean == pytest.approx(-100/3)

def test_equal_methods_have_no_difference_and_no_uncertainty():
    a = answers(np.random.default_rng(0), 3, 100, .9)
    d = paired(a, a)
    assert (d.mean, d.low, d.high, d.se, d.p) == (0, 0, 0, 0, 1)

def test_the_standard_error_of_one_seed_is_that_of_the_images():
    rng = np.random.default_rng(0)
    a, b = answers(rng, 1, 5000, .9), answers(rng, 1, 5000, .9)
    d = (a[0].int() - b[0].int()).double()
    assert paired(a, b, draws=4000).se == pytest.approx(100*d.std().item()/5000**.5, rel=.08)

def test_seeds_that_differ_widen_the_interval():
    "One seed of four is ten points better: images alone would not notice how uncertain that is"
    rng = np.random.default_rng(0)
    b = answers(rng, 4, 5000, .8)
    a = [b[0] | torch.from_numpy(rng.random(5000) < .5), *b[1:]]
    d = paired(a, b)
    assert d.low <= 0 < d.mean          # a draw without the lucky seed shows nothing,
    assert d.high > 1.9*d.mean          # one that has it twice shows double

def test_swapped_arms_change_the_sign():
    rng = np.random.default_rng(0)
    a, b = answers(rng, 4, 2000, .9), answers(rng, 4, 2000, .8)
    d, r = paired(a, b), paired(b, a)
    assert d.low > 0 > r.high and d.p < .01

def test_packed_answers_are_understood():
    a, b = (answers(np.random.default_rng(i), 2, 50, .7) for i in (0, 1))
    assert paired([pack(r) for r in a], [pack(r) for r in b]) == paired(a, b)

def test_columns_without_a_difference_only_dilute():
    d = np.array([[1, 0, 0, 0], [1, 0, 0, 0]])
    means = resampled_means(d, 4000, np.random.default_rng(0))
    assert means.mean() == pytest.approx(.25, abs=.02) and set(np.round(means*4, 6)) <= {0., 1., 2., 3., 4.}

@pytest.mark.parametrize('a, b', [([torch.ones(3)], [torch.ones(4)]), ([torch.ones(3)]*2, [torch.ones(3)])])
def test_what_does_not_pair_is_refused(a, b):
    with pytest.raises(ValueError, match='same seeds and images'): paired(a, b)

def test_no_loss_needs_evidence():
    rng = np.random.default_rng(0)
    small, large = answers(rng, 3, 100, .9), answers(rng, 3, 50_000, .9)
    flipped = [r ^ torch.from_numpy(rng.random(len(r)) < .01) for r in small]
    assert not without_loss(small, flipped)[0]                    # too few images to show anything
    assert without_loss(large, large)[0]
    assert not without_loss(large, [r & torch.from_numpy(rng.random(len(r)) > .005) for r in large])[0]

def test_holm_by_hand():
    assert holm({'a': .01, 'b': .04, 'c': .03}) == pytest.approx({'a': .03, 'b': .06, 'c': .06})
    assert holm({'a': .9, 'b': .8}) == {'a': 1., 'b': 1.}
