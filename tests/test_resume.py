"What prunelab.resume promises beyond its page: real kills, refusals, damaged files"
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import trainable_params
from safetensors.torch import load
from torch import nn
from prunelab import resume
from prunelab.callbacks import PruneCB
from prunelab.core import seeded
from prunelab.drop import DropPruning
from prunelab.extreme import ExtremeValuePruning, Fitted
from prunelab.lab.data import get_dls
from prunelab.lab.models import lenet300
from prunelab.resume import PruneCheckpoint, decode, encode, is_data
from prunelab.resume import last_state, previous, read_state, write_state
from prunelab.schedules import gradual, steps
from prunelab.stochastic import StochasticPruning
from prunelab.tails import GEV
from .soak.kills import CPU, METHODS, Runs, differing, learner, silent

ROOT = Path(__file__).parent.parent

# Real kills, in processes of their own

# Each training, each method, each way to keep: two kills a line, ten in all
PLAN = [('one_cycle', 'random', 0), ('fine_tune', 'drop', 0), ('torch_adam', 'stochastic', None),
        ('accumulating', 'extreme', 0), ('in_rounds', 'snip', 0)]

@pytest.fixture(scope='module')
def runs(tmp_path_factory): return Runs(tmp_path_factory.mktemp('kills')/'runs', seed=1)

@pytest.mark.parametrize('training,method,every', PLAN)
def test_killed_twice_and_nothing_is_different(runs, training, method, every):
    whole, kills = runs.whole(training, method), runs.kills
    killed = runs.killed(training, method, every, 2)
    assert runs.kills == kills + 2, f'it was not killed: {runs.log}'
    assert differing(whole, killed) == [], runs.log

def test_without_a_checkpoint_the_comparison_fails(runs):
    "The same comparison tells two networks apart: it can fail"
    a, b = runs.whole('one_cycle', 'random'), runs.whole('one_cycle', 'snip')
    assert {'weights', 'optimizer', 'masks', 'recorded', 'pruner.rows'} <= set(differing(a, b))

# In this process: a kill is an exception that nobody knows

class Killed(BaseException): "SIGKILL, for a test"

class Stop(Callback):
    "Ends everything at the n-th call of an event"
    order = 120
    def __init__(self, event=None, n=1):
        self.n = n
        if event: setattr(self, event, self.count)
    def count(self):
        self.n -= 1
        if self.n == 0: raise Killed

def fit(folder, stop=None, method='random', every=0, epochs=3, lr=1e-2, more=(), **kwargs):
    "A learner after a fit that was, or was not, stopped"
    learn = learner(folder, **kwargs)
    learn.pruner = METHODS[method]() if isinstance(method, str) else method
    learn.keeper = PruneCheckpoint(Path(folder)/'run', every)
    try: learn.fit_one_cycle(epochs, lr, cbs=[learn.pruner, learn.keeper, *more, Stop(*(stop or ()))])
    except Killed: assert stop
    else: assert not stop
    return learn

def same(a, b):
    "Do two learners have the same weights, to the bit?"
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values())
    return all(torch.equal(v, w) for v, w in pairs)

@pytest.fixture
def whole(tmp_path): return fit(tmp_path/'whole', every=None)

AT = [('after_batch', 5), ('after_train', 2), ('after_epoch', 3), ('after_cancel_fit', 1)]

@pytest.mark.parametrize('stop', AT)
def test_anywhere(tmp_path, whole, stop):
    if stop[0] == 'after_cancel_fit': fit(tmp_path)         # finished: what is killed is its second call
    fit(tmp_path, stop)
    assert same(fit(tmp_path), whole)

@pytest.mark.parametrize('part', resume.PARTS)
def test_each_part_is_needed(tmp_path, whole, monkeypatch, part):
    "If one of them is not put back, in the middle of an epoch, another network comes out"
    fit(tmp_path, ('after_step', 17))
    get, _ = resume.PARTS[part]
    monkeypatch.setitem(resume.PARTS, part, (get, lambda learn, saved: None))
    assert not same(fit(tmp_path), whole)

class Remembers(nn.Module):
    "Adds what it has put out before, from batch to batch; kept in a buffer or in an attribute"
    def __init__(self, inside, buffer):
        super().__init__()
        self.inside = inside
        if buffer: self.register_buffer('before', torch.zeros(()))
        else: self.before = torch.zeros(())
    def forward(self, x):
        out = self.inside(x)
        self.before = .5*self.before + out.mean().detach()
        return out + self.before

def remembering(folder, buffer, stop=()):
    learn = learner(folder)
    learn.model = Remembers(learn.model, buffer)
    learn.splitter = trainable_params
    cbs = [METHODS['random'](), PruneCheckpoint(folder/'run', 0), Stop(*stop)]
    try: learn.fit_one_cycle(2, 1e-2, cbs=cbs)
    except Killed: assert stop
    return learn

def test_a_network_that_remembers_in_a_buffer(tmp_path, recwarn):
    whole = remembering(tmp_path/'whole', True)
    remembering(tmp_path, True, ('after_batch', 17))
    assert same(remembering(tmp_path, True), whole)
    assert not [w for w in recwarn if 'of the network changed' in str(w.message)]

def test_a_network_that_remembers_elsewhere_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"\['before'\] of the network changed") as said:
        remembering(tmp_path, False)
    assert sum('of the network changed' in str(w.message) for w in said) == 1       # not at every batch

def test_the_random_state_after_the_fit(tmp_path, whole):
    after = torch.get_rng_state()
    fit(tmp_path, ('after_batch', 20))
    fit(tmp_path)
    assert torch.equal(torch.get_rng_state(), after)

def test_a_progress_bar(tmp_path, whole):
    fit(tmp_path, ('after_batch', 20), more=[ProgressCallback()])
    for _ in range(2): assert same(fit(tmp_path, more=[ProgressCallback()]), whole)     # goes on; is finished

def test_a_finished_fit_is_not_trained_again(tmp_path, capsys):
    first, seen = fit(tmp_path), []
    class Count(Stop):
        def after_step(self): seen.append(1)
    Count.__qualname__ = 'Stop'
    again = learner(tmp_path)
    pruner = METHODS['random']()
    again.fit_one_cycle(3, 1e-2, cbs=[pruner, PruneCheckpoint(tmp_path/'run', 0), Count()])
    assert same(first, again) and seen == [] and 'delete' in capsys.readouterr().out
    assert pruner.rows == first.pruner.rows and again.recorder.values == first.recorder.values
    again.fit(1, 1e-2)                                              # the masks are held on
    zeros = sum(int((w == 0).sum()) for w in pruner.holder.weights().values())
    assert zeros == round(.8*(12*32 + 32*16 + 16*4))

def test_trackers_rest_while_a_finished_fit_is_put_back(tmp_path):
    first = fit(tmp_path, more=[SaveModelCallback()])
    (tmp_path/'models/model.pth').unlink()
    again = fit(tmp_path, more=[SaveModelCallback()])
    assert same(first, again)

def test_early_stopping_goes_on_counting(tmp_path):
    def run(folder, stop=None):
        return fit(folder, stop, epochs=8, lr=0., more=[EarlyStoppingCallback(patience=3)])
    alone = run(tmp_path/'alone')
    run(tmp_path, ('after_epoch', 2))
    assert run(tmp_path).recorder.values == alone.recorder.values

def test_an_interrupted_replay_leaves_the_learner_alone(tmp_path):
    fit(tmp_path, ('after_batch', 20))
    learn = fit(tmp_path, ('before_train', 1))
    assert '_with_events' not in vars(learn)

def test_validation_and_lr_find_are_no_fits(tmp_path):
    learn = learner(tmp_path, cbs=PruneCheckpoint(tmp_path/'run'))
    learn.validate()
    learn.get_preds()
    learn.lr_find(num_it=8, show_plot=False)
    assert not (tmp_path/'run').exists()
    learn.fit(1, 1e-2)
    learn.validate()
    names = sorted(f.name for f in (tmp_path/'run').iterdir())
    assert names == ['fit-0.previous.safetensors', 'fit-0.safetensors']

def test_every_so_many_minutes(tmp_path, monkeypatch):
    "Half a minute a batch, and a checkpoint every four: behind each eighth batch, and at the end"
    clock, written = itertools.count(), []
    monkeypatch.setattr(resume.time, 'monotonic', lambda: 0)
    write = PruneCheckpoint.write
    def note(self, batch=None, finished=False):
        written.append((self.epoch, batch, finished))
        write(self, batch, finished)
    class Tick(Stop):
        def before_batch(self):
            if not self.training: return
            now = 30*(next(clock) + 1)
            monkeypatch.setattr(resume.time, 'monotonic', lambda: now)
    monkeypatch.setattr(PruneCheckpoint, 'write', note)
    fit(tmp_path, every=4, more=[Tick()])
    assert written == [(0, 7, False), (1, 3, False), (1, 11, False), (2, 7, False), (2, None, True)]

def test_a_finished_fit_leaves_one_file_when_the_next_has_one(tmp_path):
    learn = learner(tmp_path)
    for _ in range(2): learn.fit(2, 1e-2, cbs=PruneCheckpoint(tmp_path/'run'))
    names = sorted(f.name for f in (tmp_path/'run').iterdir())
    assert names == ['fit-0.safetensors', 'fit-1.previous.safetensors', 'fit-1.safetensors']

def test_two_commands_in_one_process_are_two_runs_of_one_folder(tmp_path):
    "A second learner begins at the first fit again"
    fit(tmp_path)
    assert fit(tmp_path).keeper.file.name == 'fit-0.safetensors'

def test_packed_images_with_their_augmentation(tmp_path):
    "The lab's loader makes an order and an augmentation from the number of the epoch"
    def run(stop=None, folder='run'):
        with seeded(1): learn = Learner(get_dls('digits', bs=64, augment=True, device=CPU), lenet300(size=8))
        learn.remove_cb(ProgressCallback)
        learn.logger = silent
        cbs = [METHODS['drop'](), PruneCheckpoint(tmp_path/folder, 0), Stop(*(stop or ()))]
        try: learn.fit(2, 1e-3, cbs=cbs)
        except Killed: assert stop
        return learn
    alone = run(folder='alone')
    run(('after_step', 25))
    run(('after_step', 5))
    assert same(run(), alone)

# Whose checkpoint?

CHANGES = {
    'schedule': dict(method=PruneCB(.8, schedule=gradual(n=5))),
    'seed': dict(method=PruneCB(.8, seed=7)),
    'DropPruning|PruneCB|callbacks': dict(method='drop'),
    'epochs': dict(epochs=4),
    'lr': dict(lr=2e-2),
    'metric|began from other weights': dict(seed=4),
    'optimizer': dict(opt_func=partial(SGD, mom=.8)),
    'callbacks': dict(more=[EarlyStoppingCallback(patience=9)])}

@pytest.mark.parametrize('what', CHANGES)
def test_of_another_run(tmp_path, what):
    fit(tmp_path, ('after_batch', 5), method=PruneCB(.8))
    with pytest.raises(ValueError, match=f'of another run.*({what})') as e:
        fit(tmp_path, **{'method': PruneCB(.8), **CHANGES[what]})
    assert 'delete' in str(e.value) and str(tmp_path/'run') in str(e.value)

def test_without_seeds_who_knows_better_may_go_on(tmp_path):
    fit(tmp_path, ('after_batch', 5))
    learn, cb = learner(tmp_path, seed=4), METHODS['random']()
    learn.fit_one_cycle(3, 1e-2, cbs=[cb, PruneCheckpoint(tmp_path/'run', 0, same_start=False), Stop()])
    assert len(learn.recorder.losses) == 36

def test_another_machine_is_a_warning(tmp_path, monkeypatch):
    fit(tmp_path, ('after_batch', 5))
    monkeypatch.setattr(resume, '_machine', lambda: {'torch': '9.9', 'threads': 64})
    with pytest.warns(UserWarning, match='last digits'): fit(tmp_path)

def test_a_loader_that_gives_less(tmp_path):
    fit(tmp_path, ('after_batch', 10))
    learn = learner(tmp_path)
    batches = learn.dls.train.create_batches
    learn.dls.train.create_batches = lambda idxs: (b for i, b in enumerate(batches(idxs)) if i < 3)
    with pytest.raises(ValueError, match='only 3'):
        learn.fit_one_cycle(3, 1e-2, cbs=[METHODS['random'](), PruneCheckpoint(tmp_path/'run', 0), Stop()])

def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, 'num_distrib', lambda: 2)
    with pytest.raises(ValueError, match='several: leave it out'): fit(tmp_path)

@pytest.mark.parametrize('bad', [-1, float('nan')])
def test_minutes_that_are_none(tmp_path, bad):
    with pytest.raises(ValueError, match='minutes'): PruneCheckpoint(tmp_path, every=bad)

# Files

def test_a_truncated_one_is_skipped_and_said(tmp_path, whole):
    keeper = fit(tmp_path, ('after_batch', 20)).keeper
    keeper.file.write_bytes(keeper.file.read_bytes()[:-10])
    with pytest.warns(UserWarning, match='fit-0.safetensors cannot be read.*skipped'): learn = fit(tmp_path)
    assert same(learn, whole)

DAMAGE = {
    'five bytes': lambda b: b[:5], 'nothing': lambda b: b'', 'its end': lambda b: b[:-100] + bytes(100),
    'all zeros': lambda b: bytes(len(b))}

@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_damage(tmp_path, damage):
    file = tmp_path/'fit-0.safetensors'
    for i in (1, 2): write_state(file, {'i': i, 'x': torch.rand(50)})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match='skipped'): assert last_state(file)['i'] == 1
    previous(file).write_bytes(damage(previous(file).read_bytes()))
    with pytest.warns(UserWarning, match='skipped'): assert last_state(file) is None

@pytest.mark.parametrize('dies', ['fsync', 'replace'])
def test_killed_while_writing(tmp_path, monkeypatch, dies):
    file = tmp_path/'fit-0.safetensors'
    for i in (1, 2): write_state(file, {'i': i})
    def die(*args): raise Killed
    with monkeypatch.context() as m:
        if dies == 'fsync': m.setattr(os, 'fsync', die)
        else: m.setattr(Path, 'replace', die)
        with pytest.raises(Killed): write_state(file, {'i': 3})
    assert last_state(file)['i'] == 2
    file.unlink()                               # killed between the two renamings
    assert last_state(file)['i'] == 1

def test_no_pickle_and_no_code(tmp_path):
    file = fit(tmp_path, method='extreme').keeper.file
    load(file.read_bytes())
    state = read_state(file)
    assert state['finished'] and json.dumps(state['facts'])
    with pytest.raises(ValueError, match='import evil first'):
        decode({'is': 'dataclass', 'type': 'evil:Law', 'fields': encode({}, {})}, {})
    with pytest.raises(ValueError, match='does not know'):
        decode({'is': 'dataclass', 'type': 'os:system', 'fields': encode({}, {})}, {})

@pytest.mark.parametrize('x', [
    float('nan'), [], (), {}, {'a': {1: (2.5, None)}},
    list(range(500)), [2**70]*200, [.5]*200, [np.float64(.5)]*200, [True]*200,
    np.float32(.1), np.arange(6, dtype=np.uint32).reshape(2, 3), torch.ones(2, 0), torch.tensor(3),
    torch.ones(3, dtype=torch.bfloat16), torch.ones(3).bool(), [torch.tensor(1.)]*200,
    [torch.tensor(1.), torch.tensor(1)]*100, random.Random(3).getstate(), np.random.PCG64(3).state,
    Fitted(GEV(.1, .2, .3), 'own', 1., 30, .1)], ids=str)
def test_there_and_back(x):
    tensors = {}
    text = json.dumps(encode(x, tensors))
    back = decode(json.loads(text), tensors)
    assert is_data(x) and type(back) is type(x) and text == json.dumps(encode(back, {}))
    if isinstance(x, list) and x: assert [type(i) for i in back] == [type(i) for i in x]
    if isinstance(x, Fitted): assert torch.equal(back.distribution.cdf(.5), x.distribution.cdf(.5))

def test_pruners_keep_no_more_than_data():
    extreme = ExtremeValuePruning(schedule=steps(3))
    for cb in (PruneCB(.5), StochasticPruning(.5, .1), DropPruning(.5), extreme):
        lost = {k for k, v in vars(cb).items() if not is_data(v)}
        assert lost <= {'score', 'allocation', 'select', 'metric', 'back', 'pool', 'how', 'away'}, lost

def test_the_same_command(tmp_path, runs):
    "A script in a process of its own, started twice; the undisturbed one need not be a script"
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    def start(die):
        cmd = [sys.executable, '-W', 'ignore', script, tmp_path, str(die)]
        return subprocess.run(cmd, capture_output=True, text=True, env=env)
    killed, rest = start(25), start(-1)
    assert (killed.returncode, rest.returncode) == (-signal.SIGKILL, 0), rest.stderr
    assert differing(runs.whole('one_cycle', 'drop'), json.loads(rest.stdout.splitlines()[-1])) == []

SCRIPT = '''
import json, os, signal, sys, torch
from pathlib import Path
from fastai.callback.core import Callback
from prunelab.resume import PruneCheckpoint
from tests.soak.kills import METHODS, ending, learner
class Die(Callback):
    def after_step(self):
        if self.train_iter == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
learn, pruner = learner(Path(sys.argv[1])), METHODS['drop']()
learn.fit_one_cycle(3, 1e-2, cbs=[pruner, PruneCheckpoint(Path(sys.argv[1])/'run', every=0), Die()])
print(json.dumps(ending(learn, pruner)))
'''
