"What the callback guarantees. Each test names its guarantee and fails if the code breaks it."
import copy
import pickle
import warnings
from functools import partial
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelStepException
import fastai.callback.schedule     # gives Learner lr_find, fine_tune
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper, RMSProp
from torch import nn
from prunelab.allocation import erk, global_, lamp, uniform
from prunelab.callbacks import PruneCB
from prunelab.core import weights
from prunelab.gradient_scores import snip
from prunelab.hold import HoldMasks
from prunelab.schedules import Schedule, gradual, one_shot, steps
from prunelab.scores import random_score
from .conftest import make_learner

N = 480     # weights of the small network
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='fastai mixed precision needs CUDA')

def zeros(learn): return sum(int((w == 0).sum()) for w in weights(learn.model).values())
def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def on_cpu(tensors): return {k: t.cpu() for k, t in tensors.items()}
def masked_moved(cb): return any((w[~cb.masks[n]] != 0).any() for n, w in cb.weights().items())
def column(learn): return list(learn.recorder.metric_names).index('sparsity')

class Each(Callback):
    "Calls `f(learn)` at `event`, after all other callbacks"
    order = 99
    def __init__(self, event, f):
        self.f = f
        setattr(self, event, lambda: f(self.learn))

# 1. exact counts, the target at the end of the last step, a measured column

@pytest.mark.parametrize('allocation', [global_, uniform, erk, lamp])
@pytest.mark.parametrize('p', [0, .1, .505, .9, .97])
def test_1_exact_count_with_ties(new_learner, allocation, p):
    learn = new_learner()
    with torch.no_grad():
        for w in weights(learn.model).values(): w.fill_(.5)     # every weight ties with every other
    learn.prune(p, allocation=allocation)
    assert zeros(learn) == round(p*N)

SCHEDULES = [gradual(end=1., n=1000), steps(7, end=1.), one_shot(1.), gradual(end=.3)]

@pytest.mark.parametrize('schedule', SCHEDULES)
def test_1_target_at_the_end_of_the_last_step(new_learner, schedule):
    learn, seen = new_learner(), []
    def count(learn):
        if learn.training: seen.append(zeros(learn))
    learn.fit(2, .1, cbs=[PruneCB(.9, schedule=schedule), Each('after_batch', count)])
    assert seen[-1] == round(.9*N) and zeros(learn) == round(.9*N)

def test_1_target_also_when_the_last_epoch_is_cut_short(new_learner):
    learn, cb = new_learner(), PruneCB(.9, schedule=gradual(n=10, end=1.))
    def stop(learn):
        if learn.epoch == 1 and learn.iter == 2: raise CancelEpochException()
    learn.fit(2, .1, cbs=[cb, Each('after_batch', stop)])
    assert zeros(learn) == round(.9*N) and cb.finished

def test_1_column_is_measured(new_learner):
    learn, rows = new_learner(), []
    with torch.no_grad(): learn.model[0].weight[:, :6] = 0
    learn.logger = rows.append
    def largest_first(ws): return {n: -w.detach().abs() for n, w in ws.items()}
    learn.fit(2, 0., cbs=[PruneCB(.1, schedule=one_shot(.5), score=largest_first)])
    assert column(learn) == len(rows[0]) - 2
    assert [round(row[column(learn)]*N) for row in rows] == [120, 120 + round(.1*N)]

# 2. exact zeros after every step

OPTS = {'sgd momentum': partial(SGD, mom=.9), 'adam': Adam, 'rmsprop momentum': partial(RMSProp, mom=.9),
        'torch adamw': partial(OptimWrapper, opt=torch.optim.AdamW)}

class SkipSome(Callback):
    "What a loss scaler does on overflow: autocast, and every third step is skipped"
    order = 10
    def before_fit(self): self.n = 0
    def before_batch(self):
        self.cast = torch.autocast('cpu', torch.bfloat16)
        self.cast.__enter__()
    def after_loss(self): self.cast.__exit__(None, None, None)
    def before_step(self):
        self.n += 1
        if self.n % 3 == 0: raise CancelStepException

KINDS = {'plain': [], 'amp': [SkipSome], 'accumulate': [partial(GradientAccumulation, 48)]}

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('opt', OPTS)
def test_2_zero_after_every_step(new_learner, opt, kind):
    learn, bad = new_learner(opt_func=OPTS[opt], wd=.1), []
    learn.fit(1, .1)                                            # the optimizer has momentum before pruning
    cb = PruneCB(.8, schedule=gradual(end=.5))
    def check(learn): bad.append(masked_moved(cb))
    checks = [Each('after_step', check), Each('after_batch', check)]
    learn.fit(3, .1, cbs=[cb, *checks, *(make() for make in KINDS[kind])])
    assert len(bad) > 20 and not any(bad)

def test_2_infinite_weights_too(new_learner):
    learn = new_learner()
    cb = learn.prune(.5)
    with torch.no_grad():
        for n, w in weights(learn.model).items(): w[~cb.masks[n]] = float('nan')
    cb.holder.after_step()
    assert zeros(learn) == N//2

class Flip(PruneCB):
    "Keeps one half of each weight, then the other, then the first again"
    def propose(self, t):
        ws, turn = self.weights(), len(self.rows) % 2
        half = {n: torch.arange(w.numel(), device=w.device).view(w.shape) % 2 == turn for n, w in ws.items()}
        return half, {n: torch.ones_like(w) for n, w in ws.items()}

def memory_of(learn, cb, moved):
    "The largest number that the optimizer remembers of the moved entries, for each of its tensors"
    states = getattr(learn.opt, 'opt', learn.opt).state
    return [v[moved[n]].abs().max().item() for n, w in cb.weights().items() for v in states[w].values()
            if torch.is_tensor(v) and v.shape == w.shape]

@pytest.mark.parametrize('opt', OPTS)
def test_2_optimizer_state_of_moved_weights_is_zero(new_learner, opt):
    learn, seen = new_learner(opt_func=OPTS[opt]), []
    learn.fit(1, .1)
    cb = Flip(.5, schedule=steps(3, end=.6))
    def check(learn):
        if len(cb.rows) == len(seen): return
        first = len(cb.rows) == 1                               # one half leaves; then all change sides
        moved = {n: ~m if first else torch.ones_like(m) for n, m in cb.masks.items()}
        seen.append(memory_of(learn, cb, moved))
    learn.fit(3, .1, cbs=[cb, Each('before_batch', check)])
    assert len(seen) == 3 and all(len(s) >= 3 for s in seen) and not np.any(seen)

@needs_cuda
def test_2_real_mixed_precision(tmp_path):
    learn, bad = make_learner(tmp_path, 'cuda').to_fp16(), []
    cb = PruneCB(.8, schedule=gradual(end=.5))
    learn.fit(3, .1, cbs=[cb, Each('after_step', lambda learn: bad.append(masked_moved(cb)))])
    assert bad and not any(bad) and zeros(learn) == round(.8*N)

# 3. masks live outside the module

def test_3_state_dict_and_deepcopy(new_learner):
    learn = new_learner()
    keys = list(learn.model.state_dict())
    learn.prune(.5)
    twin = copy.deepcopy(learn.model)
    assert list(learn.model.state_dict()) == keys == list(twin.state_dict())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in learn.model.modules())

def test_3_save_and_load(new_learner):
    learn = new_learner()
    learn.prune(.5)
    learn.fit(1, .1)
    learn.save('m')
    before = state(learn)
    learn.fit(1, .1)
    learn.load('m')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.validate()
    assert same(state(learn), before)

@pytest.mark.parametrize('attached', [True, False], ids=['on the Learner', 'held only'])
def test_3_lr_find_changes_nothing(new_learner, attached):
    cb = PruneCB(.8, score=random_score, schedule=gradual(n=10))
    learn = new_learner(cbs=cb if attached else None)
    learn.fit(1, .1, cbs=None if attached else cb)
    if attached: cb.done, cb.rows = 4, cb.rows[:4]             # in the middle of its schedule
    def now():
        masks = {n: m.clone() for n, m in cb.holder.masks.items()}
        return state(learn), masks, (cb.draws, cb.done, cb.step, len(cb.rows))
    before = now()
    learn.lr_find(num_it=12, show_plot=False)
    after = now()
    assert same(before[0], after[0]) and same(before[1], after[1]) and before[2] == after[2]
    assert zeros(learn) == round(.8*N)

def counting(saved, **kwargs):
    "A `SaveModelCallback` that notes how many zeros each saved model has"
    class Counting(SaveModelCallback):
        def _save(self, name):
            saved.append(zeros(self.learn))
            super()._save(name)
    return Counting(**kwargs)

def test_3_save_model_never_restores_an_epoch_before_the_target(new_learner):
    learn, saved = new_learner(), []
    dense_is_best = counting(saved, monitor='sparsity', comp=np.less)     # every earlier epoch is better
    learn.fit(6, .01, cbs=[PruneCB(.9, schedule=steps(3, end=.6)), dense_is_best])
    assert saved[0] < round(.9*N) and saved[-1] == round(.9*N) == zeros(learn)

def test_3_early_stopping_waits_for_the_target(new_learner):
    learn = new_learner()
    learn.fit(15, .02)
    cb = PruneCB(.9, schedule=steps(2, end=.6))
    learn.fit(10, 0., cbs=[cb, EarlyStoppingCallback(patience=1)])     # lr 0: no epoch improves
    assert cb.finished and zeros(learn) == round(.9*N)
    assert learn.epoch < 9                                      # and it still stops afterwards

def test_3_an_epoch_without_masks_does_not_win_after_learn_prune(new_learner):
    learn, keep = new_learner(), SaveModelCallback(reset_on_fit=False)
    learn.fit(15, .02, cbs=keep)
    learn.prune(.9)
    learn.fit(2, 1e-4, cbs=keep)
    assert (learn.path/learn.model_dir/'model.pth').exists() and zeros(learn) == round(.9*N)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.validate()

def exported(new_learner, to_cpu):
    "A learner whose callback has pruned, and the one that comes out of its file"
    learn = new_learner(cbs=PruneCB(.8, score=random_score, schedule=gradual(n=5)))
    learn.logger = print
    learn.fit(1, .1)
    learn.export('m.pkl')
    return learn, load_learner(learn.path/'m.pkl', cpu=to_cpu)

@pytest.mark.parametrize('to_cpu', [True, False])
def test_3_export_and_load_learner(new_learner, to_cpu):
    learn, twin = exported(new_learner, to_cpu)
    assert same(on_cpu(state(learn)), on_cpu(state(twin)))
    twin.dls = make_learner(device='cpu' if to_cpu else learn.dls.device).dls
    twin.fit(1, .1)
    assert zeros(twin) == round(.8*N) and twin.prune_cb.masks.keys() == weights(twin.model).keys()
    twin.prune(.9, score=random_score)
    assert zeros(twin) == round(.9*N)

def test_3_no_generator_is_kept(new_learner):
    learn = new_learner()
    cb = learn.prune(.5, score=random_score)
    pickle.dumps(cb.__dict__ | {'holder': None})                # a live torch.Generator could not be pickled
    kept = [*cb.__dict__.values(), *cb.holder.__dict__.values()]
    assert not any(isinstance(v, torch.Generator) for v in kept)

# 4. masks persist

def test_4_second_fit_without_the_callback(new_learner):
    learn = new_learner()
    cb = PruneCB(.9)
    learn.fit(1, .1, cbs=cb)
    assert cb not in learn.cbs and cb.learn is None
    learn.fit(2, .1)
    assert zeros(learn) == round(.9*N)

def test_4_the_schedule_runs_once(new_learner):
    learn, cb = new_learner(), PruneCB(.9, schedule=gradual(n=5))
    learn.fit(1, .1, cbs=cb)
    n = len(cb.history)
    learn.fit(2, .1, cbs=cb)
    assert n == len(cb.history) == 5 and zeros(learn) == round(.9*N)

def split(model): return [list(model[:3].parameters()), list(model[3:].parameters())]

@pytest.mark.parametrize('when_frozen', [False, True])
def test_4_fine_tune(new_learner, when_frozen):
    learn, cb = new_learner(splitter=split), PruneCB(.9, schedule=gradual(n=4), when_frozen=when_frozen)
    rows = []
    learn.logger = rows.append
    learn.fine_tune(2, .01, freeze_epochs=2, cbs=cb)
    assert round(rows[1][column(learn)]*N) == (round(.9*N) if when_frozen else 0)
    assert len(cb.history) == 4 and zeros(learn) == round(.9*N)

def test_4_a_schedule_that_only_waited_is_reported(new_learner):
    learn = new_learner(splitter=split)
    learn.freeze()
    with pytest.warns(UserWarning, match='waits for 1 frozen'): learn.fit(1, .01, cbs=PruneCB(.9))
    assert zeros(learn) == 0

ERRORS = {'keyboard': KeyboardInterrupt, 'error': RuntimeError('x'), 'cancel': CancelFitException()}

def raising(error, event, at):
    "A callback that raises when `event` comes for the `at`-th time"
    class Break(Callback):
        def __init__(self): self.n = 0
    def count(self):
        self.n += 1
        if self.n == at: raise error
    setattr(Break, event, count)
    return Break()

def interrupted(new_learner, error, event):
    "A learner and a pruner whose fit was interrupted on the way"
    learn, cb = new_learner(opt_func=partial(SGD, mom=.9)), PruneCB(.9, schedule=gradual(n=20))
    at = 1 if 'train' in event or 'valid' in event else 9
    try: learn.fit(4, .1, cbs=[cb, raising(error, event, at)])
    except (KeyboardInterrupt, RuntimeError): pass
    return learn, cb

@pytest.mark.parametrize('error', ERRORS)
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'before_step', 'after_step', 'after_train',
                                   'before_validate'])
def test_4_interrupted_fit(new_learner, error, event):
    learn, cb = interrupted(new_learner, ERRORS[error], event)
    assert cb not in learn.cbs and not cb.finished
    assert all(w.isfinite().all() for w in learn.model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        learn.validate()
    assert zeros(learn) >= round(cb.history['total'].iloc[-1]*N)
    rows = []
    learn.logger = rows.append
    learn.fit(2, .1, cbs=cb)                                    # goes on where it was
    assert zeros(learn) == round(.9*N) and len(cb.history) <= 20
    names = list(learn.recorder.metric_names)
    assert names.count('sparsity') == 1 and len(rows[-1]) == len(names)

def test_4_load_applies_masks_again_and_warns(new_learner):
    learn = new_learner()
    learn.save('dense')
    learn.prune(.9)
    learn.load('dense')
    with pytest.warns(UserWarning, match='90.00%.*0.00%'): learn.get_preds()
    assert zeros(learn) == round(.9*N)

LOOKS = {'validate': lambda learn: learn.validate(), 'get_preds': lambda learn: learn.get_preds(),
         'validate on training data': lambda learn: learn.validate(ds_idx=0)}

@pytest.mark.parametrize('look', LOOKS)
def test_4_validation_and_prediction_never_prune(new_learner, look):
    cb = PruneCB(.9)
    learn = new_learner(cbs=cb)
    before = state(learn)
    LOOKS[look](learn)
    assert same(before, state(learn)) and not cb.rows and not cb.finished

def test_4_finalize(new_learner):
    learn = new_learner()
    cb = learn.prune(.9)
    cb.finalize()
    assert zeros(learn) == round(.9*N)
    assert not [c for c in learn.cbs if isinstance(c, (HoldMasks, PruneCB))]
    learn.fit(1, .1)
    assert zeros(learn) < round(.9*N)

def test_4_two_callbacks_share_the_holder(new_learner):
    learn = new_learner()
    learn.fit(1, .1, cbs=[PruneCB(.9, exclude='0'), PruneCB(.5, exclude=['3', '5'])])
    assert zeros(learn) == round(.9*240) + round(.5*240)

def test_4_from_sparse_to_sparser(new_learner):
    learn = new_learner()
    first = learn.prune(.5).masks
    cb = PruneCB(.9, schedule=gradual(n=6))
    learn.fit(2, .1, cbs=cb)
    assert cb.history['total'].iloc[0] > .5 and zeros(learn) == round(.9*N)
    assert all((cb.masks[n] <= first[n]).all() for n in first)          # what was pruned stayed pruned

def test_4_the_base_never_brings_a_weight_back(new_learner):
    learn, masks = new_learner(), []
    cb = PruneCB(.9, schedule=Schedule([0, .3, .6], [1, .5, 1]))
    learn.fit(2, .1, cbs=[cb, Each('before_batch', lambda learn: masks.append(cb.masks))])
    assert all(same(m, masks[0]) for m in masks) and len(cb.history) == 3
    with pytest.raises(ValueError, match='finalize'): learn.prune(.5)
    assert zeros(learn) == round(.9*N)

# 5. what is pruned

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.b.weight = self.a.weight
    def forward(self, x): return self.c(self.b(self.a(x).relu()).relu())

def test_5_tied_weights_count_once(new_learner):
    learn = new_learner(model=Tied())
    learn.prune(.5)
    learn.fit(1, .1)
    assert zeros(learn) == round(.5*(144 + 48)) and learn.model.a.weight is learn.model.b.weight

def test_5_exclude(new_learner):
    learn = new_learner()
    for exclude in ('0', '0.*', '0.weight', learn.model[0], ['0', learn.model[0]]):
        cb = learn.prune(.9, exclude=exclude)
        assert list(cb.masks) == ['3.weight', '5.weight'] and (learn.model[0].weight != 0).all()

@pytest.mark.parametrize('arguments, message', [
    ((1.,), 'below 1'), ((-.1,), 'at least 0'), ((90,), 'did you mean 0.9'), ((float('nan'),), 'fraction'),
    ((.9, 'lamp'), 'functions'), ((.9, snip, 'global'), 'functions'),
    ((.9, snip, global_, 'one_shot'), 'Schedule'), ((.9, snip, global_, one_shot(), (), -1), 'non-negative')])
def test_5_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message): PruneCB(*arguments)

def test_5_arguments_beside_a_callback_are_refused(new_learner):
    learn = new_learner()
    with pytest.raises(ValueError, match=r"\['exclude', 'seed'\] belong to the callback"):
        learn.prune(PruneCB(.5), exclude='0', seed=3)
    assert zeros(learn) == 0

@pytest.mark.parametrize('exclude', ['head', ['0', 'nosuch*'], '*', nn.Linear(2, 2)])
def test_5_bad_exclude_is_refused_on_attach(new_learner, exclude):
    with pytest.raises(ValueError, match='0.weight'): new_learner(cbs=PruneCB(.9, exclude=exclude))

@pytest.mark.parametrize('out, message', [
    ({'nosuch': torch.ones(1).bool()}, 'choose from'), ({'0.weight': torch.ones(2, 2).bool()}, 'shape'),
    ({'0.weight': torch.ones(20, 12)}, 'bool'), (({}, {'5.weight': torch.ones(3)}), 'shape')])
def test_5_bad_proposals_write_nothing(new_learner, out, message):
    class Bad(PruneCB):
        def propose(self, t): return out
    learn = new_learner()
    before = state(learn)
    with pytest.raises(ValueError, match=message): learn.prune(Bad(.5))
    assert same(before, state(learn))

def test_5_a_refused_guest_leaves(new_learner):
    class Bad(PruneCB):
        def propose(self, t): return {}, {'nosuch': torch.ones(1)}
    learn, cb = new_learner(), Bad(.5)
    with pytest.raises(ValueError): learn.prune(cb)
    assert cb.learn is None and not cb.finished

def test_5_a_changed_model_is_reported(new_learner):
    learn = new_learner()
    learn.prune(.5)
    learn.model = nn.Sequential(nn.Linear(12, 4))
    with pytest.raises(Exception, match='finalize'): learn.fit(1, .1)

# 6. randomness is the callback's own

def test_6_two_runs_agree_and_seeds_differ(new_learner):
    def masks(seed):
        learn = new_learner()
        cb = PruneCB(.5, score=random_score, schedule=steps(3), seed=seed)
        learn.fit(1, 0., cbs=cb)
        return cb.masks
    assert same(masks(1), masks(1)) and not same(masks(1), masks(2))

@pytest.mark.parametrize('look', ['validate', 'get_preds'])
def test_6_scores_see_training_images_whoever_looked_before(new_learner, look):
    plain, looked = new_learner(), new_learner()
    LOOKS[look](looked)
    assert same(plain.prune(.9, score=snip).masks, looked.prune(.9, score=snip).masks)

def test_6_global_random_state_is_untouched(new_learner):
    learn = new_learner()
    def states(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    before = states()
    learn.prune(.5, score=random_score)
    assert states() == before

def test_6_random_scores_do_not_bring_weights_back(new_learner):
    learn, cb = new_learner(), PruneCB(.9, score=random_score, schedule=steps(4))
    masks = []
    learn.fit(2, .1, cbs=[cb, Each('before_batch', lambda learn: masks.append(cb.masks))])
    assert all((b[n] <= a[n]).all() for a, b in zip(masks, masks[1:]) for n in a)

# 7. the loss is the task's

def test_7_valid_loss_and_validate(new_learner):
    learn = new_learner()
    learn.fit(1, .1, cbs=PruneCB(.5))
    names, row = list(learn.recorder.metric_names), learn.recorder.values[-1]
    result = learn.validate()
    assert len(result) == 2
    assert names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'sparsity', 'time']
    assert abs(result[0] - row[1]) < 1e-6 and abs(result[1] - row[2]) < 1e-6
    preds, y = learn.get_preds()
    assert abs(nn.functional.nll_loss(preds.log(), y).item() - result[0]) < 1e-5

def test_7_fastai_plots_work(new_learner):
    learn = new_learner()
    cb = PruneCB(.5, schedule=gradual(n=4))
    learn.fit(2, .1, cbs=cb)
    learn.recorder.plot_loss()
    assert cb.plot_history() is not None and list(cb.history.columns) == [*cb.masks, 'total', 'empty']
