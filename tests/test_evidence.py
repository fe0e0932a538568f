"From rows to a line of a table: which rows count, when there is a difference, what is said without."
import json
import pytest
import torch
from prunelab.lab.answers import tally
from prunelab.lab.evidence import (Arm, Evidence, compared, entry, gather, known_difference, missing,
    one_dense, pattern, percent, tallies)
from prunelab.lab.experiment import Experiment
from prunelab.lab.training import Recipe

def no_training(net, seed, pruner): pass
RECIPE = Recipe('lenet5', 'mnist', epochs=1)

def experiment(name, **more):
    given = {'seeds': (0, 1), 'minutes': 2.} | more
    return Experiment(f'demo/net/{name}', no_training, RECIPE, {'pruner': name}, **given)

def row(e, seed, right, dense='d'):
    answers = {'test': tally(torch.tensor(right, dtype=torch.bool)), 'valid': {'n': 2, 'right': 1}}
    facts = {'sha256': f'{dense}{seed}'}
    return {'identity': e.identity, 'seed': seed, 'dense': facts, 'result': {'after': answers}}

A, B = experiment('a at 1x, 8 epochs'), experiment('b at 1x, 8 epochs')
ARMS = Arm(A.name), Arm(B.name)
GOOD, POOR = (1, 1, 1, 1), (1, 0, 1, 0)

def evidence(rows_a, rows_b, other='d'):
    rows = {A.name: {s: row(A, s, r) for s, r in rows_a.items()},
            B.name: {s: row(B, s, r, other) for s, r in rows_b.items()}}
    return Evidence({A.name: A, B.name: B}, rows)

WHOLE = evidence({0: GOOD, 1: GOOD}, {0: POOR, 1: POOR})

def test_rows_count_by_identity_and_seed(tmp_path):
    changed = experiment('a at 1x, 8 epochs', protocol=1)
    lines = [row(A, 0, GOOD), row(changed, 1, GOOD), row(A, 5, GOOD), {'name': A.name, 'seed': 1},
             row(B, 1, POOR)]
    (tmp_path/'demo.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    found = gather([A, B], tmp_path)
    assert {n: list(r) for n, r in found.rows.items()} == {A.name: [0], B.name: [1]}
    assert gather([A], tmp_path/'nowhere').rows == {A.name: {}}

def test_the_difference_is_that_of_the_answers_and_its_sign_that_of_the_order():
    d = compared(WHOLE, *ARMS)
    assert (d.mean, d.seeds, d.images) == (50, 2, 4)
    assert compared(WHOLE, *ARMS[::-1]).mean == -50

@pytest.mark.parametrize('a, b', [({0: GOOD}, {0: POOR, 1: POOR}), ({0: GOOD, 1: GOOD}, {}), ({}, {})])
def test_half_of_the_seeds_is_no_comparison(a, b):
    found = evidence(a, b)
    assert compared(found, *ARMS) is None and known_difference(found, *ARMS) is None
    assert entry(found, *ARMS)['A − B, points'] == ''

def test_two_dense_networks_are_not_compared():
    mixed = evidence({0: GOOD, 1: GOOD}, {0: POOR, 1: POOR}, other='e')
    assert one_dense(WHOLE, [A.name, B.name]) and not one_dense(mixed, [A.name, B.name])
    with pytest.raises(ValueError, match='more than one dense network'): compared(mixed, *ARMS)
    line = entry(mixed, *ARMS)
    assert line['A − B, points'] == '' and 'more than one dense network' in line['rows']
    assert known_difference(mixed, *ARMS) is None

def test_errors_turn_the_sign():
    assert entry(WHOLE, *ARMS, error=True)['A − B, points'].startswith('-50.00')
    assert entry(WHOLE, *ARMS, error=True)['A, %'] == '0.00 ± 0.00'
    assert [known_difference(WHOLE, *ARMS, error=e)[0].mean for e in (True, False)] == [-50, 50]

def test_the_command_measures_all_that_is_counted():
    part = evidence({0: GOOD}, {})
    lack = missing(part, [A.name, B.name])
    assert (lack.units, lack.of, lack.minutes) == (3, 4, 6.)
    assert lack.command.endswith('--only "demo/net/* at 1x, 8 epochs"')
    assert missing(WHOLE, [A.name, B.name]) is None
    gpu = experiment('c', gpu=True, minutes=None)
    assert 'needs a GPU' in str(missing(Evidence({gpu.name: gpu}, {gpu.name: {}}), [gpu.name]))

@pytest.mark.parametrize('names, glob', [
    (['p/n/x'], 'p/n/x'), (['p/n/away and back at 2x', 'p/n/away only at 2x'], 'p/n/away * at 2x'),
    (['p/n/noise 0.1 at 60%', 'p/n/noise 0.1 at 70%'], 'p/n/noise 0.1 at *%'), (['p/a/x', 'p/b/y'], 'p/*')])
def test_a_pattern_fits_its_names_and_ends_at_words(names, glob):
    assert pattern(names) == glob

def test_unknown_names_and_other_seeds_are_refused():
    with pytest.raises(ValueError, match='no experiment'): tallies(WHOLE, Arm('demo/net/x'))
    more = experiment('c', seeds=(0, 1, 2))
    found = Evidence({A.name: A, more.name: more}, {A.name: {}, more.name: {}})
    with pytest.raises(ValueError, match='different seeds'): compared(found, ARMS[0], Arm(more.name))

def test_percent():
    assert percent([5], 10) == '50.00' and percent([5, 6], 10, error=True, digits=1) == '45.0 ± 7.1'
    assert percent([], 10) == ''
