"`prunelab.pareto`: objectives by hand, a search that is the same whether or not it was killed, and a front that is tested with new draws"
import os, subprocess, sys, textwrap, time
from functools import partial
import numpy as np, optuna, pytest, torch
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState
from prunelab.core import seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.masks import apply_
from prunelab.pareto import F1, F2, fit, front, measure, non_dominated, plot_front, search, _again
from prunelab.scores import lamp_score
from prunelab.stochastic import stochastic_prune
from tests.conftest import mlp, Pairs

NSGA = partial(NSGAIISampler, population_size=3)

def task(device='cpu', seed=1):
    "An untrained net and two batches: nothing here needs it to be good"
    p = Pairs(40)
    with seeded(seed): return mlp().to(device).eval(), [(p.x[i].to(device), p.y[i].to(device)) for i in (slice(20), slice(20, 40))]

def look(objective=F2, n_trials=5, sampler=NSGA, storage=None, model=None, dl=None, **kw):
    m, d = task()
    return search(objective, model or m, dl or d, n_trials, sampler, storage or InMemoryStorage(), **{'n': 1, 'sigma': (.01, .5), 'progress': False, **kw})

def complete(study): return sorted((t.user_attrs['draw'], t.params['sigma'], t.params['gamma'], *t.values) for t in study.trials if t.state == TrialState.COMPLETE)

@pytest.mark.parametrize('acc, det, gamma, value', [(.9, .5, .5, .2), (.5, .5, .9, 0), (.3, .5, .9, -.2), (1, 0, .99, .99)])
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
    members = [apply_(*reversed(stochastic_prune(ws, .6, s, (3, 8, i), score=lamp_score))) for s, i in ((0, 0), (.3, 2), (.3, 3), (.3, 4))]
    det, *acc = evaluate_population(model, members, dl).tolist()
    assert len({*acc}) > 1
    assert measure(model, dl, .3, .6, (3, 8), n=3, first=2, exclude='0', score=lamp_score) == (sorted(acc)[1], det)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

def test_a_trial_can_be_repeated_and_ranges_hold(device):
    model, dl = task(device)
    study = search(F1, model, dl, 6, TPESampler, InMemoryStorage(), seed=4, n=3, progress=False)
    for t in study.trials:
        assert 1e-4 <= t.params['sigma'] <= 1e-2 and .3 <= t.params['gamma'] <= .99
        acc, det = measure(model, dl, **t.params, seed=(4, t.number), n=3)
        assert (acc, det) == (t.user_attrs['acc'], t.user_attrs['det']) and tuple(t.values) == F1(acc, det, t.params['gamma'])
    assert look(F2).user_attrs['settings']['gamma'] == [.01, .99]

@pytest.mark.parametrize('sampler', [NSGA, partial(TPESampler, n_startup_trials=3), RandomSampler])
def test_resumed_in_pieces_is_the_same_search(tmp_path, sampler):
    for n in (2, 5, 11): pieces = look(n_trials=n, sampler=sampler, storage=tmp_path/'a.db')
    whole = look(n_trials=11, sampler=sampler)
    assert complete(pieces) == complete(whole) and len(whole.trials) == 11
    assert len(look(n_trials=7, sampler=sampler, storage=tmp_path/'a.db').trials) == 11      # enough are finished
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

def test_killed_search_loses_and_repeats_nothing(tmp_path):
    "SIGKILL in the sixth trial; the file is locked until then; afterwards the search ends as if nothing had happened"
    db = tmp_path/'a.db'
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(KILLED), str(db)], stdout=subprocess.PIPE, text=True,
                         cwd=os.path.dirname(os.path.dirname(__file__)), env={**os.environ, 'OMP_NUM_THREADS': '1'})
    try:
        assert p.stdout.readline() == 'hangs\n'
        with pytest.raises(RuntimeError, match='in use by another search'): look(n_trials=9, storage=db)
    finally: p.kill(); p.wait()
    killed = optuna.load_study(study_name=None, storage=f'sqlite:///{db}')
    assert [t.state for t in killed.trials] == [TrialState.COMPLETE]*5 + [TrialState.RUNNING]
    kept = complete(killed)
    study, whole = look(n_trials=9, storage=db), look(n_trials=9)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]*5 + [TrialState.FAIL] + [TrialState.COMPLETE]*4
    assert complete(study)[:5] == kept and complete(study) == complete(whole)
    assert study.trials[6].params == killed.trials[5].params and study.trials[6].user_attrs['draw'] == 5

def test_interrupted_trial_is_done_again(tmp_path, monkeypatch):
    "Also twice in a row, and when it stopped before anything was drawn"
    import prunelab.pareto as pareto
    def stop(*args, **kw): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(pareto, 'measure', stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt): look(storage=tmp_path/'a.db')
    study = look(n_trials=3, storage=tmp_path/'a.db')
    study.ask()                                                    # running, nothing drawn
    assert complete(look(n_trials=6, storage=tmp_path/'a.db')) == complete(look(n_trials=6))

def test_silent_worker_is_replaced(tmp_path):
    "With a heartbeat, as for a database URL: the other workers fail the trial and do it again"
    db = lambda: RDBStorage(f'sqlite:///{tmp_path}/a.db', heartbeat_interval=1, grace_period=1, heartbeat_stale_trial_callback=_again)
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
        if len(seen) == 2: seen.append(0); look(other, 4, RandomSampler, RDBStorage(db), name='shared')
        seen.append(0)
        return acc, gamma
    def other(acc, det, gamma): return acc, gamma
    other.__name__ = 'objective'
    study = look(objective, 6, RandomSampler, RDBStorage(db), name='shared')
    assert sum(t.state == TrialState.COMPLETE for t in study.trials) == 6
    assert len({t.params['sigma'] for t in study.trials}) == len(study.trials) and [t.user_attrs['draw'] for t in study.trials] == list(range(6))

def test_url_gives_a_heartbeat(tmp_path):
    with pytest.warns(optuna.exceptions.ExperimentalWarning): study = look(n_trials=2, storage=f'sqlite:///{tmp_path}/a.db')
    assert study._storage.get_heartbeat_interval() == 60 and len(complete(study)) == 2

@pytest.mark.parametrize('change, word', [({'sigma': (.01, .4)}, 'sigma was'), ({'gamma': (.1, .9)}, 'gamma was'), ({'seed': 3}, 'seed was'), ({'n': 3}, 'n was'),
    ({'sampler': TPESampler}, 'sampler was'), ({'objective': F1, 'gamma': (.01, .99)}, 'objective was'), ({'exclude': '0'}, 'excluded was'), ({'score': lamp_score}, 'pruning was'),
    ({'model': task(seed=2)[0]}, 'model was'), ({'dl': task()[1][:1]}, 'labels was')])
def test_other_settings_are_refused(change, word):
    db = InMemoryStorage()
    look(n_trials=1, storage=db, name='a')
    with pytest.raises(ValueError, match=word) as e: look(n_trials=2, storage=db, name='a', **change)
    assert str(e.value).count(' was ') == 2                                               # one difference, and the sentence's own
    assert len(look(n_trials=2, storage=db, name='a').trials) == 2                        # the right ones still work

def test_foreign_study_is_refused():
    db = InMemoryStorage()
    optuna.create_study(storage=db, study_name='a').optimize(lambda t: t.suggest_float('x', 0, 1), 1)
    with pytest.raises(ValueError, match='another name'): look(storage=db, name='a')

@pytest.mark.parametrize('bad', [{'sigma': (0, .1)}, {'sigma': (.2, .1)}, {'gamma': (.5, 1)}, {'gamma': (-.1, .5)}, {'gamma': (.9, .5)}, {'n_trials': 0}, {'n': 0},
                                 {'sampler': TPESampler(seed=0)}, {'sampler': 'nsga2'}, {'exclude': 'nothing'}])
def test_bad_arguments_leave_no_study(bad):
    db = InMemoryStorage()
    with pytest.raises(ValueError): look(storage=db, **bad)
    assert not optuna.get_all_study_names(db)

def test_names_survive_another_process():
    "A partial of a function has an address in its repr, which must not count as a setting"
    def again(model, scale): return None
    from prunelab.pareto import _name
    assert _name(partial(again, scale=lamp_score)) == _name(partial(again, scale=lamp_score)) and ' at 0x' not in _name(partial(again, scale=lamp_score)) and 'lamp_score' in _name(partial(again, scale=lamp_score))

def test_front_is_tested_with_new_draws():
    model, dl = task()
    study = look(F2, 12, n=3, seed=2, exclude='0')
    found = front(F2, study, model, dl[:1], n=5, exclude='0')
    assert set(found.index) == {t.number for t in study.best_trials} and found.gamma.is_monotonic_increasing
    for k, r in found.iterrows():
        assert (r.test, r.test_det) == measure(model, dl[:1], r.sigma, r.gamma, (2, k), n=5, first=3, exclude='0')
        assert (r.valid, r.valid_det) == measure(model, dl, r.sigma, r.gamma, (2, k), n=3, exclude='0')
    assert found.stays.tolist() == non_dominated(found[['test', 'gamma']]).tolist()
    ax = plot_front(F2, study, found)
    assert ax.get_title() == f'{len(found)} of 12 trials on the front'
    with pytest.raises(ValueError, match='excluded was'): front(F2, study, model, dl)
    with pytest.raises(ValueError, match='objective was'): front(F1, study, model, dl, exclude='0')

def test_one_objective():
    model, dl = task()
    study = look(fit, 8)
    found = front(fit, study, model, dl)
    assert study.best_trial.number in found.index and set(found.valid) and study.best_value == max(t.value for t in study.trials)
    with pytest.raises(ValueError, match='two objectives'): plot_front(fit, study, found)

def test_optuna_is_quiet_and_the_bar_is_optional(tmp_path, capfd):
    look()
    assert capfd.readouterr() == ('', '')
    look(progress=True)
    assert '5/5' in capfd.readouterr().err
