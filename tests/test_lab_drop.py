"The experiments of paper 2: every arm begins alike, is trained as long, and runs; one comparison is named."
import pytest, torch
from prunelab.lab.arms import make_pruner
from prunelab.lab.drop import ARMS, EXPERIMENTS, PRIMARY, block, dropping
from prunelab.lab.training import Recipe
from .rehearse import blocks_of, check_block, distinct, rehearse

TOY = Recipe('lenet5', 'digits', epochs=2)
FOUR = {'magnitude': (1, 0), 'away only': (.9, 0), 'back only': (1, .1), 'away and back': (.9, .1)} # α and β

def test_the_four_ablations_differ_in_two_probabilities():
    four = {k: (v['away'], v['back']) for k, v in ARMS.items() if v and v['method'] == 'drop'}
    assert four == FOUR
    rest = [{k: x for k, x in ARMS[a].items() if k not in ('away', 'back')} for a in four]
    assert all(r == rest[0] for r in rest)

def test_the_callback_does_what_the_arms_say():
    ws = {'w': torch.ones(4, 5)}
    pruners = {k: make_pruner(v, .5, ws, 0) for k, v in ARMS.items() if v and v['method'] == 'drop'}
    assert {k: cb.probabilities(0) for k, cb in pruners.items()} == FOUR
    assert make_pruner(dropping(.9, .1), .5, ws, 0).probabilities(.5) == (.9, .05)

def test_all_arms_that_prune_follow_one_schedule():
    assert len({str(v['schedule']) for v in ARMS.values() if v}) == 1

def test_regrowth_returns_as_many_as_return_by_lot():
    both, rival = ARMS['away and back'], ARMS['regrow by gradient']
    assert (rival['grow'], rival['grow to']) == (both['back'], both['back to'])

def test_a_block_has_each_arm_at_each_compression_and_one_control():
    es = block('lenet5-digits', TOY, 3, .05, [4, 10], ['dense', 'magnitude', 'random'], (7, 8), minutes=2.)
    assert [e.name.split('/')[2] for e in es] == [
        'dense, 3 epochs', 'magnitude at 4x, 3 epochs', 'random at 4x, 3 epochs',
        'magnitude at 10x, 3 epochs', 'random at 10x, 3 epochs']
    assert [e.params['sparsity'] for e in es] == [0, .75, .75, .9, .9]
    assert [e.params['pruner'] for e in es] == [None, *[ARMS['magnitude'], ARMS['random']]*2]
    assert {(e.seeds, e.minutes, e.gpu, e.recipe) for e in es} == {((7, 8), 2., False, TOY)}

def test_arms_of_a_block_share_dense_network_epochs_and_rate():
    "Ours is tuned as long as its rivals, and the dense control too"
    cells = blocks_of(EXPERIMENTS, lambda e: (e.name.split('/')[1], e.name.rsplit(', ')[-1]))
    assert len(cells) == 5
    for es in cells.values():
        check_block(es)
        assert sum(e.params['pruner'] is None for e in es) == 1

def test_what_the_issue_asks_for_is_there():
    names = {e.name for e in EXPERIMENTS if not e.gpu}
    for arm in ('magnitude', 'away only', 'back only', 'away and back', 'regrow by gradient', 'random'):
        assert f'drop/lenet5-mnist/{arm} at 14.3x, 8 epochs' in names
        for ratio in ('14.3', '25', '50', '100', '200'):
            assert f'drop/lenet5-mnist/{arm} at {ratio}x, 3 epochs' in names
    assert {'drop/lenet5-mnist/dense, 3 epochs', 'drop/lenet5-mnist/dense, 8 epochs'} <= names
    assert all(len(e.seeds) == 5 for e in EXPERIMENTS if 'lenet' in e.name)
    assert {e.recipe.precision for e in EXPERIMENTS if 'lenet5' in e.name} == {'bf16'}

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
    "One of each network and arm, at its first compression; other compressions are other numbers"
    r = rehearse(e, cache)
    assert abs(r['sparsity'] - e.params['sparsity']) < 1e-4
    assert ('moves' in r) == (e.params['pruner'] is not None and e.params['pruner']['method'] == 'drop')
    if 'away and back' in e.name or 'back only' in e.name: assert r['moves']['returned'] > 0
    if 'away only' in e.name or 'magnitude' in e.name: assert r['moves']['returned'] == 0
