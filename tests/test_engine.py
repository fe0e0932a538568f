"Units are run once, whatever is killed; a failure leaves no row; the command lists, runs and rehearses."
import builtins, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from prunelab.core import weights
from prunelab.lab.engine import collect, commit, connected, experiments, measure_unit, overview, run, run_on
from prunelab.lab.engine import submit, train_network
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
    long = replace(TINY, epochs=100)      # more than any machine does in that time
    said, es = [], [Experiment('toy/a', count, long, {'keep': 1.})]
    ran(es, tmp_path, deadline=time.monotonic() - 1, say=said.append)
    assert not read(tmp_path/'rows/toy.jsonl') and 'time is up' in said[-1]
    ran(es, tmp_path, deadline=time.monotonic() + .2, say=said.append)
    assert not read(tmp_path/'rows/toy.jsonl') and 'of 100 epochs' in said[-1]      # of the dense training
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

# On a cluster

def die_once(net, seed, mark):
    "Kills its process the first time that a unit with an odd seed comes to it"
    if seed % 2 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {'sum': net.learn.model.fc1.weight.sum().item(), 'threads': torch.get_num_threads()}

@pytest.fixture(scope='module')
def client():
    with connected(workers=2) as client: yield client

def on(client, es, folder, said=None, **kwargs):
    say = (lambda line: None) if said is None else said.append
    units = pending(es, folder/'rows')
    return run_on(client, units, folder/'rows', str(folder/'cache'), 'cpu', say=say, **kwargs)

def facts(row): return row['seed'], row['identity'], row['result'], row['dense']['sha256']
def facts_of(folder): return sorted((facts(r) for r in read(folder/'rows/toy.jsonl')), key=str)

@pytest.fixture
def one_thread():
    "As Dask's workers have, since other sums round otherwise"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

def test_two_workers_of_which_one_is_killed(client, one_thread, tmp_path):
    "The rows of one process, each once; a failure is reported, and progress is shown"
    mark, said = tmp_path/'died', []
    es = [experiment(die_once, 'toy/a', {'mark': str(mark)}, seeds=(0, 1)),
          experiment(weight_sum, 'toy/b', seeds=(0, 1)), experiment(fail, 'toy/fail')]
    assert on(client, es, tmp_path, said) == ['toy/fail, seed 0']
    assert mark.exists() and any('on purpose' in s for s in said) and '[5/5]' in said[-1]
    alone = tmp_path/'alone'
    assert ran(es, alone) == ['toy/fail, seed 0']
    assert facts_of(tmp_path) == facts_of(alone) and len(facts_of(alone)) == 4
    assert len(list((tmp_path/'cache').glob('*.pt'))) == 2 and not list((tmp_path/'cache').glob('*.state'))
    assert on(client, es[:2], tmp_path) == []                   # nothing is pending

def test_finished_rows_stay_when_somebody_interrupts(client, tmp_path):
    e = experiment(weight_sum, seeds=(0, 1, 2))
    def stop(line): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_on(client, [(e, s) for s in e.seeds], tmp_path/'rows', str(tmp_path/'cache'), 'cpu', say=stop)
    assert len(read(tmp_path/'rows/toy.jsonl')) == 1
    assert on(client, [e], tmp_path) == [] and sorted(done(e, tmp_path/'rows')) == [0, 1, 2]

def test_a_cluster_keeps_to_the_time(client, tmp_path):
    said = []
    assert on(client, [experiment()], tmp_path, said, deadline=time.monotonic()) == []
    assert not read(tmp_path/'rows/toy.jsonl') and 'time is up' in said[-1]

def test_another_version_on_a_worker_is_refused(tmp_path):
    a, b = experiment(), experiment(params={'keep': .5})
    row = measure_unit(a, 0, train_network(TINY, 0, tmp_path, 'cpu'), tmp_path, 'cpu')
    with pytest.raises(RuntimeError, match='another version'): collect(b, row, tmp_path/'rows')
    collect(a, row, tmp_path/'rows')
    assert list(done(a, tmp_path/'rows')) == [0]

def test_another_dense_network_on_a_worker_is_refused(tmp_path):
    "Its file travels to a worker that has none; a worker that has another one says so"
    network = train_network(TINY, 0, tmp_path/'a', 'cpu')
    assert measure_unit(experiment(), 0, network, tmp_path/'b', 'cpu')['result']['seen'] == 0
    assert [f.read_bytes() == network for f in (tmp_path/'b').glob('*.pt')] == [True]
    with pytest.raises(ValueError, match='another network'):
        measure_unit(experiment(), 0, network[:-1], tmp_path/'b', 'cpu')

@pytest.mark.parametrize('given', [{}, {'scheduler': 'tcp://127.0.0.1:1', 'workers': 2}])
def test_one_cluster_is_named(given):
    with pytest.raises(ValueError, match='give one of two'):
        with connected(**given): pass

def test_without_dask_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name == 'distributed': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ImportError, match=r"pip install 'prunelab\[cluster\]'"):
        with connected(workers=2): pass

# The command

def command(*args):
    cmd = [sys.executable, '-W', 'ignore', '-m', 'prunelab.lab.engine', *args]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(cmd, capture_output=True, text=True, cwd=ROOT, env=env)

def test_the_command_lists_every_experiment():
    out = command()
    assert out.returncode == 0 and all(e.name in out.stdout for e in experiments()), out.stderr

def test_the_command_on_a_cluster():
    "A rehearsal of one experiment by one worker"
    name = next(e.name for e in experiments() if e.recipe.network == 'lenet300')
    out = command('--tiny', '--only', name, '--workers', '1')
    assert out.returncode == 0 and '[1/1]' in out.stdout, out.stdout + out.stderr

def test_units_that_need_a_gpu_are_refused_where_no_worker_offers_one():
    "Rather than to wait for one without a word"
    class Client:
        def scheduler_info(self, n_workers): return {'workers': {'a': {'resources': {}}}}
    unit = next((e, 0) for e in experiments() if e.gpu)
    with pytest.raises(ValueError, match='no worker offers one'): submit(Client(), [unit])

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
