"`prunelab.pareto`: objectives by hand, a search that is the same whether or not it was killed, and its front"
import os
import subprocess
import sys
import textwrap
import time
from functools import partial
from multiprocessing import get_context
import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState
import prunelab.pareto as pareto
from prunelab.core import seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.masks import apply_
from prunelab.pareto import F1, F2, fit, front, measure, non_dominated, plot_front, search
from prunelab.scores import lamp_score
from prunelab.stochastic import stochastic_prune, threshold
from .conftest import as_id
from tests.conftest import mlp, Pairs

NSGA = partial(NSGAIISampler, population_size=3)

def task(device='cpu', seed=1):
    "An untrained net and two batches: nothing here needs it to be good"
    p = Pairs(40)
    dl = [(p.x[i].to(device), p.y[i].to(device)) for i in (slice(20), slice(20, 40))]
    with seeded(seed): return mlp().to(device).eval(), dl

def look(objective=F2, n_trials=5, sampler=NSGA, storage=None, model=None, dl=None, **kw):
    "A small search"
    m, d = task()
    kw = {'n': 1, 'sigma': (.01, .5), 'progress': False, **kw}
    return search(objective, model or m, dl or d, n_trials, sampler, storage or InMemoryStorage(), **kw)

def states(study): return [t.state for t in study.trials]
def row(t): return t.user_attrs['draw'], t.params['sigma'], t.params['gamma'], *t.values
def complete(study): return sorted(row(t) for t in study.trials if t.state == TrialState.COMPLETE)

# Objectives, fronts, one trial

@pytest.mark.parametrize('acc, det, gamma, value', [
    (.9, .5, .5, .2), (.5, .5, .9, 0), (.3, .5, .9, -.2), (1, 0, .99, .99)])
def test_objectives_by_hand(acc, det, gamma, value):
    assert fit(acc, det, gamma) == pytest.approx(value)
    assert F1(acc, det, gamma) == pytest.approx((acc, value)) and F2(acc, det, gamma) == (acc, gamma)

def test_front_agrees_with_the_definition():
    v = np.random.default_rng(0).integers(0, 6, (60, 3))          # many ties
    slow = [not any((u >= w).all() and (u > w).any() for u in v) for w in v]
    assert non_dominated(v).tolist() == slow and 0 < sum(slow) < 60

def test_measure_is_the_median_of_single_draws(device):
    model, dl = task(device)
    before, ws = {n: t.clone() for n, t in model.state_dict().items()}, weights(model, '0')
    draws = (0, 0), (.3, 2), (.3, 3), (.3, 4)
    found = [stochastic_prune(ws, .6, s, (3, 8, i), score=lamp_score) for s, i in draws]
    det, *acc = evaluate_population(model, [apply_(v, m) for m, v in found], dl).tolist()
    assert len({*acc}) > 1
    got = measure(model, dl, .3, .6, (3, 8), n=3, first=2, exclude='0', score=lamp_score)
    assert got == (sorted(acc)[1], det)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

def test_measure_takes_the_unit():
    model, dl = task()
    sigma = .4*threshold(weights(model), .6)
    assert measure(model, dl, .4, .6, 3, unit='threshold') == measure(model, dl, sigma, .6, 3)

def test_a_trial_can_be_repeated_and_ranges_hold(device):
    model, dl = task(device)
    study = search(F1, model, dl, 6, TPESampler, InMemoryStorage(), seed=4, n=3, progress=False)
    for t in study.trials:
        assert 1e-4 <= t.params['sigma'] <= 1e-2 and .3 <= t.params['gamma'] <= .99
        acc, det = measure(model, dl, **t.params, seed=(4, t.number), n=3)
        assert (acc, det) == (t.user_attrs['acc'], t.user_attrs['det'])
        assert tuple(t.values) == F1(acc, det, t.params['gamma'])

def test_f2_has_a_range_of_its_own():
    assert look(F2).user_attrs['settings']['gamma'] == [.01, .99]

def test_a_search_in_units_of_the_threshold():
    study = look(n_trials=2, unit='threshold', sigma=(.1, 1.))
    model, dl = task()
    for t in study.trials:
        acc, det = measure(model, dl, **t.params, seed=(0, t.number), n=1, unit='threshold')
        assert (acc, det) == (t.user_attrs['acc'], t.user_attrs['det'])

# Stopped and resumed

@pytest.mark.parametrize('sampler', [NSGA, partial(TPESampler, n_startup_trials=3), RandomSampler])
def test_resumed_in_pieces_is_the_same_search(tmp_path, sampler):
    at = dict(sampler=sampler, storage=tmp_path/'a.db')
    for n in (2, 5, 11): pieces = look(n_trials=n, **at)
    whole = look(n_trials=11, sampler=sampler)
    assert complete(pieces) == complete(whole) and len(whole.trials) == 11
    assert len(look(n_trials=7, **at).trials) == 11               # enough are finished
    assert complete(look(n_trials=11, sampler=sampler, seed=1)) != complete(whole)

KILLED = '''
    import sys, time, prunelab.pareto as pareto
    from tests.test_pareto import look
    measure, calls = pareto.measure, []
    def slow(*args, **kw):
        calls.append(1)
        if len(calls) == 6: print('hangs', flush=True); time.sleep(600)
        return measure(*args, **kw)
    pareto.measure = slow
    look(n_trials=9, storage=sys.argv[1])
'''

def killed_in_the_sixth_trial(db):
    "Start a search in another process, and kill it; while it runs, the file is locked"
    command = [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(KILLED), str(db)]
    root, env = os.path.dirname(os.path.dirname(__file__)), {**os.environ, 'OMP_NUM_THREADS': '1'}
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root)
    try:
        assert p.stdout.readline() == 'hangs\n'
        with pytest.raises(RuntimeError, match='in use by another search'): look(n_trials=9, storage=db)
    finally:
        p.kill()
        p.wait()
    return optuna.load_study(study_name=None, storage=f'sqlite:///{db}')

def test_killed_search_loses_and_repeats_nothing(tmp_path):
    "Afterwards the search ends as if nothing had happened"
    killed = killed_in_the_sixth_trial(tmp_path/'a.db')
    assert states(killed) == [TrialState.COMPLETE]*5 + [TrialState.RUNNING]
    kept = complete(killed)
    study, whole = look(n_trials=9, storage=tmp_path/'a.db'), look(n_trials=9)
    assert states(study) == [TrialState.COMPLETE]*5 + [TrialState.FAIL] + [TrialState.COMPLETE]*4
    assert complete(study)[:5] == kept and complete(study) == complete(whole)
    assert study.trials[6].params == killed.trials[5].params and study.trials[6].user_attrs['draw'] == 5

def stop(*args, **kw): raise KeyboardInterrupt

def test_interrupted_trial_is_done_again(tmp_path, monkeypatch):
    "Also twice in a row, and when it stopped before anything was drawn"
    with monkeypatch.context() as m:
        m.setattr(pareto, 'measure', stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt): look(storage=tmp_path/'a.db')
    study = look(n_trials=3, storage=tmp_path/'a.db')
    study.ask()                                                    # running, nothing drawn
    assert complete(look(n_trials=6, storage=tmp_path/'a.db')) == complete(look(n_trials=6))

# Many workers

def test_silent_worker_is_replaced(tmp_path):
    "With a heartbeat, as for a database URL: the other workers fail the trial and do it again"
    beats = dict(heartbeat_interval=1, grace_period=1, heartbeat_stale_trial_callback=pareto._again)
    def db(): return RDBStorage(f'sqlite:///{tmp_path}/a.db', **beats)
    study = look(n_trials=2, storage=db())
    lost = study.ask()
    study._storage.record_heartbeat(lost._trial_id)                # and never again
    time.sleep(2.1)
    study = look(n_trials=4, storage=db())
    assert study.trials[2].state == TrialState.FAIL and complete(study) == complete(look(n_trials=4))

def test_two_workers_share_a_study(tmp_path):
    "A second worker in the middle of a trial of the first: numbers and draws stay apart, the total is kept"
    db, seen = f'sqlite:///{tmp_path}/a.db', []
    def objective(acc, det, gamma):
        if len(seen) == 2:
            seen.append(0)
            look(objective, 4, RandomSampler, RDBStorage(db), name='shared')
        seen.append(0)
        return acc, gamma
    study = look(objective, 6, RandomSampler, RDBStorage(db), name='shared')
    assert states(study).count(TrialState.COMPLETE) == 6
    assert len({t.params['sigma'] for t in study.trials}) == len(study.trials)
    assert [t.user_attrs['draw'] for t in study.trials] == list(range(6))

def shared(place):
    "What a worker is told about the storage: a journal's path, or a database with a quick heartbeat"
    if place.endswith('.journal'): return place
    return pareto._database(place, interval=1, grace=10)

def worker(place, name, flag, hangs):
    "A search in a process of its own; one hangs in its third trial, the others wait there for it"
    torch.set_num_threads(1)
    measure, calls = pareto.measure, []
    def slow(*args, **kw):
        calls.append(1)
        if len(calls) == 3 and hangs:
            time.sleep(3)    # until its heart has beaten: Optuna doesn't know of a trial killed before that
            flag.touch()
        while len(calls) == 3 and (hangs or not flag.exists()): time.sleep(.02)
        return measure(*args, **kw)
    pareto.measure = slow
    look(n_trials=20, sampler=RandomSampler, storage=shared(place), name=name)

POSTGRES = os.environ.get('PRUNELAB_POSTGRES')
needs_postgres = pytest.mark.skipif(not POSTGRES, reason='PRUNELAB_POSTGRES names no database')
PLACES = ['{}/a.journal', 'sqlite:///{}/a.db', pytest.param(POSTGRES or 'postgresql', marks=needs_postgres)]

@pytest.mark.parametrize('place', PLACES)
def test_four_workers_of_which_one_is_killed(tmp_path, place):
    "No finished trial is lost or repeated; the trial that was killed has failed, and is repeated"
    place, name, flag = place.format(tmp_path), f'four {tmp_path.name} {time.time()}', tmp_path/'hangs'
    context = get_context('forkserver')
    team = [context.Process(target=worker, args=(place, name, flag, i == 0)) for i in range(4)]
    try:
        for p in team: p.start()
        while not flag.exists() and all(p.exitcode is None for p in team): time.sleep(.02)
        assert flag.exists(), 'a worker failed before the first one hung'
        team[0].kill()
        for p in team: p.join(300)
    finally:
        for p in team: p.kill()
    assert [p.exitcode for p in team] == [-9, 0, 0, 0]
    if '://' in place: time.sleep(11)                              # until its heart has not beaten for ten
    storage = shared(place) if '://' in place else pareto._journal(place)
    finished = complete(optuna.load_study(study_name=name, storage=storage))
    study = look(n_trials=len(finished) + 1, sampler=RandomSampler, storage=shared(place), name=name)
    found = complete(study)
    assert set(finished) < set(found)
    draws = [r[0] for r in found]
    assert len(set(draws)) == len(draws) >= 20 and states(study).count(TrialState.RUNNING) == 0
    dead = [t for t in study.trials if t.state == TrialState.FAIL]
    again = [t for t in study.trials if 'repeats' in t.user_attrs and t.state == TrialState.COMPLETE]
    assert len(dead) == len(again) == 1 and again[0].params == dead[0].params
    alone = {r[0]: r for r in complete(look(n_trials=max(draws) + 1, sampler=RandomSampler))}
    assert all(r == alone[r[0]] for r in found)                    # what one process finds under that number

def test_a_worker_that_lives_is_left_alone(tmp_path):
    "Only a trial whose worker has let go of its lock is failed; what nobody signed is left to its owner"
    place = str(tmp_path/'a.journal')
    other = pareto._Workers(tmp_path/'a.journal')
    study = look(n_trials=2, storage=place)
    trial = study.ask()
    trial.set_user_attr('worker', other.name)
    study.ask()
    assert states(look(n_trials=3, storage=place)).count(TrialState.RUNNING) == 2
    other.lock.release()                                           # as the system does when it dies
    study = look(n_trials=4, storage=place)
    assert study.trials[trial.number].state == TrialState.FAIL
    assert states(study).count(TrialState.RUNNING) == 1
    assert [t.user_attrs['repeats'] for t in study.trials if 'repeats' in t.user_attrs] == [trial.number]
    assert sorted(f.name for f in tmp_path.iterdir()) == ['a.journal']

def test_url_gives_a_heartbeat(tmp_path):
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study = look(n_trials=2, storage=f'sqlite:///{tmp_path}/a.db')
    assert study._storage.get_heartbeat_interval() == 60 and len(complete(study)) == 2

# Refused

OTHER = {'sigma': {'sigma': (.01, .4)}, 'gamma': {'gamma': (.1, .9)}, 'seed': {'seed': 3}, 'n': {'n': 3},
         'sampler': {'sampler': TPESampler}, 'objective': {'objective': F1, 'gamma': (.01, .99)},
         'excluded': {'exclude': '0'}, 'pruning': {'score': lamp_score}, 'model': {'model': task(seed=2)[0]},
         'labels': {'dl': task()[1][:1]}}

@pytest.mark.parametrize('what', OTHER)
def test_other_settings_are_refused(what):
    db = InMemoryStorage()
    look(n_trials=1, storage=db, name='a')
    with pytest.raises(ValueError, match=f'{what} was') as e:
        look(n_trials=2, storage=db, name='a', **OTHER[what])
    assert str(e.value).count(' was ') == 2                        # one difference, and the sentence's own
    assert len(look(n_trials=2, storage=db, name='a').trials) == 2 # the right ones still work

def test_another_unit_is_another_search():
    db = InMemoryStorage()
    look(n_trials=1, storage=db, name='a')
    with pytest.raises(ValueError, match='pruning was'):
        look(n_trials=2, storage=db, name='a', unit='threshold')

def test_foreign_study_is_refused():
    db = InMemoryStorage()
    optuna.create_study(storage=db, study_name='a').optimize(lambda t: t.suggest_float('x', 0, 1), 1)
    with pytest.raises(ValueError, match='another name'): look(storage=db, name='a')

BAD = [{'sigma': (0, .1)}, {'sigma': (.2, .1)}, {'gamma': (.5, 1)}, {'gamma': (-.1, .5)}, {'gamma': (.9, .5)},
       {'n_trials': 0}, {'n': 0}, {'sampler': TPESampler(seed=0)}, {'sampler': 'nsga2'},
       {'exclude': 'nothing'}, {'unit': 'tau'}, {'unit': 'threshold', 'kind': 'mul'}]

@pytest.mark.parametrize('bad', BAD, ids=as_id)
def test_bad_arguments_leave_no_study(bad):
    db = InMemoryStorage()
    with pytest.raises(ValueError): look(storage=db, **bad)
    assert not optuna.get_all_study_names(db)

def test_names_survive_another_process():
    "A partial of a function has an address in its repr, which must not count as a setting"
    def again(model, scale): return None
    first, second = (pareto._name(partial(again, scale=lamp_score)) for _ in range(2))
    assert first == second and ' at 0x' not in first and 'lamp_score' in first

# The front

def test_front_is_tested_with_new_draws():
    model, dl = task()
    study = look(F2, 12, n=3, seed=2, exclude='0')
    found = front(F2, study, model, dl[:1], n=5, exclude='0')
    assert set(found.index) == {t.number for t in study.best_trials} and found.gamma.is_monotonic_increasing
    for k, r in found.iterrows():
        at = (r.sigma, r.gamma, (2, k))
        assert (r.test, r.test_det) == measure(model, dl[:1], *at, n=5, first=3, exclude='0')
        assert (r.valid, r.valid_det) == measure(model, dl, *at, n=3, exclude='0')
    assert found.stays.tolist() == non_dominated(found[['test', 'gamma']]).tolist()

def test_a_front_needs_the_settings_of_its_search():
    model, dl = task()
    study = look(F2, 3, exclude='0')
    with pytest.raises(ValueError, match='excluded was'): front(F2, study, model, dl)
    with pytest.raises(ValueError, match='objective was'): front(F1, study, model, dl, exclude='0')

def test_the_figure_shows_every_point():
    model, dl = task()
    study = look(F2, 12)
    found = front(F2, study, model, dl, n=1)
    ax = plot_front(F2, study, found)
    assert ax.get_title() == f'{len(found)} of 12 trials on the front'
    tested = ax.lines[-1]
    order = np.lexsort((found.test, found.gamma))
    assert sorted(tested.get_xdata()) == found.gamma.tolist()
    assert sorted(tested.get_ydata()) == sorted(found.test.to_numpy()[order])

def test_one_objective():
    model, dl = task()
    study = look(fit, 8)
    found = front(fit, study, model, dl)
    assert study.best_trial.number in found.index
    assert study.best_value == max(t.value for t in study.trials)
    with pytest.raises(ValueError, match='two objectives'): plot_front(fit, study, found)

def test_optuna_is_quiet_and_the_bar_is_optional(capfd):
    look()
    assert capfd.readouterr() == ('', '')
    look(progress=True)
    assert '5/5' in capfd.readouterr().err

class Stopped(KeyboardInterrupt): "Somebody stops the search"

@pytest.mark.parametrize('place', ['search.db', 'search.journal', 'memory'])
def test_a_search_that_was_stopped_twice_loses_and_repeats_nothing(tmp_path, place):
    "Ctrl-C is no kill: Optuna calls the trial failed"
    storage = InMemoryStorage() if place == 'memory' else tmp_path/place
    left = [2, 1]
    def objective(acc, det, gamma):
        if left and gamma != .5:                    # at .5 the search asks how many values there are
            left[0] -= 1
            if left[0] < 0:
                left.pop(0)
                raise Stopped
        return acc, gamma
    how = {'sampler': RandomSampler, 'gamma': (.1, .9)}
    whole = look(**how)
    for _ in range(2):
        with pytest.raises(Stopped): look(objective, storage=storage, name='stopped', **how)
    study = look(objective, storage=storage, name='stopped', **how)
    def done(study): return sorted((t.user_attrs['draw'], *t.params.values(), *t.values)
                                   for t in study.trials if t.state == TrialState.COMPLETE)
    assert done(study) == done(whole) and len(done(study)) == 5

def test_seeds_and_numbers_of_any_size_and_kind():
    sigma, gamma = np.array([.01, .5]), np.array([.1, .9])
    study = look(n_trials=1, seed=2**40 + 1, n=np.int64(1), sigma=sigma, gamma=gamma)
    assert study.user_attrs['settings']['seed'] == 2**40 + 1
    model, dl = task()
    a, b = (measure(model, dl, .1, .5, seed=(2**63 + 5, 1), n=1) for _ in range(2))
    assert a == b

WEIGHT = .5
def weighted(acc, det, gamma): return acc + WEIGHT*gamma

def test_another_global_is_another_objective(monkeypatch):
    storage = InMemoryStorage()
    look(weighted, 1, storage=storage, name='weighted')
    look(weighted, 2, storage=storage, name='weighted')
    monkeypatch.setattr(sys.modules[__name__], 'WEIGHT', -5.)
    with pytest.raises(ValueError, match='settings'): look(weighted, 3, storage=storage, name='weighted')

def test_labels_in_a_column():
    "A view with gaps between its numbers"
    model, [(x, y), *_] = task()
    look(n_trials=1, model=model, dl=[(x, torch.stack([y, y], 1)[:, 1])])

def test_trials_without_a_value_are_told():
    with pytest.warns(UserWarning, match='0 of 2 trials gave a value'):
        look(n_trials=2, metric=lambda out, y: torch.full_like(out[:, 0], float('nan')))
