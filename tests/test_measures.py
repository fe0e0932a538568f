"What the reproduction of paper 1 counts, on networks and images that are small enough to know the answer."
import copy
import inspect
from types import SimpleNamespace
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn
from torch.nn import functional as F
from prunelab import pareto
from prunelab.allocation import global_
from prunelab.callbacks import PruneCB
from prunelab.core import seeded, weights
from prunelab.lab import measures
from prunelab.lab.answers import tally, unpack
from prunelab.lab.data import DeviceLoader, Images
from prunelab.lab.measures import ALLOCATIONS, ARMS, PRUNERS, SCORES
from prunelab.lab.training import Dense, Recipe, learner
from prunelab.masks import apply_, sparsity
from prunelab.scores import magnitude
from prunelab.stochastic import StochasticPruning, stochastic_prune, threshold

GMP, BOTH = PRUNERS['GMP'], {'valid': None, 'test': None}

# A network whose answers are known: one linear layer that compares two pixels

def pixels(
    left, # Brightness of the left pixel of each image, 0 to 255
    right, # … of the right one
    y=None, # Labels; 1 where the right pixel is brighter if None
) -> Images:
    "Images of 1×2 pixels"
    x = torch.tensor([left, right], dtype=torch.uint8, device='cpu').T[:, None, None]
    y = (x[..., 1] > x[..., 0]).long().flatten() if y is None else torch.tensor(y, device='cpu')
    return Images(x.contiguous(), y, ['left', 'right'])

def noise_pairs(n):
    "Many images of 1×2 random pixels"
    with seeded(n): left, right = torch.randint(256, (2, n), device='cpu')
    return pixels(left.tolist(), right.tolist())

def compare():
    "Logits are the pixels themselves: always right about `pixels`"
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad(): layer.weight.copy_(torch.tensor([[2., 0.], [0., 1.9]]))
    return nn.Sequential(nn.Flatten(), layer)

def net_of(model, *splits, network='lenet5', bs=4, device='cpu'):
    "What measures need of a `Dense`"
    train, *others = (DeviceLoader(ds, bs, after_batch=[IntToFloatTensor()]) for ds in splits)
    dls, model = DataLoaders(train.new(shuffle=True), *others, device=torch.device(device)), model.to(device)
    def again():
        learn = Learner(DataLoaders(*dls.loaders), copy.deepcopy(model), CrossEntropyLossFlat(), SGD, .1)
        learn.remove_cbs(learn.cbs[2:])
        learn.logger = str
        again.learn = learn
        return learn
    learn, recipe = SimpleNamespace(model=model, dls=dls), SimpleNamespace(network=network)
    return SimpleNamespace(learn=learn, recipe=recipe, again=again)

TRAIN, VALID = pixels([0, 9, 40, 200], [10, 0, 90, 100]), pixels([10, 200, 30], [200, 10, 90])
TEST = pixels([0, 100, 200, 20], [50, 0, 100, 250])

@pytest.fixture
def pair():
    "The comparing network, three validation images, four test images"
    return net_of(compare(), TRAIN, VALID, TEST)

def centred(x): return x - x.mean((2, 3), keepdim=True)

class Small(nn.Module):
    "Two convolutions with BatchNorm between, and a classifier; brightness makes no difference"
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.fc = nn.Linear(6*5*5, 3, bias=False)
    def between(self, x): return F.relu(self.bn1(self.conv1(centred(x))))
    def forward(self, x): return self.fc(centred(self.layer(self.between(x))).flatten(1))

def noise_images(n, seed, model, low=0, high=256):
    "Images of 5×5 random pixels; the classes are the answers of `model`"
    with seeded(seed): x = torch.randint(low, high, (n, 1, 5, 5), dtype=torch.uint8, device='cpu')
    return Images(x, model.eval()(x/255).argmax(1), list('abc'))

def small_net(device):
    """A network that is right about all images until it is pruned; its first and last layer never are

    Test images have less contrast than others, so that their statistics are others, too."""
    with seeded(3): model = Small()
    splits = noise_images(60, 0, model), noise_images(24, 1, model), noise_images(30, 2, model, low=150)
    return net_of(model, *splits, network='resnet18', device=device)

@pytest.fixture
def small(): return small_net('cpu')

def test_the_small_network_is_worth_measuring(small):
    "Noise and pruning change its answers, image by image and count by count"
    def count(member, split='test'): return int(measures.right(small, member, split, None).sum())
    assert (count({}), count({}, 'valid')) == (30, 24)
    plain = [count(measures.draw(small, 0, 0, gamma, 0., GMP)) for gamma in (.5, .7)]
    noisy = [count(measures.draw(small, 5, i, .5, .3, GMP)) for i in range(4)]
    assert 30 > plain[0] > plain[1] >= max(noisy) and len(set(noisy)) > 1

# Pruners as data

def test_a_pruner_is_built_from_its_data():
    assert measures.build_score(GMP, .9) is magnitude and measures.build_allocation(GMP) is global_
    for pruner in PRUNERS.values():
        assert pruner['score'] in SCORES and pruner['allocation'] in ALLOCATIONS

def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(ValueError, match='LAMP'): measures.build_score({'score': 'lamp_score'}, .9)
    with pytest.raises(ValueError, match='ERK'): measures.build_allocation({'allocation': 'erk'})
    with pytest.raises(ValueError, match='TPE'): measures.build_sampler({'name': 'tpe'})

@pytest.mark.parametrize('pruner', PRUNERS)
def test_every_pruner_keeps_the_number_that_was_asked(small, pruner):
    n = sum(w.numel() for w in measures.prunable(small).values())
    for sigma in (0., .02):
        member = measures.draw(small, 0, 0, .8, sigma, PRUNERS[pruner])
        assert sum(int(w.count_nonzero()) for w in member.values()) == n - round(.8*n)

def test_erk_counts_the_dimensions_of_the_kernel():
    "Densities go as (sum of dimensions)/product: 10/16 of 16 weights and 10/36 of 36, so equal numbers"
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(2, 2, 3, bias=False))
    net = net_of(model, TRAIN)
    assert [sum(w.shape) for w in weights(model).values()] == [10, 10]
    member = measures.draw(net, 0, 0, .75, 0., PRUNERS['ERK'])
    counts = {n: int(w.count_nonzero()) for n, w in member.items()}
    assert counts == {'0.weight': 7, '1.weight': 6}                    # of 13 that are kept of 52

def test_synflow_prunes_on_the_way(small):
    rounds = {'score': 'SynFlow', 'allocation': 'global', 'rounds': 7}
    assert measures.build_score(rounds, .8).args[3] == 7 and measures.build_score(rounds, .8).args[2] == .8

# Which weights, what unit of noise

def test_the_first_convolution_and_the_classifier_are_left_alone(small):
    assert list(measures.prunable(small)) == ['layer.weight']

def test_sigma_in_units_of_the_threshold(small):
    sigma = measures.one_shot(small, 0, .5, .25, 'threshold', PRUNERS['GMP'], 1, 1, False, None,
                              {'valid': None, 'test': None})['sigma used']
    assert sigma == pytest.approx(.25*threshold(measures.prunable(small), .5))

# Images

def test_the_first_images_are_always_the_same_and_in_order():
    few, more = measures.some(1000, 30, False), measures.some(1000, 60, False)
    assert few.tolist() == sorted(few.tolist()) and set(few.tolist()) < set(more.tolist())
    assert measures.some(5, None, False).tolist() == [0, 1, 2, 3, 4]
    mixed = measures.some(1000, 60, True)
    assert mixed.sort().values.tolist() == more.tolist() != mixed.tolist()

@pytest.mark.parametrize('split, left', [('train', TRAIN), ('valid', VALID), ('test', TEST)])
def test_batches_are_those_of_the_split(pair, split, left):
    xs, ys = zip(*measures.batches(pair, split, None, batch=3))
    assert torch.equal(torch.cat(xs), left.x/255) and torch.equal(torch.cat(ys), left.y) and len(xs[0]) == 3
    assert measures.batches(pair, split, None, batch=3) is measures.batches(pair, split, None, batch=3)

def test_images_sorted_by_class_are_mixed():
    sorted_ones = Images(torch.zeros(300, 1, 1, 2, dtype=torch.uint8), torch.arange(300) // 100, list('abc'))
    net = net_of(compare(), TRAIN, VALID, sorted_ones)
    y = torch.cat([y for _, y in measures.batches(net, 'test', 30, mixed=True)])
    assert set(y.tolist()) == {0, 1, 2} and y.tolist() != sorted(y.tolist())

# Members and their answers

def test_a_draw_is_the_method_of_the_chapter(small):
    ws = measures.prunable(small)
    masks, noisy = stochastic_prune(ws, .8, .01, (7, 1))
    member = measures.draw(small, 7, 1, .8, .01, GMP)
    assert all(torch.equal(member[n], apply_(noisy, masks)[n]) for n in ws)

def test_noise_elsewhere_reaches_the_layers_that_stay_dense(small):
    ws, rest = weights(small.learn.model), measures.noise_elsewhere(small, 3, 0, .05)
    assert set(rest) == {'conv1.weight', 'fc.weight'}
    assert all(0 < (rest[n] - ws[n]).abs().max() < .3 for n in rest)

def test_a_member_takes_the_place_of_weights_and_buffers(small):
    member = {'fc.weight': torch.full((3, 150), 2.), 'bn1.running_mean': torch.full((4,), 5.)}
    before = {k: v.clone() for k, v in small.learn.model.state_dict().items()}
    model = measures.with_member(small, member).state_dict()
    for k, v in before.items(): assert torch.equal(model[k], member.get(k, v))
    for k, v in small.learn.model.state_dict().items(): assert torch.equal(v, before[k])

def test_answers_of_a_member_image_by_image(pair):
    assert measures.right(pair, {}, 'test', None).tolist() == [True]*4
    swapped = {'1.weight': torch.tensor([[0., 1.], [1., 0.]])}
    assert measures.right(pair, swapped, 'test', None).tolist() == [False]*4
    always_left = {'1.weight': torch.tensor([[1., 1.], [0., 0.]])}
    assert (TEST.y == 0).tolist() == [False, True, True, False]
    assert measures.right(pair, always_left, 'test', None).tolist() == [False, True, True, False]
    assert measures.right(pair, always_left, 'valid', None).tolist() == (VALID.y == 0).tolist()

def test_a_part_of_the_images_is_in_the_order_of_the_whole(small):
    whole, i = measures.right(small, {}, 'test', None), measures.some(30, 12, False)
    assert torch.equal(measures.right(small, {}, 'test', 12), whole[i])

def test_a_piece_is_computed_once(tmp_path):
    calls = []
    def make():
        calls.append(1)
        return torch.tensor([len(calls)])
    for state, expected in ((tmp_path/'a', [1, 1]), (None, [2, 3])):
        assert [int(measures.remember(state, 'x', make)) for _ in range(2)] == expected
    assert int(measures.remember(tmp_path/'a', 'y', make)) == 4

# Populations

def answered(valid, test): return {'valid': torch.tensor(valid).bool(), 'test': torch.tensor(test).bool()}

def test_the_best_of_ten_is_chosen_on_validation_images_and_counted_on_test_images():
    last = {'test': torch.tensor([True, True, False])}
    found = [answered([0, 1], [1, 1, 1]), answered([1, 1], [0, 0, 1]), last]
    r = measures.record(found)
    assert r['n'] == {'valid': 2, 'test': 3} and r['counts'] == {'valid': [1, 2], 'test': [3, 1, 2]}
    assert r['best']['draw'] == 1 and r['best']['of'] == 2
    assert unpack(r['best']['test']['bits']).tolist() == [0, 0, 1]
    assert r['median']['draw'] == 2 and r['median']['test'] == tally(last['test'])

def test_only_the_first_draws_can_be_chosen(pair):
    asked = []
    def make(i):
        asked.append(i)
        return {}
    found = measures.population(pair, make, 3, 2, BOTH)
    assert asked == [0, 1, 2] and [set(f) for f in found] == [{'valid', 'test'}]*2 + [{'test'}]
    with pytest.raises(ValueError, match='best_of'): measures.population(pair, make, 3, 4, BOTH)

def test_a_population_goes_on_where_it_was_killed(pair, tmp_path):
    def killed(i):
        if i == 2: raise KeyboardInterrupt
        return {}
    with pytest.raises(KeyboardInterrupt): measures.population(pair, killed, 3, 1, BOTH, tmp_path/'state')
    asked = []
    measures.population(pair, lambda i: asked.append(i) or {}, 3, 1, BOTH, tmp_path/'state')
    assert asked == [2]

def shot(net, gamma, sigma, **kwargs):
    how = {'unit': None, 'pruner': GMP, 'draws': 4, 'best_of': 2, 'everywhere': False, 'statistics': None}
    how['images'] = BOTH
    return measures.one_shot(net, 5, gamma, sigma, **{**how, **kwargs})

def test_one_shot_counts_noise_and_no_noise(small):
    r = shot(small, .5, .3)
    ws = measures.prunable(small)
    plain = measures.masked_copy(ws, global_(magnitude(ws), .5))
    assert r['no noise']['test'] == tally(measures.right(small, plain, 'test', None))
    assert r['no noise']['valid'] == tally(measures.right(small, plain, 'valid', None), bits=False)
    for i in range(4):
        masks, noisy = stochastic_prune(ws, .5, .3, (5, i))
        assert r['counts']['test'][i] == int(measures.right(small, apply_(noisy, masks), 'test', None).sum())
    assert r['n'] == {'valid': 24, 'test': 30} and len(r['counts']['valid']) == 2 and r['sigma used'] == .3

def test_without_noise_nothing_differs(small):
    r = shot(small, .5, 0.)
    assert r['counts']['test'] == [r['no noise']['test']['right']]*4
    alone = measures.without_noise(small, 5, .5, {'mine': GMP}, None, BOTH)
    assert alone == {'mine': r['no noise']}

def test_noise_everywhere_is_another_population(small):
    seen, original = [], measures.right
    def right(net, member, *args):
        seen.append(set(member))
        return original(net, member, *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, 'right', right)
        shot(small, .5, .3, draws=1, best_of=1, everywhere=True)
    assert {'layer.weight'} in seen and {'layer.weight', 'conv1.weight', 'fc.weight'} in seen

# BatchNorm's statistics

def test_new_statistics_are_those_of_training_images(small):
    "Test images have less contrast: their variance would be another one"
    member = measures.with_statistics(small, {}, {'images': 60, 'batch': 60})
    train, test = (small.learn.model.conv1(centred(small.learn.dls[i].dataset.x/255)) for i in (0, 2))
    assert torch.allclose(member['bn1.running_mean'], train.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(member['bn1.running_var'], train.var((0, 2, 3)), rtol=1e-4)
    assert not torch.allclose(member['bn1.running_var'], test.var((0, 2, 3)), rtol=.1)

def test_new_statistics_are_those_of_the_member(small):
    doubled = {'conv1.weight': 2*small.learn.model.conv1.weight.detach()}
    new = {'images': 60, 'batch': 20}
    plain, member = (measures.with_statistics(small, m, new) for m in ({}, doubled))
    assert torch.allclose(member['bn1.running_var'], 4*plain['bn1.running_var'], rtol=1e-4)
    assert torch.equal(member['conv1.weight'], doubled['conv1.weight'])
    assert measures.with_statistics(small, doubled, None) is doubled

# Parts of a draw

def test_the_parts_of_a_draw(small):
    ws = {n: w.detach() for n, w in measures.prunable(small).items()}
    parts = [measures.arm_member(small, 0, 2, .7, .2, GMP, arm) for arm in ARMS]
    noise, mask, values, shares = (part['layer.weight'] for part in parts)
    w, plain = ws['layer.weight'], global_(magnitude(ws), .7)['layer.weight']
    masks, noisy = stochastic_prune(ws, .7, .2, (0, 2))
    assert torch.equal(noise, noisy['layer.weight']*masks['layer.weight'])
    assert torch.equal(mask, w*masks['layer.weight']) and torch.equal(values, noisy['layer.weight']*plain)
    assert torch.equal(shares, w*plain)                                # the only layer's share is the total
    with pytest.raises(ValueError, match='noisy shares'):
        measures.arm_member(small, 0, 0, .7, .2, GMP, 'shares')

def test_shares_are_those_of_the_noisy_draw():
    "Two layers, .1 and .3 everywhere: without noise the first one keeps nothing, with it a part"
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        for layer, size in zip(model, (.1, .3)):
            layer.weight.copy_(torch.linspace(.9*size, size, 400).view(20, 20))
    net = net_of(model, TRAIN)
    noise, shares = (measures.arm_member(net, 0, 0, .5, .2, GMP, arm) for arm in ('noise', ARMS[-1]))
    counts = {n: int(w.count_nonzero()) for n, w in noise.items()}
    assert counts['0.weight'] > 20 and counts == {n: int(w.count_nonzero()) for n, w in shares.items()}
    for n, w in weights(model).items():
        assert torch.equal(shares[n] != 0, w >= w.flatten().sort().values[-counts[n]])
    assert int(measures.draw(net, 0, 0, .5, 0., GMP)['0.weight'].count_nonzero()) == 0

def test_decomposed_records_each_part(small):
    how = {'pruner': GMP, 'draws': 3, 'best_of': 2, 'statistics': None, 'images': BOTH}
    r = measures.decomposed(small, 5, .5, .3, None, arms=list(ARMS), **how)
    whole = shot(small, .5, .3, draws=3)
    assert r['noise'] == {k: whole[k] for k in r['noise']} and r['no noise'] == whole['no noise']
    clean = [measures.arm_member(small, 5, i, .5, .3, GMP, ARMS[1]) for i in range(3)]
    assert r[ARMS[1]]['counts']['test'] == [int(measures.right(small, m, 'test', None).sum()) for m in clean]

def test_new_statistics_reach_every_part(small):
    how = {'pruner': GMP, 'draws': 1, 'best_of': 1, 'images': BOTH, 'arms': ['noise']}
    new = {'images': 60, 'batch': 20}
    r = measures.decomposed(small, 5, .5, .3, None, statistics=new, **how)
    for found, sigma in ((r['noise']['median']['test'], .3), (r['no noise']['test'], 0.)):
        member = measures.with_statistics(small, measures.draw(small, 5, 0, .5, sigma, GMP), new)
        assert found == tally(measures.right(small, member, 'test', None))

# Where the weights sit

def test_facts_of_a_layer():
    plain, noisy = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 1]).bool()
    r = measures.layer_facts(torch.tensor([2., -1., .5, -.1]), 1., .3, plain, noisy)
    assert r['median'] == .5 and r['rms'] == pytest.approx(((4 + 1 + .25 + .01)/4)**.5)
    assert r['below threshold'] == .5 and r['below sigma'] == .25 and r['weights'] == 4
    assert (r['kept'], r['kept with noise'], r['born'], r['died']) == (2, 3, 2, 1)

def test_placement_adds_up(small):
    r = measures.placement(small, 0, .8, .5, 'threshold', GMP, {'LAMP': PRUNERS['LAMP']})
    layer, n = r['layers']['layer.weight'], 216
    assert r['sigma used'] == pytest.approx(.5*r['threshold'])
    assert layer['below threshold'] == pytest.approx(round(.8*n)/n) and layer['born'] == layer['died'] > 0
    assert layer['kept'] == layer['kept with noise'] == layer['LAMP'] == n - round(.8*n)
    still = measures.placement(small, 0, .8, 0., None, GMP, {})['layers']['layer.weight']
    assert still['born'] == still['died'] == 0

# Variances

def seen(small, **kwargs):
    how = {'gamma': .6, 'sigma': .3, 'unit': None, 'pruner': GMP, 'rivals': {}, 'draws': 2, 'images': 30}
    how['batch'] = 15
    return measures.variances(small, 0, **{**how, **kwargs})

def test_where_nothing_is_pruned_the_variance_is_that_before(small):
    "Noisy networks are compared with noisy dense ones, as in the paper; the other ratio is labelled"
    r = seen(small, gamma=0.)
    assert set(r['noise'].values()) == set(r['no noise'].values()) == {1.}
    assert r['noise to clean']['layer'] != 1 and r['noise to clean']['conv1'] == 1

def test_variance_ratio_of_a_layer_by_hand(small):
    r, model = seen(small), small.learn.model.eval()
    inputs = [model.between(x) for x, _ in measures.batches(small, 'test', 30, True, 15)]
    def V(w): return sum(F.conv2d(x, w, padding=1).var((0, 2, 3)).sum().item() for x in inputs)/2
    w = model.layer.weight.detach()
    pruned = measures.draw(small, 0, 0, .6, 0., GMP)['layer.weight']
    noisy = [stochastic_prune({'layer.weight': w}, 0., .3, (0, i))[1]['layer.weight'] for i in range(2)]
    both = [measures.draw(small, 0, i, .6, .3, GMP)['layer.weight'] for i in range(2)]
    assert r['dense']['layer'] == pytest.approx(V(w), rel=1e-4)
    assert r['no noise']['layer'] == pytest.approx(V(pruned)/V(w), rel=1e-4)
    assert r['noise']['layer'] == pytest.approx(sum(map(V, both))/sum(map(V, noisy)), rel=1e-4)
    assert r['noise to clean']['layer'] == pytest.approx(sum(map(V, both))/2/V(w), rel=1e-4)

# Noise, gradient, layers

def length_of_gradient(model, x, y):
    loss = F.cross_entropy(model.eval()(x), y)
    return torch.autograd.grad(loss, model.layer.weight)[0].norm().item()

def test_the_gradient_is_taken_at_the_pruned_point(small):
    r = measures.sweep(small, 0, .7, [0, .3], None, GMP, 2, 60, None)
    ds = small.learn.dls[0].dataset
    for j, sigma in enumerate((0., .3)):
        for i in range(2):
            model = measures.with_member(small, measures.draw(small, 0, i, .7, sigma, GMP))
            assert r['flow'][j][i] == pytest.approx(length_of_gradient(model, ds.x/255, ds.y), rel=1e-4)
    assert r['flow'][0][0] != pytest.approx(length_of_gradient(small.learn.model, ds.x/255, ds.y), rel=1e-2)

def test_a_sweep_counts_noise_alone_and_noise_pruned(small):
    r = measures.sweep(small, 0, .7, [0, .3], None, GMP, 2, 60, None)
    def count(member): return int(measures.right(small, member, 'test', None).sum())
    dense, plain = count({}), count(measures.draw(small, 0, 0, .7, 0., GMP))
    assert r['noise only'][0] == [dense]*2 and r['pruned'][0] == [plain]*2 and r['n'] == 30
    pruned = measures.draw(small, 0, 1, .7, .3, GMP)
    only = stochastic_prune(measures.prunable(small), 0., .3, (0, 1))[1]
    assert r['pruned'][1][1] == count(pruned) and r['noise only'][1][1] == count(only)

def test_a_layer_is_pruned_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[4., 0.], [0., 3.]]))
        model[2].weight.copy_(torch.tensor([[2., .1], [.1, 1.]]))
    net = net_of(model, TRAIN, VALID, TEST)
    r = measures.alone(net, 0, .5, {'GMP': GMP}, None)
    dense = int(measures.right(net, {}, 'test', None).sum())
    assert r['n'] == 4 and r['dense'] == dense
    assert r['GMP'] == {'1.weight': [2, dense], '2.weight': [2, dense]}
    harder = measures.alone(net, 0, .75, {'GMP': GMP}, None)['GMP']
    assert harder == {'1.weight': [2, dense], '2.weight': [0, 2]}       # a dead layer calls everything 'left'

def test_noise_in_one_layer_leaves_the_others_alone():
    "Whoever is counted has noise in the layer of that name, and the dense weights in the other"
    with seeded(0): model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Linear(8, 2))
    net = net_of(model, TRAIN, VALID, noise_pairs(200))
    r = measures.layer_noise(net, 3, .5, .4, None, GMP, 2, None)
    ws = measures.prunable(net)
    def count(member): return int(measures.right(net, member, 'test', None).sum())
    assert r['n'] == 200 and r['no noise'] == count(measures.draw(net, 3, 0, .5, 0., GMP))
    assert r['all layers'] == [count(measures.draw(net, 3, i, .5, .4, GMP)) for i in range(2)]
    for name in ws:
        for i in range(2):
            masks, noisy = stochastic_prune(ws, .5, {name: .4}, (3, i))
            other = next(n for n in ws if n != name)
            assert torch.equal(noisy[other], ws[other])
            assert r['layers'][name][i] == count(apply_(noisy, masks))
    assert len({*r['all layers'], *(k for ks in r['layers'].values() for k in ks)}) > 2

# Fine-tuning

def tune(net, arm='DP', **kwargs):
    how = {'pruner': GMP, 'best_of': 2, 'epochs': 2, 'lr': .1, 'n': 30, 'clip': .01, 'images': BOTH}
    return measures.fine_tune(net, 0, .7, .2, None, arm, **{**how, **kwargs})

def test_fine_tuning_sees_as_many_images_as_were_asked_for(small):
    tune(small)
    ds = small.again.learn.dls.train.dataset
    whole = small.learn.dls.train.dataset
    assert (len(ds), len(whole)) == (30, 60)
    assert (2*ds.y.bincount() - whole.y.bincount()).abs().max() <= 1           # as many of each class

@pytest.mark.parametrize('arm', ['DP', 'SP'])
def test_fine_tuning_stays_sparse_and_leaves_batchnorm_alone(small, arm):
    members, original = [], measures.plain_tallies
    def tallies(net, member, *args):
        members.append(copy.deepcopy(member))
        return original(net, member, *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, 'plain_tallies', tallies)
        r = tune(small, arm)
    before, last, best = members
    dense = small.learn.model.state_dict()
    for m in members:
        assert sparsity({'w': m['layer.weight']}) == pytest.approx(round(.7*216)/216)
        assert all(torch.equal(m[k], dense[k]) for k in dense if 'bn1' in k)
    assert torch.equal(before['fc.weight'], dense['fc.weight'])
    assert not torch.equal(last['fc.weight'], dense['fc.weight'])
    assert r['before']['test']['right'] == int(measures.right(small, before, 'test', None).sum())
    counts = [int(measures.right(small, m, 'valid', None).sum()) for m in (last, best)]
    assert r['curve'][-1] == counts[0] and max(r['curve']) == counts[1] == r['best']['valid']['right']
    assert len(r['curve']) == 2

def test_gradients_are_clipped_component_by_component(small):
    grads = []
    def spy(self):
        nn.utils.clip_grad_value_(self.model.parameters(), self.most)
        grads.extend(p.grad.abs().max().item() for p in self.model.parameters() if p.grad is not None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures.ClipValue, 'before_step', spy)
        tune(small, clip=1e-4)
    assert grads and max(grads) <= 1e-4*(1 + 1e-6)

def test_a_step_is_as_long_as_the_clip_allows(small):
    "Plain SGD at rate 1: seven steps of at most .0001"
    tune(small, epochs=1, lr=1., clip=1e-4)
    moved = (small.again.learn.model.fc.weight - small.learn.model.fc.weight).abs().max().item()
    assert 0 < moved <= 1e-4*len(small.again.learn.dls.train)*1.01

def test_the_best_epoch_is_kept():
    model, keep = nn.Linear(1, 1), measures.BestEpoch(None)
    keep.learn = SimpleNamespace(model=model)
    for value, count in ((1., 3), (2., 5), (3., 4)):
        with torch.no_grad(): model.weight.fill_(value)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measures, 'answers', lambda m, dl, count=count: torch.ones(count))
            keep.after_epoch()
    assert keep.counts == [3, 5, 4] and keep.member['weight'].item() == 2

def test_the_two_arms_of_fine_tuning(small):
    plain, noisy = (measures.build_pruner(small, 4, arm, GMP, .7, .2, 6) for arm in ('DP', 'SP'))
    assert type(plain) is PruneCB and plain.target == .7 and plain.score is magnitude
    assert plain.exclude == noisy.exclude == ('conv1', 'fc')
    assert isinstance(noisy, StochasticPruning) and (noisy.n, noisy.sigma, noisy.seed) == (6, .2, 4)
    with pytest.raises(ValueError, match='DP'): measures.build_pruner(small, 4, 'sp', GMP, .7, .2, 6)

# Searches

def search(net, **kwargs):
    how = {'sampler': {'name': 'TPE'}, 'trials': 3, 'sigma': [.01, .1], 'gamma': [.3, .9]}
    how |= {'draws': 3, 'tested': 3, 'images': BOTH}
    return measures.searched(net, 0, 'F1', **{**how, **kwargs})

def test_a_front_is_tested_on_test_images(pair):
    "Every test label is turned round: what is right on validation images is wrong on test images"
    turned = net_of(compare(), TRAIN, VALID, pixels([0, 100, 200, 20], [50, 0, 100, 250], [0, 1, 1, 0]))
    found = search(turned, gamma=[.3, .5], sigma=[1e-4, 1e-3])['front']
    assert found['valid'] == found['valid_det'] == [3]*len(found['valid'])
    assert found['test'] == found['test_det'] == [0]*len(found['valid'])
    assert search(pair, gamma=[.3, .5], sigma=[1e-4, 1e-3])['front']['test'][0] == 4

def test_a_search_goes_on_where_it_was_killed(small, tmp_path):
    first = search(small, trials=2, state=tmp_path/'state')
    assert first['trials'] == 2 and search(small, trials=4, state=tmp_path/'state')['trials'] == 4
    assert search(small, trials=4)['front'] == search(small, trials=4, state=tmp_path/'state')['front']

def test_a_trial_that_was_killed_is_not_counted(small, tmp_path, monkeypatch):
    calls, measure = [], pareto.measure
    def killed_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return measure(*args, **kwargs)
    monkeypatch.setattr(pareto, 'measure', killed_once)
    with pytest.raises(KeyboardInterrupt): search(small, state=tmp_path/'state')
    assert search(small, state=tmp_path/'state')['trials'] == 3

def test_samplers_and_objectives_are_data(small):
    sampler = measures.build_sampler({'name': 'NSGA-II', 'population': 7})
    assert sampler.keywords == {'population_size': 7} and sampler(seed=0)._population_size == 7
    with pytest.raises(ValueError, match='F2'):
        measures.searched(small, 0, 'f2', {'name': 'TPE'}, 1, [.1, 1], [.1, .2], 1, 1, BOTH)

# Experiments declare everything

MEASUREMENTS = ('without_noise', 'one_shot', 'decomposed', 'placement', 'variances', 'sweep', 'alone',
                'layer_noise', 'fine_tune', 'searched')

@pytest.mark.parametrize('name', MEASUREMENTS)
def test_no_parameter_of_a_measurement_has_a_default(name):
    for p in inspect.signature(getattr(measures, name)).parameters.values():
        assert p.default is inspect.Parameter.empty or p.name == 'state', p

def test_nothing_touches_the_dense_network(device):
    "And everything runs on a GPU, too"
    small = small_net(device)
    before = {k: v.clone() for k, v in small.learn.model.state_dict().items()}
    tune(small, 'SP')
    shot(small, .5, .3, everywhere=True, statistics={'images': 60, 'batch': 20})
    seen(small)
    measures.sweep(small, 0, .7, [.3], None, GMP, 1, 60, None)
    measures.decomposed(small, 5, .5, .3, None, GMP, list(ARMS), 1, 1, None, BOTH)
    measures.without_noise(small, 0, .5, PRUNERS, None, BOTH)
    for k, v in small.learn.model.state_dict().items(): assert torch.equal(v, before[k])

# What measures take for granted: dense networks of other seeds, batches of other orders

LENET = Recipe('lenet5', 'digits', epochs=3, lr=.02, bs=64, valid=.2, n_train=256, size=16)

def test_every_seed_has_initial_weights_of_its_own():
    a, again, b = (learner(LENET, seed, 'cpu').model.state_dict() for seed in (0, 0, 1))
    for k in a: assert torch.equal(a[k], again[k]) and not torch.equal(a[k], b[k])

def orders(learn, epochs):
    "The images of each epoch, in their order, as sums of pixels"
    return [torch.cat([x.sum((1, 2, 3)) for x, _ in learn.dls.train]).tolist() for _ in range(epochs)]

def test_a_second_training_sees_none_of_the_old_orders():
    net = Dense(learner(LENET, 0, 'cpu'), LENET, 0, {})
    before, after = orders(net.learn, LENET.epochs), orders(net.again(), 2)
    assert all(new not in before for new in after) and after[0] != after[1]
    for new in after: assert sorted(new) == pytest.approx(sorted(before[0]), abs=1e-2)
