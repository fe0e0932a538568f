"The grid on ResNet-20: one network, one training, and the sparsity told to everybody."
import json
import pytest
from prunelab.lab.drop import ARMS
from prunelab.lab.extreme import RULES
from prunelab.lab.head_to_head import EXPERIMENTS, GRID, noisy, on_resnet20
from .rehearse import check_block, distinct, rehearse

def test_all_arms_at_both_sparsities():
    at = {p: [e.params['pruner'] for e in EXPERIMENTS if e.params['sparsity'] == p] for p in (.8, .95)}
    assert at[.8] == at[.95] == [*GRID.values()] and len(GRID) == 12
    assert GRID['drop'] == ARMS['away and back'] and GRID['gradual magnitude'] == ARMS['magnitude']

def test_ours_and_its_rivals_at_the_sparsity_that_it_finds():
    there = {e.name.split('/')[-1]: e.params for e in EXPERIMENTS if isinstance(e.params['sparsity'], dict)}
    rivals = {'LAMP', 'global', 'ERK', 'uniform', 'random'}
    assert {k.split(' as ')[0] for k in there} == {'extreme value', *rivals}
    assert all(p['sparsity'] == RULES['hybrid'] for p in there.values())
    assert there['extreme value']['pruner'] == RULES['hybrid']

def test_one_network_one_training_for_all():
    check_block(EXPERIMENTS)
    assert {json.dumps(e.params['exclude']) for e in EXPERIMENTS} == {'["conv1", "linear"]'}
    e = EXPERIMENTS[0]
    assert (e.recipe.public, e.recipe.epochs, e.recipe.precision, e.seeds) == (True, 0, 'bf16', (0, 1, 2))
    assert e.params['pruner'] is None and len({e.name for e in EXPERIMENTS}) == len(EXPERIMENTS) == 31

def test_median_and_best_of_one_population():
    a, b = noisy('median'), noisy('best')
    assert {k for k in a if a[k] != b[k]} == {'choose'}
    assert (a['sigma'], a['unit'], a['members']) == (.1, 'threshold', 10)

def test_an_arm_of_the_grid():
    e = on_resnet20('LAMP at 80%', GRID['LAMP'], .8)
    assert e.name == 'head_to_head/resnet20-cifar10/LAMP at 80%' and e.params['sparsity'] == .8

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('dense')

@pytest.mark.parametrize('e', distinct(EXPERIMENTS), ids=lambda e: e.name)
def test_every_experiment_is_rehearsed(e, cache):
    r = rehearse(e, cache)
    p = e.params['sparsity']
    if not isinstance(p, dict): assert abs(r['sparsity'] - p) < 2e-3
    assert (r['before'] is None) == ('gradual' in e.name or 'drop' in e.name or 'gradient' in e.name)
