"The experiments of paper 3: what is found, and rivals at exactly that sparsity."
import pytest, torch
from prunelab.core import weights
from prunelab.extreme import ExtremeValuePruning, extreme_masks, retention
from prunelab.lab.answers import unpack
from prunelab.lab.drop import EXPERIMENTS as OF_DROP
from prunelab.lab.extreme import (CLAIM, EXPERIMENTS, PRIMARY, RIVALS, RULES, SIZES, arm, compared, findings,
    found, once, rule)
from prunelab.lab.training import Recipe, dense
from prunelab.masks import sparsity
from .rehearse import blocks_of, check_block, distinct, rehearse

TOY = Recipe('lenet300', 'digits', epochs=6, bs=64, valid=200, size=16)

@pytest.fixture(scope='module')
def net(tmp_path_factory): return dense(TOY, 0, tmp_path_factory.mktemp('cache'), 'cpu')

def test_rules_as_data():
    assert RULES['hybrid'] == {'method': 'extreme', 'b': 9, 'kernel': True, 'low': .1, 'high': .9,
                               'law': 'GEV', 'small': 'dense', 'least': 30}
    assert [(r['low'], r['high']) for r in RULES.values()] == [(.1, .9), (.5, .5), (0, 1)]
    assert [(r['b'], r['kernel'], r['low'], r['high']) for r in SIZES.values()] == [
        (4, False, .1, .9), (9, False, .1, .9), (25, False, .1, .9)]

def test_found_is_what_the_masks_keep(net):
    "Sparsity, counts of each layer, and right answers of the very member that the masks make"
    r = found(net, 3, rule(25, .1, .9, kernel=False), False, [])
    ws = weights(net.learn.model)
    masks = extreme_masks(retention(ws, b=25, kernel=False), .1, .9, (3, 0))
    assert r['sparsity'] == sparsity(masks)
    counts = {n: [int(m.sum()), m.numel()] for n, m in masks.items()}
    assert {n: v[:2] for n, v in r['layers'].items()} == counts
    model = net.again().model.eval()
    model.load_state_dict({n: w*masks[n] for n, w in ws.items()}, strict=False)
    with torch.no_grad():
        right = torch.cat([model(x.as_subclass(torch.Tensor)).argmax(1) == y.as_subclass(torch.Tensor)
                           for x, y in net.learn.dls.test])
    assert torch.equal(unpack(r['before']['test']['bits']), right) and r['before']['valid']['n'] == 200

def test_shuffled_blocks_are_other_blocks_and_seeds_other_shufflings(net):
    natural, one, two = (found(net, seed, SIZES['b=9'], shuffled, [])['layers']
                         for seed, shuffled in ((0, False), (0, True), (1, True)))
    D = [[v[3] for v in layers.values()] for layers in (natural, one, two)]
    assert D[0] != D[1] != D[2]

def test_what_is_excluded_stays_dense(net):
    r = found(net, 0, SIZES['b=9'], False, ['fc3'])
    assert set(r['layers']) == {'fc1.weight', 'fc2.weight'}

def test_rivals_as_data():
    assert RIVALS['dense'] is None and once('LAMP', 'global') == RIVALS['LAMP'] == {
        'method': 'score', 'score': 'LAMP', 'allocation': 'global', 'schedule': 'once'}
    assert {(v['score'], v['allocation']) for v in RIVALS.values() if v} == {
        ('LAMP', 'global'), ('magnitude', 'global'), ('magnitude', 'ERK'), ('magnitude', 'uniform'),
        ('random', 'global')}

def run(net, e, seed=1): return e.run(net, seed, **{**e.params, 'epochs': 1})

def test_every_rival_keeps_as_many_weights_as_ours(net):
    arms = compared('lenet300-digits', TOY, {'epochs': 1, 'lr': .02}, 'fc3')
    es = {e.name.split('/')[-1]: run(net, e) for e in arms}
    count = {k: sum(kept for kept, _ in r['kept'].values()) for k, r in es.items()}
    for kind in ('hybrid', 'deterministic', 'probabilistic'):
        alike = {v for k, v in count.items() if k.startswith(f'{kind}:') and 'dense' not in k}
        assert len(alike) == 1, kind
    assert count['why: our shares, largest'] == count['hybrid: ours']
    assert count['why: ours, output dense'] == count['why: LAMP, output dense'] < count['hybrid: ours']
    assert es['hybrid: dense']['kept'] == {}
    assert set(es['why: LAMP, output dense']['kept']) == {'fc1.weight', 'fc2.weight'}
    assert es['why: our shares, largest']['kept'] == es['hybrid: ours']['kept']
    ours = net.again().prune(ExtremeValuePruning(9, .1, .9, seed=1))
    assert es['hybrid: ours']['kept'] == {n: [int(m.sum()), m.numel()] for n, m in ours.masks.items()}
    assert len({str(r['kept']) for k, r in es.items() if k.startswith('hybrid:')}) == 7

def test_an_arm_asks_for_its_sparsity():
    tune = {'epochs': 2, 'lr': .1}
    e = arm('lenet300-digits/LAMP', TOY, RIVALS['LAMP'], RULES['hybrid'], tune, ['fc3'], seeds=(4,))
    assert e.params == {'pruner': RIVALS['LAMP'], 'sparsity': RULES['hybrid'], 'exclude': ['fc3'], **tune}
    assert e.name == 'extreme/lenet300-digits/LAMP' and e.seeds == (4,)
    assert arm('x/dense', TOY, None, RULES['hybrid'], tune).params['sparsity'] == 0

def test_findings_come_in_pairs():
    es = findings('lenet300-digits', TOY, SIZES, {'sparsity': 'x'}, seeds=(1, 2))
    assert [(e.params['pruner']['b'], e.params['shuffled'], e.claim) for e in es] == [
        (b, s, {} if s else {'sparsity': 'x'}) for b in (4, 9, 25) for s in (False, True)]

def test_all_nine_cells_of_the_claim_are_there():
    claimed = {e.name.split('/')[1] for e in EXPERIMENTS if e.claim}
    data = ('mnist', 'cifar10', 'tiny_imagenet')
    assert claimed == {f'{m}-{d}' for m in ('vgg16', 'resnet18', 'resnet50') for d in data}
    assert all(e.recipe.size == 32 for e in EXPERIMENTS if e.recipe.data == 'mnist' and 'lenet' not in e.name)
    assert {e.name.split('/')[1] for e in EXPERIMENTS if not e.gpu} == {
        'lenet5-mnist', 'lenet300-mnist', 'vgg16-mnist-short', 'resnet18-mnist-short'}
    said = [e.claim for e in EXPERIMENTS if e.claim]
    assert all(c in (CLAIM, {'sparsity': CLAIM['sparsity']}) for c in said) and CLAIM in said

def test_arms_of_a_network_share_everything_but_the_pruner():
    for es in blocks_of(EXPERIMENTS, lambda e: e.name.split('/')[1]).values(): check_block(es)

def test_the_lenets_come_from_the_dense_networks_of_paper_2():
    for cell in ('lenet5-mnist', 'lenet300-mnist'):
        assert len({str(e.recipe.identity) for e in [*EXPERIMENTS, *OF_DROP] if f'/{cell}/' in e.name}) == 1

def test_primary_comparisons_differ_in_the_pruner_alone():
    by_name = {e.name: e for e in EXPERIMENTS}
    assert len(by_name) == len(EXPERIMENTS)
    for pair in PRIMARY.values():
        a, b = (by_name[n] for n in pair)
        assert (a.recipe, a.seeds) == (b.recipe, b.seeds)
        assert {k for k in a.params if a.params[k] != b.params[k]} == {'pruner'}

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('dense')

@pytest.mark.parametrize('e', distinct(EXPERIMENTS), ids=lambda e: e.name)
def test_every_experiment_is_rehearsed(e, cache):
    r = rehearse(e, cache)
    dense_arm = e.params.get('pruner') is None
    assert r['sparsity'] == 0 if dense_arm else .3 < r['sparsity'] < 1
