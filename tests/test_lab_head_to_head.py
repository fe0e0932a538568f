"Side by side: three networks, one training each, the sparsity told to everybody, and a fair search."
import json
import sys
import pytest
from prunelab.lab.drop import ARMS
from prunelab.lab.experiment import rehearsal
from prunelab.lab.extreme import RULES
from prunelab.lab.head_to_head import (
    COMBINED, EXPERIMENTS, GRID, GRIDS, PEERS, PRIMARY, RATE, RESNET20, SEARCHES, TUNED, arm, by_fasterai,
    drawn, filled, noisy, tuned)
from prunelab.lab.training import dense
from .rehearse import check_block, distinct, rehearse

CELLS = {'lenet300-digits': 10, 'lenet300-mnist': 10, 'resnet20-cifar10': 3}

def of(cell): return [e for e in GRIDS if e.name.split('/')[1] == cell]

@pytest.mark.parametrize('cell', CELLS)
def test_all_arms_at_every_sparsity(cell):
    told = {}
    for e in of(cell):
        p = e.params['sparsity']
        if not isinstance(p, dict): told.setdefault(p, []).append(e.params['pruner'])
    assert told.pop(0.) == [None]
    assert all(specs == [*GRID.values(), *COMBINED.values()] for specs in told.values())
    assert [*told] == ([.8, .95] if 'resnet' in cell else [.8, .9, .95, .98, .99])

@pytest.mark.parametrize('cell', CELLS)
def test_ours_and_its_rivals_at_the_sparsity_that_it_finds(cell):
    there = {e.name.split('/')[-1]: e.params for e in of(cell) if isinstance(e.params['sparsity'], dict)}
    rivals = {'LAMP', 'global', 'ERK', 'uniform', 'random'}
    assert {k.split(' as ')[0] for k in there} == {'extreme value', *rivals}
    assert all(p['sparsity'] == RULES['hybrid'] for p in there.values())
    assert there['extreme value']['pruner'] == RULES['hybrid']

@pytest.mark.parametrize('cell,seeds', CELLS.items())
def test_one_network_one_training_for_all(cell, seeds):
    check_block(of(cell))
    assert {e.seeds for e in of(cell)} == {tuple(range(seeds))}
    outside = '["conv1", "linear"]' if 'resnet' in cell else '[]'
    assert {json.dumps(e.params['exclude']) for e in of(cell)} == {outside}

def test_the_public_network():
    recipe = of('resnet20-cifar10')[0].recipe
    assert (recipe.public, recipe.epochs, recipe.precision) == (True, 0, 'bf16')

def test_names_are_names():
    assert len({e.name for e in EXPERIMENTS}) == len(EXPERIMENTS)
    assert GRID['drop'] == ARMS['away and back'] and GRID['gradual magnitude'] == ARMS['magnitude']

def test_median_and_best_of_one_population():
    a, b = noisy('median'), noisy('best')
    assert {k for k in a if a[k] != b[k]} == {'choose'}
    assert (a['sigma'], a['unit'], a['members']) == (.1, 'threshold', 10)

def test_an_arm_of_the_table():
    e = arm('net-data/LAMP at 80%', RESNET20, GRID['LAMP'], .8, {'epochs': 3, 'lr': .05})
    assert e.name == 'head_to_head/net-data/LAMP at 80%' and e.params['sparsity'] == .8

def test_everyone_has_as_many_trials_and_epochs():
    for cell in ('lenet300-digits', 'lenet300-mnist'):
        es = [e for e in SEARCHES if e.name.split('/')[1] == cell]
        assert len({(e.params['trials'], e.params['epochs'], e.seeds, e.recipe) for e in es}) == 1
        assert {e.params['epochs'] for e in es} == {e.params['epochs'] for e in of(cell)}
    assert all(ranges['lr'] == TUNED['old rules'][1]['lr'] for _, ranges in TUNED.values())

def test_what_may_vary_is_there():
    for spec, ranges in TUNED.values():
        filled(spec, {path: spec_of[1] for path, spec_of in ranges.items() if path != 'lr'})

def test_primaries_are_experiments_with_the_same_seeds():
    seeds = {e.name: e.seeds for e in EXPERIMENTS}
    assert all(seeds[a] == seeds[b] for a, b in PRIMARY.values())

class Trial:
    "Takes the highest of everything"
    def suggest_float(self, path, low, high, log=False): return high
    def suggest_int(self, path, low, high): return high
    def suggest_categorical(self, path, choices): return choices[-1]

def test_ranges_as_data():
    ranges = {'a': ['float', 0., 1.], 'b': ['int', 1, 5], 'c': ['log', .1, 10.], 'd': ['one of', ['x', 'y']]}
    assert drawn(Trial(), ranges) == {'a': 1., 'b': 5, 'c': 10., 'd': 'y'}

def test_constants_fill_a_copy():
    spec = {'a': 1, 'b': {'c': 2}}
    assert filled(spec, {'a': 3, 'b.c': 4}) == {'a': 3, 'b': {'c': 4}} and spec == {'a': 1, 'b': {'c': 2}}
    for path in ('x', 'b.x', 'x.c'):
        with pytest.raises(ValueError, match='leads nowhere'): filled(spec, {path: 1})

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('dense')

@pytest.mark.parametrize('e', distinct(GRIDS), ids=lambda e: e.name)
def test_every_arm_is_rehearsed(e, cache):
    r = rehearse(e, cache)
    p = e.params['sparsity']
    if not isinstance(p, dict): assert abs(r['sparsity'] - p) < 2e-3
    assert (r['before'] is None) == ('gradual' in e.name or 'drop' in e.name or 'gradient' in e.name)

@pytest.mark.parametrize('e', PEERS[:3], ids=lambda e: e.name)
def test_every_peer_is_rehearsed(e, cache):
    "On the target or near it, which is what the row says"
    r = rehearse(e, cache)
    assert abs(r['sparsity'] - e.params['sparsity']) < .03
    assert (r['before'] is None) == ('fasterai' in e.name) and set(r['versions']) >= {'torch'}
    left = sum(k for k, _ in r['kept'].values())/sum(n for _, n in r['kept'].values())
    assert r['sparsity'] == pytest.approx(1 - left)

def test_a_missing_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'fasterai', None)
    monkeypatch.setitem(sys.modules, 'fasterai.core', None)
    with pytest.raises(ModuleNotFoundError, match='make peers'): by_fasterai('agp', .9, None)

def first_of_each(es):
    "One experiment for each method that is tuned"
    return [*{e.name.split('tuned ')[1].split(' at ')[0]: e for e in reversed(es)}.values()]

@pytest.mark.parametrize('e', first_of_each(SEARCHES), ids=lambda e: e.name)
def test_every_search_is_rehearsed(e, cache):
    r = rehearse(e, cache)
    best = max(r['trials'], key=lambda trial: trial['right'] or 0)
    assert len(r['trials']) == 2 and r['chosen'] == best['values']
    assert r['after']['valid']['right'] == best['right'] and abs(r['sparsity'] - e.params['sparsity']) < 2e-3

def test_a_search_repeats_itself(cache):
    e = rehearsal(SEARCHES[0])
    net = dense(e.recipe, 0, cache, 'cpu')
    assert tuned(net, 0, **e.params) == tuned(net, 0, **e.params)

def test_a_trial_that_cannot_be_built_counts_and_loses(cache):
    "Chances near 0 don't arrive at the sparsity, and drop pruning refuses them"
    e = next(rehearsal(e) for e in SEARCHES if 'tuned drop at' in e.name)
    net = dense(e.recipe, 0, cache, 'cpu')
    def search(least, most, trials):
        ranges = {'away': ['float', least, most], **RATE}
        return tuned(net, 0, **{**e.params, 'ranges': ranges, 'trials': trials})
    r = search(.1, .35, 6)
    refused = [t['values'] for t in r['trials'] if t['right'] is None]
    assert len(r['trials']) == 6 and 0 < len(refused) < 6 and r['chosen'] not in refused
    with pytest.raises(RuntimeError, match='none of the 2 trials'): search(.01, .02, 2)
