"Two processes that train one network hold the same bits after every step, and what one process would hold."
import pytest
import torch
from fastai.learner import Learner
from prunelab.evaluate import evaluate_shared
from prunelab.processes import joined, place, rank, together, whole
from .soak.ranks import DENSE_SIZE, N, PRUNERS, SPECIAL, in_order_of, learner, run, train

TRAININGS = [{'name': n, 'epochs': 4, 'shuffle': False} for n in PRUNERS]                 # 1,040 steps
NORMED = [{'name': n, 'epochs': 1, 'norm': True} for n in ('snip', 'stochastic', 'drop, grasp')]
JOBS = [*TRAININGS, *NORMED, *SPECIAL]

@pytest.fixture(scope='module')
def found():
    "What both processes have to say about every job"
    return [dict(zip(map(str, JOBS), results)) for results in run(JOBS)]

def of(found, job): return [results[str(job)] for results in found]
def name_of(job): return f"{job['name']}{', BatchNorm' if job.get('norm') else ''}"

@pytest.mark.parametrize('job', [*TRAININGS, *NORMED], ids=name_of)
def test_the_same_bits_after_every_step(found, job):
    for result in of(found, job):
        assert (result['masks'], result['weights']) == (0, 0)
        assert result['steps'] == result['done'] == 13*job['epochs']
    a, b = of(found, job)
    assert a['rows'] == b['rows'] and a['rows']
    if 'extreme' in job['name']: return
    assert sum(int(m.sum()) for m in a['masks_at_end'].values()) == round(.2*DENSE_SIZE)

def test_a_thousand_steps(found): assert sum(of(found, job)[0]['steps'] for job in TRAININGS) >= 1000

@pytest.mark.parametrize('job', TRAININGS, ids=name_of)
def test_one_process_with_the_same_batches_ends_alike(found, job):
    "To rounding, in float64: the same masks, and weights that agree to nine digits"
    several, alone = of(found, job)[1], train(**job, alone_as=2)
    assert alone['rows'] == several['rows']
    assert all(torch.equal(m, several['masks_at_end'][n]) for n, m in alone['masks_at_end'].items())
    for n, w in alone['weights_at_end'].items(): assert (w - several['weights_at_end'][n]).abs().max() < 1e-9

def test_that_comparison_can_fail():
    "One process whose batches hold other examples ends elsewhere"
    job = {'name': 'snip', 'epochs': 2, 'shuffle': False}
    a, b = train(**job, alone_as=2), train(**job, alone_as=4)
    assert not all(torch.equal(m, b['masks_at_end'][n]) for n, m in a['masks_at_end'].items())

@pytest.mark.parametrize('case', ['other_weights', 'own_seed'])
def test_the_first_process_decides_what_may_differ(found, case):
    "Also where each had its own weights and masks before the fit, or its own seed"
    for result in of(found, case): assert (result['masks'], result['weights']) == (0, 0)

def test_members_are_compared_on_equal_terms(found):
    "The same network in two processes, each with running statistics of its own, has one accuracy"
    for result in of(found, 'without_noise'): assert len(set(result['values'].tolist())) == 1

def test_an_incomplete_batch_does_not_keep_the_target_away(found):
    for result in of(found, 'incomplete_batches'):
        assert sum(int(m.sum()) for m in result['masks_at_end'].values()) == round(.2*DENSE_SIZE)
        assert (result['masks'], result['weights']) == (0, 0)

def test_our_loader_is_cut_into_parts(found):
    "Each image once in one of the processes, and none moved as its neighbour in the other"
    a, b = of(found, 'our_loader')
    assert sorted(a['images'] + b['images']) == list(range(96)) and a['images'] != sorted(a['images'])
    assert a['moved'].shape == b['moved'].shape and not torch.equal(a['moved'], b['moved'])

# In one process

def test_alone_nothing_is_asked():
    learn = learner()
    assert (place(learn), rank(), whole(learn.dls.valid)) == ((0, 1), 0, learn.dls.valid)
    with together(learn) as same: assert same is learn and not hasattr(learn, 'distributed_trainer')

def test_alone_the_versions_are_evaluated_once():
    learn, made = learner(), []
    def member(i):
        made.append(i)
        return {}
    assert len(evaluate_shared(learn.model, member, 5, learn.dls.valid)) == 5 and made == [0, 1, 2, 3, 4]

def test_batches_are_joined_whatever_holds_them():
    parts = [([torch.ones(n, 2)], {'a': (torch.zeros(n),)}) for n in (3, 1)]
    (x,), extra = joined(parts)
    assert x.shape == (4, 2) and len(extra['a'][0]) == 4
    for bad in ([torch.ones(2, 7), torch.ones(2, 9)], ['a', 'b'], [torch.tensor(1.)]*2):
        with pytest.raises(ValueError, match='cannot be joined'): joined(bad)

def test_without_accelerate_the_error_says_what_to_install(monkeypatch):
    import builtins
    import sys
    real = builtins.__import__
    def stumble(name, *args, **kwargs):
        if name == 'fastai.distributed': raise NameError("name 'Accelerator' is not defined")
        return real(name, *args, **kwargs)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delitem(sys.modules, 'fastai.distributed', raising=False)
    monkeypatch.setattr(builtins, '__import__', stumble)
    with pytest.raises(ImportError, match=r"pip install 'prunelab\[parallel\]'"):
        with together(learner()): pass

def test_the_order_of_the_comparison():
    assert len(in_order_of(2)) == N and isinstance(learner(alone_as=2), Learner)
