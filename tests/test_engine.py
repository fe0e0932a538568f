"Units are run once, whatever is killed; a failure leaves no row; the command lists, runs and rehearses."
import os, subprocess, sys, time
from pathlib import Path
import torch
from prunelab.core import weights
from prunelab.lab.engine import commit, experiments, overview, run
from prunelab.lab.experiment import Experiment, done, pending, read, rows
from prunelab.lab.training import Recipe, dense, fingerprint

ROOT = Path(__file__).parent.parent
TINY = Recipe('lenet5', 'digits', epochs=3, lr=.02, bs=64, valid=.2, n_train=256, size=16)
calls = []

def count(net, seed, keep):
    calls.append(seed)
    return {'n': int(keep*sum(w.numel() for w in weights(net.learn.model).values())), 'seen': seed}
def fail(net, seed): raise ValueError('on purpose')
def spoil(net, seed):
    with torch.no_grad(): next(net.learn.model.parameters()).mul_(2)
    return {'x': 1}
def weight_sum(net, seed): return {'sum': net.learn.model.fc1.weight.sum().item()}
def stepwise(net, seed, steps, state):
    "Stops after its first step, and goes on from it when called again"
    first = not state.exists()
    state.write_text('begun')
    if first: raise ConnectionError('killed')
    return {'steps': steps}

def experiment(f=count, name='toy/a', params=None, **kwargs):
    if params is None: params = {'keep': 1.} if f is count else {}
    return Experiment(name, f, TINY, params, **kwargs)
def ran(es, folder, units=None, say=lambda line: None, **kwargs):
    units = pending(es, folder/'rows') if units is None else units
    return run(units, folder/'rows', folder, 'cpu', say=say, **kwargs)

def test_a_unit_with_a_row_is_skipped(tmp_path):
    e = experiment(seeds=(0, 1))
    assert ran([e], tmp_path) == []
    calls.clear()
    ran([e], tmp_path, [(e, 0), (e, 1)])                  # asked for, although the rows are there
    assert calls == [] and pending([e], tmp_path/'rows') == []
    assert rows([e], tmp_path/'rows')[['seed', 'seen']].values.tolist() == [[0, 0], [1, 1]]

def test_failures_leave_no_row_and_do_not_stop_the_rest(tmp_path):
    es, said = [experiment(fail, 'toy/fail'), experiment(spoil, 'toy/spoil'), experiment(weight_sum)], []
    failed = ran(es, tmp_path, say=said.append)
    assert failed == ['toy/fail, seed 0', 'toy/spoil, seed 0']
    assert any('on purpose' in s for s in said) and any('works on copies' in s for s in said)
    found = read(tmp_path/'rows/toy.jsonl')
    assert [r['identity']['name'] for r in found] == ['toy/a']
    assert found[0]['result'] == weight_sum(dense(TINY, 0, tmp_path, 'cpu'), 0)       # not the spoilt one

def test_the_time_that_is_given_is_kept(tmp_path):
    said, es = [], [experiment()]
    ran(es, tmp_path, deadline=time.monotonic() - 1, say=said.append)
    assert not read(tmp_path/'rows/toy.jsonl') and 'time is up' in said[-1]
    ran(es, tmp_path, deadline=time.monotonic() + .05, say=said.append)
    assert not read(tmp_path/'rows/toy.jsonl') and '1 of 3 epochs' in said[-1]      # of the dense training
    ran(es, tmp_path)
    assert len(read(tmp_path/'rows/toy.jsonl')) == 1

def test_a_row_says_how_to_get_it_again(tmp_path):
    e = experiment(params={'keep': .5})
    ran([e], tmp_path)
    row, net = read(tmp_path/'rows/toy.jsonl')[0], dense(TINY, 0, tmp_path, 'cpu')
    assert row['identity'] == e.identity and row['identity']['params'] == {'keep': .5}
    assert row['dense']['sha256'] == fingerprint(net.learn.model)
    assert row['dense']['test']['n'] == len(net.learn.dls.test.dataset)
    assert row['machine']['threads'] == torch.get_num_threads()
    assert row['machine']['torch'] == torch.__version__
    assert {'processor', 'device', 'fastai', 'python'} <= set(row['machine'])
    assert row['seconds'] >= 0 and set(row['commit']) == {'sha', 'clean'}

def test_the_commit_is_that_of_the_checkout():
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    if head.returncode: assert commit() == {'sha': None, 'clean': None}
    else: assert commit()['sha'] == head.stdout.strip() and commit()['clean'] in (True, False)

def test_an_unfinished_unit_goes_on_from_its_state(tmp_path):
    e = experiment(stepwise, params={'steps': 2})
    assert ran([e], tmp_path) == ['toy/a, seed 0'] and len(list(tmp_path.glob('*.state'))) == 1
    assert ran([e], tmp_path) == [] and not list(tmp_path.glob('*.state'))
    assert done(e, tmp_path/'rows')[0]['result'] == {'steps': 2}

def test_the_list_shows_what_it_costs(tmp_path):
    a, b = experiment(minutes=5.), experiment(name='toy/b', minutes=7.)
    ran([a], tmp_path)
    table = overview([a, b], tmp_path/'rows')
    measured, expected = table['minutes a unit']
    assert table['done'].tolist() == [1, 0] and measured < 5 and expected == 7

# The command

def command(*args):
    cmd = [sys.executable, '-W', 'ignore', '-m', 'prunelab.lab.engine', *args]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(cmd, capture_output=True, text=True, cwd=ROOT, env=env)

def test_the_command_lists_every_experiment():
    out = command()
    assert out.returncode == 0 and all(e.name in out.stdout for e in experiments()), out.stderr

def test_names_are_unique(): assert len({e.name for e in experiments()}) == len(experiments())

def test_every_experiment_says_what_a_unit_costs_or_needs_a_gpu():
    assert [e.name for e in experiments() if e.minutes is None and not e.gpu] == []

def test_committed_rows_belong_to_experiments():
    "No row among the results that no experiment asks for: a stale one would be shown nowhere and mislead"
    known = {e.name: e for e in experiments()}
    for f in (ROOT/'nbs/repro/results').glob('*.jsonl'):
        for r in read(f):
            if 'identity' not in r: continue                     # protocol 1: shown with that label
            e = known[r['identity']['name']]
            assert r['identity'] == e.identity and r['seed'] in e.seeds, f'{e.name} seed {r["seed"]}'
            assert r['commit']['clean'], f'{e.name} was measured with changed files'
