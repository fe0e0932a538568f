"What an experiment is and which rows are its own; rows are written whole or not at all."
import subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from prunelab.lab.experiment import (Experiment, append, arguments, check_same_dense, done, old_rows, pending,
                                     plain, read, rehearsal, rows)
from prunelab.lab.training import Recipe

ROOT = Path(__file__).parent.parent
TINY = Recipe('lenet5', 'digits', epochs=3, lr=.02, bs=64, valid=.2, n_train=256, size=16)

def count(net, seed, keep): return {'n': keep}
def count_under_another_name(net, seed, keep): return {'n': keep}
def with_default(net, seed, keep=.5): return {}
def with_state(net, seed, keep, state): return {}

def experiment(run=count, name='toy/a', params={'keep': .5}, **kwargs):
    return Experiment(name, run, TINY, params, **kwargs)

def write(e, results, seed=0, sha='ab', **result):
    row = {'identity': e.identity, 'seed': seed, 'result': result, 'dense': {'sha256': sha}, 'seconds': 1}
    append(results/f'{e.paper}.jsonl', row)

# Identity

def test_a_renamed_function_keeps_its_rows(tmp_path):
    write(experiment(), tmp_path, n=1)
    assert list(done(experiment(count_under_another_name), tmp_path)) == [0]

OTHERS = {
    'parameter': experiment(params={'keep': .25}), 'name': experiment(name='toy/b'),
    'protocol': experiment(protocol=3),
    'rate': replace(experiment(), recipe=replace(TINY, lr=.01)),
    'network': replace(experiment(), recipe=replace(TINY, network='lenet300')),
    'precision': replace(experiment(), recipe=replace(TINY, precision='bf16'))}

@pytest.mark.parametrize('other', OTHERS.values(), ids=OTHERS)
def test_what_decides_the_result_decides_the_identity(tmp_path, other):
    write(experiment(), tmp_path, n=1)
    assert not done(other, tmp_path) and pending([other], tmp_path) == [(other, 0)]

def test_a_changed_constant_inside_a_parameter_is_another_experiment(tmp_path):
    method = {'pruner': 'drop', 'away': .9, 'back': {'from': .1, 'to': 0}}
    e = experiment(params={'keep': method})
    write(e, tmp_path, n=1)
    assert done(e, tmp_path)
    assert not done(experiment(params={'keep': {**method, 'back': {'from': .2, 'to': 0}}}), tmp_path)

def test_what_others_claim_and_what_it_costs_decides_nothing(tmp_path):
    write(experiment(), tmp_path, n=1)
    assert done(experiment(claim={'x': 1}, minutes=7., gpu=True, tiny={'keep': .1}), tmp_path)

def test_tuples_and_lists_are_one(tmp_path):
    write(experiment(params={'keep': (1, 2)}), tmp_path, n=1)
    assert done(experiment(params={'keep': [1, 2]}), tmp_path)

@pytest.mark.parametrize('run, params, said', [
    (count, {}, "missing ['keep']"), (count, {'keep': 1, 'kept': 2}, "unknown ['kept']"),
    (with_default, {'keep': 1}, 'default values'),
    (count, {'keep': torch.relu}, 'plain data'), (count, {'keep': float('nan')}, 'plain data')])
def test_what_is_not_declared_is_refused_at_once(run, params, said):
    with pytest.raises(TypeError) as e: experiment(run, params=params)
    assert said in str(e.value)

def test_the_state_is_no_parameter(): assert arguments(with_state) == {'keep'} and experiment(with_state)

def test_a_rehearsal_is_never_taken_for_the_real_thing(tmp_path):
    public = Recipe('resnet20', 'cifar10', public=True)
    e = Experiment('toy/a', count, public, {'keep': .5}, seeds=(3, 4))
    small = rehearsal(e)
    assert small.identity != e.identity and small.seeds == (3,)
    assert small.recipe.data == 'digits' and not small.recipe.public
    write(small, tmp_path, seed=3, n=1)
    assert not done(e, tmp_path)

# Rows

def test_half_a_line_counts_for_nothing_and_is_removed(tmp_path):
    f = tmp_path/'r.jsonl'
    append(f, {'a': 1})
    with open(f, 'a') as o: o.write('{"a": 2, "b')
    assert read(f) == [{'a': 1}]
    append(f, {'a': 3})
    assert read(f) == [{'a': 1}, {'a': 3}] and f.read_text().count('\n') == 2

def test_a_whole_row_without_its_end_of_line_stays(tmp_path):
    "Editors take it away"
    f = tmp_path/'r.jsonl'
    f.write_text('{"a": {"b": 1}}\n{"a": {"b": 2}}')
    assert read(f) == [{'a': {'b': 1}}, {'a': {'b': 2}}]
    append(f, {'a': 3})
    assert read(f) == [{'a': {'b': 1}}, {'a': {'b': 2}}, {'a': 3}] and f.read_text().count('\n') == 3

WRITER = '''
import sys
sys.path.insert(0, {root!r})
from prunelab.lab.experiment import append
for i in range(40): append({file!r}, {{"who": sys.argv[1], "i": i}})
'''

def test_many_writers_lose_nothing(tmp_path):
    code = WRITER.format(root=str(ROOT), file=str(tmp_path/'r.jsonl'))
    writers = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, who]) for who in 'ab']
    assert [p.wait() for p in writers] == [0, 0]
    found = sorted((r['who'], r['i']) for r in read(tmp_path/'r.jsonl'))
    assert found == [(who, i) for who in 'ab' for i in range(40)]

def test_what_json_does_not_know():
    found = plain({'a': [float('inf'), float('nan'), torch.tensor(1.5)], 2: (torch.tensor([1, 2]), True)})
    assert found == {'a': [None, None, 1.5], '2': [[1, 2], True]}

def test_the_table_has_parameters_and_results(tmp_path):
    e = experiment(seeds=(0, 1))
    write(e, tmp_path, seed=1, right=7)
    write(e, tmp_path, seed=9, right=8)                       # nobody asked for this seed
    table = rows([e], tmp_path)
    columns = ['name', 'seed', 'keep', 'right', 'dense', 'protocol']
    assert table[columns].values.tolist() == [['toy/a', 1, .5, 7, 'ab', 2]]

def test_arms_on_two_dense_networks_are_not_compared(tmp_path):
    a, b = experiment(), experiment(name='toy/b')
    write(a, tmp_path, sha='ab')
    write(b, tmp_path, sha='cd')
    with pytest.raises(ValueError, match='more than one dense'): check_same_dense(rows([a, b], tmp_path))
    check_same_dense(rows([a], tmp_path))

def test_old_rows_stay_readable_and_say_what_they_are(tmp_path):
    what = {'run': 'count', 'recipe': {}, 'params': {'keep': .5}}
    old = {'name': 'toy/a', 'seed': 0, 'what': what, 'result': {'n': 3}}
    append(tmp_path/'toy.jsonl', {**old, 'dense': {}, 'seconds': 2, 'device': 'CPU'})
    write(experiment(), tmp_path, n=4)
    assert old_rows(tmp_path, 'toy')[['keep', 'n', 'protocol']].values.tolist() == [[.5, 3, 1]]
    assert rows([experiment()], tmp_path)['n'].tolist() == [4]
    assert old_rows(tmp_path, 'toy', 'other/*').empty and old_rows(tmp_path, 'nothing').empty

def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='toy/a'): pending([experiment()], '.', 'nothing/*')
