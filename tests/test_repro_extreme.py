"What the reproduction of paper 3 counts, on LeNets trained for a moment on digits."
import pytest, torch
from prunelab.lab import extreme as x
from prunelab.core import weights
from prunelab.extreme import extreme_masks, retention
from prunelab.masks import sparsity
from prunelab.lab.models import lenet300
from prunelab.lab.engine import experiments, plain
from prunelab.lab.training import Recipe, dense

@pytest.fixture(scope='module')
def net(tmp_path_factory): return dense(Recipe(lenet300, 'digits', epochs=6, bs=64, valid=.2, size=16), 0, tmp_path_factory.mktemp('cache'), 'cpu')

def test_found_is_what_the_masks_keep(net):
    r = x.found(net, 3, sizes=(4, 25))
    assert list(r['found']) == [f'{w}, {k}' for w in ('b = 4', 'b = 25', 'kernel, or 9') for k in ('natural', 'shuffled')]
    masks = extreme_masks(retention(weights(net.learn.model), b=25, kernel=False), .1, .9, (3, 0))
    got = r['found']['b = 25, natural']
    assert got['sparsity'] == sparsity(masks) and {n: v[:2] for n, v in got['layers'].items()} == {n: [int(m.sum()), m.numel()] for n, m in masks.items()}
    member = {n: w*masks[n] for n, w in weights(net.learn.model).items()}
    ds = net.learn.dls.test.dataset
    with torch.no_grad():
        model = net.again().model.eval()
        model.load_state_dict(member, strict=False)
        xs = torch.cat([b[0] for b in net.learn.dls.test])
        assert got['test'] == (model(xs).argmax(1) == torch.cat([b[1] for b in net.learn.dls.test])).sum().item() and r['n']['test'] == len(ds)
    assert r['found']['b = 4, shuffled'] != r['found']['b = 4, natural']
    plain(r)

def test_shuffling_moves_weights_within_their_layer_only(net):
    w = weights(net.learn.model)['fc1.weight']
    one, two = x._shuffled(w, (0, 0)), x._shuffled(w, (0, 1))
    assert torch.equal(one.flatten().sort().values, w.detach().flatten().sort().values)
    assert not torch.equal(one, w) and not torch.equal(one, two)

def test_shuffled_blocks_find_what_the_block_size_says(net):
    "A large layer, all coins: 1 - 1/(b+1)"
    k, n, how, D = x.found(net, 0, sizes=(9,), rule='probabilistic')['found']['b = 9, shuffled']['layers']['fc1.weight']
    assert how == 'own' and k/n == pytest.approx(.1, abs=.015)

def test_every_arm_keeps_as_many_weights_as_ours(net):
    r = x.compared(net, 1, 'hybrid', ['dense', *x.RIVALS], epochs=1)
    ours = sum(k for k, _ in r['arms']['ours']['kept'].values())
    assert all(sum(k for k, _ in r['arms'][a]['kept'].values()) == ours for a in x.RIVALS) and not r['arms']['dense']['kept']
    assert r['arms']['dense']['before']['test'] == net.facts['test'] and r['arms']['ours']['after'] != r['arms']['ours']['before']
    u = r['arms']['uniform']['kept']
    assert max(k/n for k, n in u.values()) - min(k/n for k, n in u.values()) < .01
    assert all(r['arms'][a]['kept'] != r['arms'][b]['kept'] for a in r['arms'] for b in r['arms'] if a < b)
    assert sum(k for k, _ in r['arms']['ours']['kept'].values())/sum(n for _, n in r['arms']['ours']['kept'].values()) == pytest.approx(1 - r['arms']['ours']['sparsity'])
    plain(r)

def test_all_nine_cells_of_the_claim_are_there():
    es = [e for e in experiments() if e.name.startswith('extreme/')]
    assert {e.name.split('/')[1] for e in es if e.claim} == {f'{m}-{d}' for m in ('vgg16', 'resnet18', 'resnet50') for d in ('mnist', 'cifar10', 'tiny_imagenet')}
    assert all(e.recipe.size == 32 for e in es if e.recipe.data == 'mnist' and e.gpu) and all(not e.gpu for e in es if 'lenet' in e.name or 'narrow' in e.name)

def test_why_takes_the_two_decisions_apart(net):
    "Our shares with the largest weights of each layer; and both rules with the output layer left alone"
    from prunelab.extreme import ExtremeValuePruning
    r, ours = x.why(net, 1, epochs=1)['arms'], ExtremeValuePruning(9, *x.RULES['hybrid'], seed=1)
    net.again().prune(ours)
    assert r['our shares, largest']['kept'] == {n: [int(m.sum()), m.numel()] for n, m in ours.masks.items()}
    assert r['our shares, largest']['sparsity'] == sparsity(ours.masks)
    for k in ('ours, output dense', 'LAMP, output dense'): assert set(r[k]['kept']) == {'fc1.weight', 'fc2.weight'}
    a, b = (r[k]['kept'] for k in ('ours, output dense', 'LAMP, output dense'))
    assert sum(k for k, _ in a.values()) == sum(k for k, _ in b.values()) and a != b
    w, m = weights(net.learn.model)['fc1.weight'].detach().abs(), r['our shares, largest']['kept']['fc1.weight'][0]
    assert r['our shares, largest']['before'] != r['ours, output dense']['before'] and 0 < m < w.numel()
