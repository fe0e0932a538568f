"Rows of results: written whole or not at all, skipped when they are there, never written by a rehearsal."
import json, os, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from prunelab.core import weights
from prunelab.lab.engine import Experiment, append, done, experiments, pending, plain, read, rows, run
from prunelab.lab.training import Recipe, dense

TINY = Recipe('lenet5', 'digits', epochs=3, lr=.02, bs=64, valid=.2, n_train=256, size=16)

def count(net, seed, keep=1.): return {'n': int(keep*sum(w.numel() for w in weights(net.learn.model).values())), 'seed': seed}
def fail(net, seed): raise ValueError('on purpose')
def spoil(net, seed):
    with torch.no_grad(): next(net.learn.model.parameters()).mul_(2)
    return {'x': 1}

def weight_sum(net, seed): return {'sum': net.learn.model.fc1.weight.sum().item()}

def exp(f=count, name='toy/a', **kwargs): return Experiment(name, f, TINY, **{'gpu': False, **kwargs})

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

def test_many_writers_lose_nothing(tmp_path):
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\nfrom prunelab.lab.engine import append\nfor i in range(40): append({str(tmp_path/"r.jsonl")!r}, {{"who": sys.argv[1], "i": i}})'
    ps = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, who]) for who in 'ab']
    assert [p.wait() for p in ps] == [0, 0]
    assert sorted((r['who'], r['i']) for r in read(tmp_path/'r.jsonl')) == [(w, i) for w in 'ab' for i in range(40)]

def test_what_json_does_not_know():
    assert plain({'a': [float('inf'), float('nan'), torch.tensor(1.5)], 2: (torch.tensor([1, 2]), True)}) == {'a': [None, None, 1.5], '2': [[1, 2], True]}

def test_a_unit_with_a_row_is_skipped(tmp_path):
    e, calls = exp(seeds=(0, 1)), []
    once = replace(e, run=lambda net, seed: calls.append(seed) or {'x': seed})
    assert run(pending([once], tmp_path/'rows'), tmp_path/'rows', tmp_path, 'cpu', say=calls.append) == []
    calls.clear()
    units = [(once, 0), (once, 1)]           # asked for, although the rows are there
    run(units, tmp_path/'rows', tmp_path, 'cpu', say=lambda s: None)
    assert calls == [] and pending([once], tmp_path/'rows') == []
    assert rows([once], tmp_path/'rows')[['seed', 'x']].values.tolist() == [[0, 0], [1, 1]]

def test_another_parameter_is_another_experiment(tmp_path):
    a, b = exp(params={'keep': .5}), exp(params={'keep': .25})
    run(pending([a], tmp_path/'rows'), tmp_path/'rows', tmp_path, 'cpu', say=lambda s: None)
    assert done(a, tmp_path/'rows') and not done(b, tmp_path/'rows') and pending([b], tmp_path/'rows') == [(b, 0)]
    assert not done(replace(a, recipe=replace(TINY, lr=.01)), tmp_path/'rows')
    assert done(replace(a, claim={'x': 1}), tmp_path/'rows')     # what others say decides nothing

def test_failures_leave_no_row_and_do_not_stop_the_rest(tmp_path):
    es, said = [exp(fail, 'toy/fail'), exp(spoil, 'toy/spoil'), exp(weight_sum)], []
    assert run(pending(es, tmp_path/'rows'), tmp_path/'rows', tmp_path, 'cpu', say=said.append) == ['toy/fail, seed 0', 'toy/spoil, seed 0']
    assert [r['name'] for r in read(tmp_path/'rows/toy.jsonl')] == ['toy/a']
    assert any('on purpose' in s for s in said) and any('changed the dense network' in s for s in said)
    assert read(tmp_path/'rows/toy.jsonl')[0]['result'] == weight_sum(dense(TINY, 0, tmp_path, 'cpu'), 0)     # not the spoilt one

def test_the_time_that_is_given_is_kept(tmp_path):
    said = []
    assert run([(exp(), 0)], tmp_path/'rows', tmp_path, 'cpu', deadline=time.monotonic() - 1, say=said.append) == []
    assert not read(tmp_path/'rows/toy.jsonl') and 'time is up' in said[-1]
    run([(exp(), 0)], tmp_path/'rows', tmp_path, 'cpu', deadline=time.monotonic() + .05, say=said.append)       # ends within the training
    assert not read(tmp_path/'rows/toy.jsonl') and '1 of 3 epochs' in said[-1]
    run([(exp(), 0)], tmp_path/'rows', tmp_path, 'cpu', say=said.append)
    assert len(read(tmp_path/'rows/toy.jsonl')) == 1

def test_a_row_says_how_to_get_it_again(tmp_path):
    run([(exp(params={'keep': .5}), 0)], tmp_path/'rows', tmp_path, 'cpu', say=lambda s: None)
    r = read(tmp_path/'rows/toy.jsonl')[0]
    assert r['what'] == {'run': 'count', 'recipe': TINY.what, 'params': {'keep': .5}}
    assert exp().what['params'] == {'keep': 1.}                   # defaults are part of what was run
    with pytest.raises(TypeError): exp(params={'kept': .5}).what
    assert {'seconds', 'device', 'versions', 'finished', 'dense'} <= set(r) and r['versions']['torch'] == torch.__version__

def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match='toy/a'): pending([exp()], '.', 'nothing/*')

# The command

def command(*args, **kwargs): return subprocess.run([sys.executable, '-W', 'ignore', '-m', 'prunelab.lab.engine', *args], capture_output=True, text=True, cwd=Path(__file__).parent.parent, env={**os.environ, 'OMP_NUM_THREADS': '1'}, **kwargs)

def test_the_command_lists_every_experiment():
    out = command()
    assert out.returncode == 0 and all(e.name in out.stdout for e in experiments()), out.stderr

def test_names_are_unique(): assert len({e.name for e in experiments()}) == len(experiments())

def test_committed_rows_belong_to_experiments():
    "No row among the results that no experiment asks for: a stale one would be shown nowhere and mislead"
    folder = Path(__file__).parent.parent/'nbs/repro/results'
    known = {(e.name, json.dumps(e.what, sort_keys=True)): e.seeds for e in experiments()}
    for f in folder.glob('*.jsonl'):
        for r in read(f): assert r['seed'] in known[r['name'], json.dumps(r['what'], sort_keys=True)], f"{r['name']} seed {r['seed']}"
