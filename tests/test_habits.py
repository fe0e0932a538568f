"What fastai users do around pruning: each of these once broke something."
import copy
import warnings
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
import fastai.callback.schedule     # gives Learner lr_find, fine_tune
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from torch import nn
from torch.nn.utils import weight_norm
from prunelab.allocation import erk, global_, lamp, uniform
from prunelab.callbacks import PruneCB
from prunelab.core import generator, seeded, weights
from prunelab.masks import sparsity
from prunelab.schedules import gradual, one_shot, steps
from prunelab.scores import lamp_score, magnitude, random_score
from prunelab.stochastic import StochasticPruning, best
from .conftest import Pairs, mlp
from .test_guarantees import N, Each, counting, split, zeros

# targets

@pytest.mark.parametrize('p', [.333, .504, .9, .999, .9995])
def test_the_same_target_again(new_learner, p):
    learn = new_learner()
    for _ in range(2): learn.prune(p)
    learn.fit(1, .1, cbs=PruneCB(p, schedule=gradual(n=4)))
    assert zeros(learn) == round(p*N)

@pytest.mark.parametrize('start', [.1, .333, .505])
def test_counts_are_exact_from_any_start(new_learner, start):
    for p in (.51, .667, .7777, .93, .999):
        learn = new_learner()
        learn.prune(start)
        learn.fit(1, .1, cbs=PruneCB(p, schedule=gradual(n=7)))
        assert zeros(learn) == round(p*N)

PRUNERS = {'plain': lambda: PruneCB(.9, schedule=gradual(n=6)),
           'stochastic': lambda: StochasticPruning(.9, .01, n=2, schedule=gradual(n=6))}

@pytest.mark.parametrize('pruner', PRUNERS)
def test_pruned_between_attaching_and_the_first_moment(new_learner, pruner):
    learn = new_learner(cbs=PRUNERS[pruner]())
    first = learn.prune(.5).masks
    learn.fit(1, .1)
    cb = next(c for c in learn.cbs if isinstance(c, PruneCB))
    assert cb.history['total'].min() > .5 and zeros(learn) == round(.9*N)
    assert all((cb.masks[n] <= first[n]).all() for n in first)

@pytest.mark.parametrize('allocation', [uniform, erk, global_, lamp])
def test_another_allocation_revives_nothing(new_learner, allocation):
    learn = new_learner()
    with torch.no_grad(): learn.model[0].weight.mul_(.01)
    first = learn.prune(.5).masks
    cb = learn.prune(.6, allocation=allocation)
    assert all((cb.masks[n] <= first[n]).all() for n in first) and zeros(learn) == round(.6*N)

def test_the_two_lamps_prune_alike(new_learner):
    by_score, by_allocation = new_learner(), new_learner()
    schedule = gradual(n=7)
    by_score.fit(1, .1, cbs=PruneCB(.9, score=lamp_score, schedule=schedule))
    by_allocation.fit(1, .1, cbs=PruneCB(.9, allocation=lamp, schedule=schedule))
    ws = weights(by_allocation.model)
    assert all(torch.equal(w, ws[n]) for n, w in weights(by_score.model).items())

def test_learn_prune_is_done_and_detached(new_learner):
    learn = new_learner()
    cb = learn.prune(.5)
    assert cb.learn is None and cb.finished
    learn.fit(1, .1, cbs=cb)
    assert len(cb.history) == 1

# trackers and lr_find

def test_lr_find_between_pruning_and_training(new_learner):
    learn, keep = new_learner(), SaveModelCallback(reset_on_fit=False)
    learn.fit(15, .02, cbs=keep)
    learn.prune(.9)
    learn.lr_find(num_it=20, show_plot=False)
    with warnings.catch_warnings():                             # no dense epoch is brought back
        warnings.filterwarnings('error', message='.*applied again.*')
        learn.fit(2, 1e-4, cbs=keep)
        learn.validate()
    assert zeros(learn) == round(.9*N)

def test_a_fit_in_which_no_epoch_wins(new_learner):
    learn = new_learner()
    learn.fit(3, .05, cbs=SaveModelCallback())
    learn.prune(.9)
    with pytest.warns(UserWarning, match='applied again'): learn.fit(1, float('nan'), cbs=SaveModelCallback())
    assert zeros(learn) == round(.9*N)

def test_trackers_of_a_metric_that_should_rise(new_learner):
    learn, saved = new_learner(), []
    keep = counting(saved, monitor='accuracy')
    learn.fit(4, .05, cbs=[PruneCB(.9, schedule=steps(2, end=.3)), keep])
    assert saved and saved[-1] == round(.9*N)

def test_lr_find_logs_no_column(new_learner):
    learn = new_learner()
    learn.prune(.5)
    learn.lr_find(num_it=20, show_plot=False)
    assert all(len(v) == 1 for v in learn.recorder.values)      # the training loss

# holding

def test_learn_hold_holds_zeros_and_trains_the_rest(new_learner):
    learn = new_learner()
    with torch.no_grad(): learn.model[0].weight[:, ::2] = 0
    before = learn.model[0].weight.detach().clone()
    learn.hold()
    learn.fit(1, .1)
    w = learn.model[0].weight
    trained = w[:, 1::2]
    moved = (trained != before[:, 1::2]) & (trained != 0)
    assert (w[:, ::2] == 0).all() and moved.float().mean() > .9

def test_sparser_weights_warn_too(new_learner):
    learn = new_learner()
    learn.prune(.5)
    with torch.no_grad(): learn.model[0].weight[:10] = 0
    with pytest.warns(UserWarning, match='applied again'): learn.validate()

def test_natural_zeros_do_not_warn(new_learner):
    learn = new_learner()
    with torch.no_grad(): learn.model[3].weight.zero_()         # starts at 0, trains away from it
    all_kept = torch.ones(10, 20, device=learn.dls.device).bool()
    learn.hold({'0.weight': weights(learn.model)['0.weight'] > 0, '3.weight': all_kept})
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1, .1)
        learn.fit(1, .1)
        learn.validate()

def test_finalize_works_with_another_model(new_learner):
    learn = new_learner()
    cb = learn.prune(.5)
    learn.model = nn.Sequential(learn.model)
    with pytest.warns(UserWarning, match='finalize'): learn.validate()
    with pytest.raises(Exception, match='finalize'): learn.fit(1, .1)
    cb.finalize()
    cb.finalize()
    learn.validate()
    learn.prune(.6)
    assert zeros(learn) == round(.6*N)

# models and loaders

def test_a_loader_that_lies_about_its_length(new_learner):
    class Longer(DataLoader):
        def __len__(self): return super().__len__() + 3
    learn = new_learner()
    learn.dls = DataLoaders(Longer(Pairs(), bs=16), learn.dls.valid, device=learn.dls.device)
    learn.fit(1, .1, cbs=PruneCB(.9, schedule=gradual(end=1.)))
    assert zeros(learn) == round(.9*N)

def asking(seen):
    "A score that asks for a batch and notes it"
    def score(ws, model, batch, loss_func):
        seen.append(batch)
        return magnitude(ws)
    return score

def test_scores_see_the_training_batch(new_learner):
    learn, seen = new_learner(), []
    look = Each('before_batch', lambda learn: seen.append(learn.xb))
    learn.fit(1, .1, cbs=[PruneCB(.5, score=asking(seen)), look])
    assert seen[0][0][0] is seen[1][0]

def test_scores_see_the_same_first_batch_without_training(new_learner):
    learn, rng, seen = new_learner(), torch.get_rng_state(), []
    for _ in range(2): learn.prune(PruneCB(.5, score=asking(seen)))
    assert torch.equal(seen[0][0][0], seen[1][0][0]) and torch.equal(rng, torch.get_rng_state())

def test_data_parallel_names(new_learner):
    learn = new_learner(model=nn.DataParallel(mlp()))
    learn.fit(1, .1, cbs=StochasticPruning(.9, .01, n=2))
    assert zeros(learn) == round(.9*N)

def test_exclude_may_be_a_generator(new_learner):
    learn, cb = new_learner(), PruneCB(.5, exclude=(n for n in ['0']))
    for _ in range(2): learn.fit(1, .1, cbs=cb)
    assert cb.names == ['3.weight', '5.weight'] and (learn.model[0].weight != 0).all()

@pytest.mark.filterwarnings('ignore')
def test_weight_norm_stays_dense(new_learner):
    learn = new_learner(model=nn.Sequential(weight_norm(nn.Linear(12, 20)), nn.ReLU(), nn.Linear(20, 4)))
    learn.fit(2, .1, cbs=PruneCB(.9))
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert list(weights(learn.model)) == ['2.weight']

def test_half_precision_models(new_learner):
    learn = new_learner()
    learn.model.to(torch.bfloat16)
    learn.prune(.9)
    assert zeros(learn) == round(.9*N)

# frozen layers

def test_a_frozen_layer_that_is_excluded_does_not_wait(new_learner):
    learn = new_learner(splitter=split)
    learn.freeze()
    learn.fit(1, .1, cbs=PruneCB(.5, exclude='0'))              # only the head, which trains: prune now
    assert zeros(learn) == round(.5*240)

def test_frozen_is_what_does_not_train(new_learner):
    learn = new_learner(splitter=split)
    learn.freeze()
    learn.opt = None                                            # what export and reset_opt leave
    for p in learn.model[:3].parameters(): p.requires_grad_(False)
    learn.fit(1, .1, cbs=PruneCB(.5))
    assert zeros(learn) == 0

def test_freeze_fit_unfreeze_lr_find_fit_warns_once(new_learner):
    learn, cb = new_learner(splitter=split), PruneCB(.5)
    learn.freeze()
    with pytest.warns(UserWarning, match='frozen'): learn.fit(1, .1, cbs=cb)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.unfreeze()
        learn.lr_find(num_it=10, show_plot=False)
        learn.fit(1, .1, cbs=cb)
    assert zeros(learn) == round(.5*N)

def test_early_stopping_works_while_a_pruner_waits(new_learner):
    learn = new_learner(splitter=split)
    learn.freeze()
    learn.fit(6, 0., cbs=[PruneCB(.5), EarlyStoppingCallback(patience=1)])
    assert learn.epoch < 5

# small mistakes

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_lamp_score_does_not_hide_nan(bad):
    ws = {'a': torch.ones(4, 4), 'b': torch.ones(4, 4)}
    ws['a'][0, 0] = bad
    with pytest.raises(ValueError, match=r"\['a'\]"): global_(lamp_score(ws), .5)

@pytest.mark.parametrize('seed', [np.int64(3), 2**70])
def test_seeds_of_any_size(seed):
    with seeded(seed): a = torch.rand(2)
    with seeded(seed): assert torch.equal(a, torch.rand(2))

@pytest.mark.parametrize('seed', [None, -1, 1.5, torch.Generator()])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match='seed'): PruneCB(.5, seed=seed)

def test_a_generator_without_a_seed():
    with pytest.raises(ValueError, match='repeatable'): generator(None)

def test_a_score_that_forgets_layers(new_learner):
    learn = new_learner()
    with pytest.raises(ValueError, match='one tensor for each'): learn.prune(.5, score=lambda ws: {})
    assert zeros(learn) == 0

def test_a_plot_of_nothing():
    with pytest.raises(ValueError, match='nothing was pruned'): PruneCB(.5).plot_history()

def test_stochastic_pruning_takes_functions():
    with pytest.raises(ValueError, match='functions'): StochasticPruning(.5, .1, select='best')
    assert best(torch.tensor([.1, float('nan'), .3])) == 2

def test_a_target_in_half_precision():
    assert PruneCB(np.float16(.9)).target == np.float16(.9)

def test_scores_that_are_whole_numbers(new_learner):
    learn = new_learner()
    learn.prune(.5, score=lambda ws: {n: (w > 0).int() for n, w in ws.items()})
    assert zeros(learn) == N//2

def test_a_proposal_of_nothing_is_refused(new_learner):
    class Nothing(PruneCB):
        def propose(self, t): pass
    with pytest.raises(ValueError, match='Nothing returned NoneType'): new_learner().prune(Nothing(.5))

def test_a_proposal_of_some_layers_is_counted_right(new_learner):
    class First(PruneCB):
        def propose(self, t):
            n, w = next(iter(self.weights().items()))
            return {n: w.abs() > w.abs().median()}
    cb = new_learner().prune(First(.5))
    removed = sum(int((~m).sum()) for m in cb.masks.values())
    total = cb.history['total'].iloc[-1]
    assert total == removed/sum(m.numel() for m in cb.masks.values()) < .5
    assert not cb.history.isna().any().any()

# whatever the order

class StopAt(Callback):
    "Interrupts training before a step"
    def __init__(self, at): self.at = at
    def before_step(self):
        self.at -= 1
        if self.at == 0: raise KeyboardInterrupt

class Walk:
    "A user who does this and that with a learner"
    def __init__(self, learn, seed):
        self.learn, self.rng, self.p = learn, np.random.default_rng(seed), 0.
    def pick(self, *choices): return choices[self.rng.integers(len(choices))]
    def higher(self): return self.p + (1 - self.p)*self.rng.random()*.5
    def trackers(self): return [SaveModelCallback()] if self.rng.random() < .3 else []

    def prune(self):
        score = self.pick(magnitude, lamp_score, random_score)
        allocation = self.pick(global_, uniform, erk, lamp)
        self.learn.prune(self.higher(), score=score, allocation=allocation)
    def prune_on_the_way(self):
        schedule = self.pick(gradual(n=5), steps(3), one_shot(.5))
        self.learn.fit(2, .05, cbs=[PruneCB(self.higher(), schedule=schedule), *self.trackers()])
    def train(self): self.learn.fit(1, .05, cbs=self.trackers())
    def find_rate(self): self.learn.lr_find(num_it=10, show_plot=False)
    def load(self): self.learn.load('walk')
    def validate(self): self.learn.validate()
    def fine_tune(self): self.learn.fine_tune(1, .01, cbs=self.trackers())
    def copy(self): copy.deepcopy(self.learn.model)
    def interrupt(self):
        cb = PruneCB(self.p + (1 - self.p)*.3, schedule=gradual(n=8))
        try: self.learn.fit(2, .05, cbs=[cb, StopAt(self.rng.integers(1, 9))])
        except KeyboardInterrupt: pass

    def step(self):
        act = self.pick(self.prune, self.prune_on_the_way, self.train, self.find_rate, self.load,
                        self.validate, self.fine_tune, self.copy, self.interrupt)
        act()
        self.learn.validate()

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', range(12))
def test_random_walks(new_learner, seed):
    "Whatever the order of a user's acts, what is masked is zero and never comes back before finalize"
    learn, held = new_learner(splitter=split), {}
    learn.fit(1, .05)
    learn.save('walk')
    walk = Walk(learn, seed)
    for _ in range(9):
        walk.p = sparsity(held) if held else 0.
        walk.step()
        holder = getattr(learn, 'hold_masks', None)
        if not holder: continue
        ws = weights(learn.model)
        assert all((ws[n][~m] == 0).all() for n, m in holder.masks.items())
        assert all(n not in held or (m <= held[n]).all() for n, m in holder.masks.items())
        held = {n: m.clone() for n, m in holder.masks.items()}
