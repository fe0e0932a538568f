"The experiments of paper 1: complete, plain, affordable, and each kind of them rehearsed."
import inspect
import json
import pytest
from prunelab.lab import measures
from prunelab.lab.experiment import rehearsal
from prunelab.lab.models import UNPRUNED
from prunelab.lab.stochastic import (CELLS, DECAYED, EXPERIMENTS, PAPER, SHORT, TINY, claims_of, decay_cell,
    public_one_shot, read_table)
from prunelab.lab.training import dense

ON_TWO_CORES = ('resnet20-cifar10', 'resnet56-cifar10', 'resnet18-cifar10-decayed', 'resnet18-cifar10-short')

def cell(e): return e.name.split('/')[1]

def kind(e):
    "What makes a rehearsal another one: the function, and parameters that lead to other code"
    p = e.params
    pruner = p.get('pruner', {}).get('score'), p.get('pruner', {}).get('allocation')
    sampler, arms = p.get('sampler', {}).get('name'), len(p.get('arms', []))
    return (e.run.__name__, *pruner, sampler, arms, p.get('arm'), p.get('objective'), p.get('unit'),
            p.get('everywhere'), p.get('statistics') is None)

def kinds():
    "One experiment of each kind, and one of each network"
    found = {}
    for e in EXPERIMENTS:
        found.setdefault(kind(e), e)
        found.setdefault(e.recipe.network, e)
    return list({e.name: e for e in found.values()}.values())

# Complete and plain

def test_names_are_unique_and_of_this_paper():
    names = [e.name for e in EXPERIMENTS]
    assert len(set(names)) == len(names) and all(n.startswith('stochastic/') for n in names)

def test_parameters_are_plain_data_and_a_rehearsal_only_makes_them_smaller():
    for e in EXPERIMENTS:
        assert json.loads(json.dumps(e.params)) == e.params, e.name
        assert set(e.tiny) <= set(e.params), e.name

def test_no_two_experiments_are_the_same():
    told = [json.dumps([e.run.__name__, e.recipe.identity, e.params], sort_keys=True) for e in EXPERIMENTS]
    assert len(set(told)) == len(told)

def test_every_measurement_has_a_rehearsal():
    assert {e.run for e in EXPERIMENTS} == set(TINY)
    assert all(UNPRUNED[e.recipe.network] for e in EXPERIMENTS)         # layers that the paper leaves alone

# Affordable

def test_only_what_nobody_finishes_on_two_cores_needs_a_gpu():
    for e in EXPERIMENTS:
        assert (e.minutes is None) == e.gpu == (cell(e) not in ON_TWO_CORES), e.name
        if not e.gpu: assert 0 < e.minutes <= 130, e.name

def test_long_measurements_go_on_after_a_kill():
    for e in EXPERIMENTS:
        if e.minutes and e.minutes > 20: assert 'state' in inspect.signature(e.run).parameters, e.name

def test_the_most_telling_measurements_come_first():
    "All sparsities without noise, then a tenth of the threshold at all of them"
    table = public_one_shot()
    assert [line['run'] for line in table[:6]] == [measures.without_noise]*5 + [measures.one_shot]
    assert {line['params']['sigma'] for line in table[5:10]} == {.1}
    assert [line['what'] for line in decay_cell()[:2]] == ['without noise at 90%', 'one-shot GMP']

# As issued: networks, sparsities, noise

@pytest.mark.parametrize('network', ['resnet20', 'resnet56'])
def test_public_networks_are_pruned_at_five_sparsities_with_seven_sizes_of_noise(network):
    mine = [e for e in EXPERIMENTS if cell(e) == f'{network}-cifar10' and e.run is measures.one_shot]
    plain = [e for e in mine if e.params['pruner'] == measures.PRUNERS['GMP']]
    assert all(e.recipe.public and e.recipe.epochs == 0 and e.recipe.network == network for e in mine)
    assert {(e.params['gamma'], e.params['sigma']) for e in plain} == {
        (gamma, sigma) for gamma in (.5, .6, .7, .8, .9) for sigma in (.02, .05, .1, .2, .3, .4, .7)}
    for e in plain:
        assert (e.params['draws'], e.params['best_of'], e.params['unit']) == (20, 10, 'threshold')
        assert e.params['images'] == {'valid': None, 'test': None}

def test_the_short_network_has_the_papers_product():
    "Learning rate × decay × steps; both are trained in bfloat16 at full width"
    paper, decayed, short = (r.lr*r.wd*r.epochs for r in (PAPER, DECAYED, SHORT))
    assert decayed == pytest.approx(paper) and paper == pytest.approx(12.5*short)
    kinds = {(r.network, r.precision, r.width) for r in (PAPER, DECAYED, SHORT)}
    assert kinds == {('resnet18', 'bf16', None)}

# The paper's claims

def test_claims_are_the_papers():
    r = CELLS['resnet18-cifar10']
    assert (r['sigma'], r['gamma'], r['DP'], r['SP'], r['sd']) == (.005, .9, 29.07, 81.49, 2.)
    assert (r['least'], r['most'], r['tuned_DP'], r['tuned_SP']) == (65, 84, 89.64, 91.74)
    assert (r['LAMP_DP'], r['LAMP_SP'], r['search_gamma'], r['search_sigma']) == (77.8, 84., .874, .0038)
    assert 'SynFlow_SP' not in CELLS['resnet50-cifar10'] and len(CELLS) == 6
    means = [(c['tuned_SP'] - c['tuned_DP']) for c in CELLS.values()]
    assert sum(m > 0 for m in means) == 5                    # the paper: better 'in most cases'

def test_a_table_leaves_out_what_is_nothing():
    table = read_table('cell a b\nx 1 -\ny - .5\n')
    assert table == {'x': {'a': 1.}, 'y': {'b': .5}}
    assert claims_of(table['x'], A='a', B='b') == {'A': 1.}

def test_claims_stand_beside_the_experiments():
    claims = {e.name: e.claim for e in EXPERIMENTS if e.claim}
    assert claims['stochastic/resnet18-cifar10/one-shot GMP']['SP'] == 81.49
    assert claims['stochastic/vgg19-cifar10/fine-tuned SynFlow SP'] == {'accuracy': 90.7}
    assert all(cell(e) in CELLS for e in EXPERIMENTS if e.claim)

# Rehearsed

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('dense')

@pytest.mark.parametrize('e', kinds(), ids=lambda e: e.name.removeprefix('stochastic/'))
def test_rehearsal(e, cache):
    e = rehearsal(e)
    assert e.recipe.data == 'digits' and not e.recipe.public
    result = e.run(dense(e.recipe, 0, cache, 'cpu'), 0, **e.params)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
