"What prunelab.lab.training promises: bfloat16 where it was asked for, and pieces that make a whole"
import copy, os, pickle, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import pytest, torch
from fastai.callback.core import Callback, CancelBatchException
from filelock import FileLock

from prunelab.callbacks import PruneCB
from prunelab.core import weights
from prunelab.drop import DropPruning
from prunelab.extreme import ExtremeValuePruning
from prunelab.lab import training
from prunelab.lab.answers import answers, unpack
from prunelab.lab.models import NETWORKS, PUBLIC
from prunelab.lab.training import Recipe, TimeUp, dense, fingerprint, fit, learner, machine, read, write
from prunelab.schedules import gradual, steps
from prunelab.stochastic import StochasticPruning

ROOT = Path(__file__).parent.parent
TINY = Recipe('lenet5', 'digits', epochs=3, lr=.02, bs=64, valid=.2, n_train=256, size=16)
SMALL = Recipe('resnet18', 'digits', epochs=3, lr=.02, bs=128, valid=.2, n_train=256, size=8, width=.05)

PRUNERS = {
    'magnitude': lambda: PruneCB(.8, schedule=gradual(end=.9, n=8)),
    'stochastic': lambda: StochasticPruning(.8, .01, n=3, schedule=steps(4, end=.9)),
    'drop': lambda: DropPruning(.8, schedule=gradual(end=.9, n=8)),
    'extreme': lambda: ExtremeValuePruning(b=4, schedule=steps(4, end=.9))}

def same(a, b):
    "Do two learners have the same weights, running statistics and momentum, to the bit?"
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    momentum = (list(o.opt.state_dict()['state'].values()) for o in (a, b))
    both = zip(*momentum, strict=True)
    return all(torch.equal(p, q) for p, q in pairs) and all(
        torch.equal(p['momentum_buffer'], q['momentum_buffer']) for p, q in both)

def same_pruner(a, b):
    "Do two pruners know the same?"
    assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
    assert [getattr(a, k) for k in ('done', 'draws', 'step', 'rows', 'initial_sparsity')] == [
        getattr(b, k) for k in ('done', 'draws', 'step', 'rows', 'initial_sparsity')]
    if isinstance(a, DropPruning): assert a.flips.equals(b.flips)
    if isinstance(a, StochasticPruning): assert torch.equal(a.values, b.values)
    if isinstance(a, ExtremeValuePruning): assert a.table().equals(b.table())
    return True

# Recipes

def test_the_identity_has_everything_that_decides():
    "Each field changes identity and name; so do the constants that are no fields"
    other = dict(network='lenet300', data='mnist', epochs=4, lr=.1, bs=32, wd=0., mom=.8, width=.5,
        valid=.1, n_train=128, size=28, precision='bf16')
    for field, value in other.items():
        changed = replace(TINY, **{field: value})
        assert changed.identity[field] == value and changed.name != TINY.name, field
    constants = {'normalisation', 'optimizer', 'schedule', 'augmentation', 'split'}
    assert set(TINY.identity) == {*other, 'public', *constants}

def test_renaming_the_function_of_a_network_changes_no_identity(monkeypatch):
    before = TINY.identity, TINY.name
    def renamed(*args, **kwargs): pass
    monkeypatch.setitem(NETWORKS, 'lenet5', renamed)
    assert (TINY.identity, TINY.name) == before

def test_a_public_recipe_trains_nothing():
    r = Recipe('resnet56', 'cifar10', public=True)
    assert r.epochs == 0 and r.identity['weights'] == PUBLIC['resnet56']
    assert r.identity['normalisation'] == {'mean': [.485, .456, .406], 'sd': [.229, .224, .225]}
    assert 'optimizer' not in r.identity and r.name != replace(r, public=False).name

BAD = [
    (dict(network='resnet19'), "network is 'resnet19': choose from"), (dict(network=None), 'network is None'),
    (dict(precision='float16'), "precision is 'float16'"),
    (dict(network='vgg16', public=True), "network is 'vgg16': choose from"),
    (dict(network='resnet20', data='mnist', public=True), 'for cifar10 at full width'),
    (dict(network='resnet20', width=.5, public=True), 'for cifar10 at full width')]

@pytest.mark.parametrize('kw,says', BAD)
def test_bad_recipes_are_refused_when_they_are_written(kw, says):
    with pytest.raises(ValueError, match=says): Recipe(**{'network': 'lenet5', 'data': 'cifar10', **kw})

def test_weight_decay_is_part_of_the_gradient():
    "One step at zero gradient with momentum: v = lambda w, then .9 v + lambda w"
    learn = learner(replace(TINY, wd=.1, lr=.5), 0, 'cpu')
    w = torch.nn.Parameter(torch.tensor([1.]))
    opt = learn.opt_func([w], lr=.5)
    for _ in range(2):
        w.grad = torch.zeros(1)
        opt.step()
    v1 = .1*1.
    w1 = 1 - .5*v1
    v2 = .9*v1 + .1*w1
    assert w.item() == pytest.approx(w1 - .5*v2)

# bfloat16

class Exact(Callback):
    "After every training step: how many weights are zero, and whether all masked ones are exactly 0"
    order, run_valid = 90, False
    def __init__(self, pruner): self.pruner = pruner
    def before_fit(self): self.zeros = []
    def after_batch(self):
        ws = self.pruner.weights()
        assert not any(ws[n][~m].any() for n, m in self.pruner.masks.items())
        masked = sum(int((~m).sum()) for m in self.pruner.masks.values())
        zeros = sum(int((w == 0).sum()) for w in ws.values())
        self.zeros.append((masked, zeros))

class Types(Callback):
    "What types the last layer gives in training and in validation"
    def before_fit(self):
        self.seen = {True: set(), False: set()}
        last = [m for m in self.learn.model.modules() if isinstance(m, torch.nn.Linear)][-1]
        self.hook = last.register_forward_hook(lambda m, args, out: self.seen[m.training].add(out.dtype))
    def after_fit(self): self.hook.remove()

@pytest.mark.parametrize('recipe', [TINY, SMALL], ids=['lenet5', 'resnet18'])
@pytest.mark.parametrize('kind', PRUNERS)
def test_masks_hold_exactly_under_bfloat16(recipe, kind, device):
    "Masked weights are 0 after every step, counts are exact, what is not a training batch is float32"
    learn, cb = learner(replace(recipe, precision='bf16'), 0, device), PRUNERS[kind]()
    exact, types = Exact(cb), Types()
    learn.fit(2, .02, cbs=[cb, exact, types])
    n = sum(m.numel() for m in cb.masks.values())
    assert all(masked == zeros for masked, zeros in exact.zeros) and exact.zeros[0][0] < exact.zeros[-1][0]
    if kind != 'extreme': assert exact.zeros[-1][0] == round(.8*n)
    assert types.seen[True] - types.seen[False] == {torch.bfloat16} and types.seen[False] == {torch.float32}
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}

def test_a_pruner_sees_float32(device):
    "The batch on which a score asks for gradients, and the members of a population"
    class Look(PruneCB):
        def propose(self, t):
            hook = self.learn.model.fc2.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
            self.learn.model(self.batch()[0][0])
            hook.remove()
            return PruneCB.propose(self, t)
    learn, seen = learner(replace(TINY, precision='bf16'), 0, device), []
    learn.fit(1, cbs=Look(.5, schedule=steps(3)))
    assert seen == [torch.float32]*3


def channel_strides(learn):
    "How far apart in memory the channels of a layer's input are, in training and in validation"
    seen = {True: set(), False: set()}
    def note(module, args): seen[module.training].add(args[0].stride(1))
    hook = learn.model.layer2[0].conv1.register_forward_pre_hook(note)
    learn.fit(1)
    hook.remove()
    return seen

def test_channels_are_innermost_under_bfloat16_only():
    "In float32 some convolutions of torch's write outside their memory if few channels are innermost"
    plain = learner(SMALL, 0, 'cpu')
    seen = channel_strides(plain)
    assert 1 not in seen[True] | seen[False]
    half = learner(replace(SMALL, precision='bf16'), 0, 'cpu')
    seen = channel_strides(half)
    assert seen[True] == {1} and 1 not in seen[False]
    assert all(p.is_contiguous() for p in half.model.parameters())

def test_images_for_a_network_without_convolutions_stay_as_they_are():
    learn, strides = learner(replace(TINY, network='lenet300', precision='bf16'), 0, 'cpu'), set()
    def note(module, args): strides.add(args[0].stride())
    hook = learn.model.flat.register_forward_pre_hook(note)
    learn.fit(1)
    hook.remove()
    assert strides == {(256, 256, 16, 1)}

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_forward_pass_leaves_no_autocast(error, device):
    "An interrupt within the model: afterwards nothing is rounded, and the next fit works"
    learn = learner(replace(TINY, precision='bf16'), 0, device)
    def stop(module, args): raise error('stop')
    hook = learn.model.fc2.register_forward_pre_hook(stop)
    with pytest.raises(error): learn.fit(1)
    hook.remove()
    assert not torch.is_autocast_enabled(device) and 'forward' not in vars(learn.model)
    assert learn.model(learn.dls.one_batch()[0]).dtype == torch.float32
    learn.fit(1)

def test_a_cancelled_batch_leaves_the_model_as_it_was():
    "Training batches are cancelled just before the forward pass; the next one is a validation's"
    class Cancel(Callback):
        order, run_valid = 100, False
        def before_batch(self): raise CancelBatchException
    learn, types = learner(replace(TINY, precision='bf16'), 0, 'cpu'), Types()
    learn.fit(1, cbs=[Cancel(), types])
    assert 'forward' not in vars(learn.model) and types.seen == {True: set(), False: {torch.float32}}

def test_a_learner_in_bfloat16_copies_and_pickles(tmp_path):
    learn = learner(replace(TINY, precision='bf16'), 0, 'cpu')
    learn.path = tmp_path
    learn.fit(1)
    assert fingerprint(copy.deepcopy(learn.model)) == fingerprint(learn.model)
    assert fingerprint(pickle.loads(pickle.dumps(learn.model))) == fingerprint(learn.model)
    learn.export('e.pkl')

def test_a_processor_without_bfloat16_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(training, '_has_bfloat16', lambda kind: False)
    training._say_if_slow.cache_clear()
    for _ in range(2): learner(replace(TINY, precision='bf16'), 0, 'cpu').fit(1)
    said = [str(w.message) for w in recwarn if 'no bfloat16 instructions' in str(w.message)]
    training._say_if_slow.cache_clear()
    assert len(said) == 1 and 'this cpu' in said[0]

def test_bfloat16_is_another_training_and_a_good_one():
    a, b = (learner(replace(TINY, precision=p, epochs=6), 0, 'cpu') for p in ('float32', 'bf16'))
    for learn in (a, b): fit(learn, 6, .05)
    assert fingerprint(a.model) != fingerprint(b.model)
    assert answers(b.model, b.dls.test).float().mean() > .5      # ten classes

# In pieces

def in_pieces(recipe, path, **kwargs):
    "One epoch a call"
    for call in range(recipe.epochs):
        learn = learner(recipe, 3, 'cpu')
        try: fit(learn, recipe.epochs, recipe.lr, state=path, deadline=0., **kwargs)
        except TimeUp as e: assert f'{call + 1} of {recipe.epochs}' in str(e)
    return learn

@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_a_training_in_pieces_is_the_training_in_one(tmp_path, precision):
    "Weights, running statistics and momentum after three calls of one epoch each are those of one call"
    r = replace(SMALL, precision=precision)
    whole = learner(r, 3, 'cpu')
    fit(whole, r.epochs, r.lr)
    assert same(whole, in_pieces(r, tmp_path/'state'))

def test_the_learning_rate_falls_along_a_cosine_also_after_a_break(tmp_path):
    lrs = []
    for call in range(3):
        learn = learner(TINY, 0, 'cpu')
        try: fit(learn, 3, TINY.lr, state=tmp_path/'state', deadline=0.)
        except TimeUp: pass
        lrs += learn.recorder.lrs
    n = 3*len(learn.dls.train)
    expected = [.5*TINY.lr*(1 + torch.cos(torch.tensor(torch.pi*i/n)).item()) for i in range(n)]
    assert lrs == pytest.approx(expected, rel=1e-4)

class Dies(Callback):
    "Raises in the middle of an epoch"
    run_valid = False
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.epoch == self.at and self.iter == 2: raise RuntimeError('killed')

@pytest.mark.parametrize('epoch', [1, 2])
@pytest.mark.parametrize('kind', PRUNERS)
def test_a_pruning_goes_on_after_an_error(tmp_path, kind, epoch):
    "Weights, momentum, masks and the pruner's own knowledge are those of the uninterrupted training"
    dead = learner(TINY, 3, 'cpu')
    dead.add_cb(Dies(epoch))
    with pytest.raises(RuntimeError, match='killed'):
        fit(dead, 3, .02, pruner=PRUNERS[kind](), state=tmp_path/'state')
    resumed, whole = learner(TINY, 3, 'cpu'), learner(TINY, 3, 'cpu')
    a, b = PRUNERS[kind](), PRUNERS[kind]()
    fit(resumed, 3, .02, pruner=a, state=tmp_path/'state')
    fit(whole, 3, .02, pruner=b)
    assert same(resumed, whole) and same_pruner(a, b)
    assert len(resumed.recorder.lrs) == (3 - epoch)*len(resumed.dls.train)      # it did go on

def test_after_the_last_epoch_nothing_is_left_to_do(tmp_path):
    "A kill between the end of the training and the writing of its result"
    first, second = learner(TINY, 3, 'cpu'), learner(TINY, 3, 'cpu')
    a, b = PRUNERS['drop'](), PRUNERS['drop']()
    fit(first, 3, .02, pruner=a, state=tmp_path/'state')
    fit(second, 3, .02, pruner=b, state=tmp_path/'state')
    assert same(first, second) and same_pruner(a, b) and not second.recorder.lrs

def test_masks_without_a_pruner_are_part_of_the_state(tmp_path):
    "Pruned before the training: the masks hold after a break, also if the caller has not pruned again"
    whole, dead, resumed = (learner(TINY, 3, 'cpu') for _ in range(3))
    for learn in (whole, dead): learn.prune(.9)
    fit(whole, 3, .02)
    dead.add_cb(Dies(1))
    with pytest.raises(RuntimeError, match='killed'): fit(dead, 3, .02, state=tmp_path/'state')
    fit(resumed, 3, .02, state=tmp_path/'state')
    assert same(whole, resumed)
    ws = weights(resumed.model)
    assert sum(int((w == 0).sum()) for w in ws.values()) == round(.9*sum(w.numel() for w in ws.values()))

KILLED = """
import sys, time
from tests.test_training import PRUNERS, TINY, fit, learner
kind, state = sys.argv[1:]
def say(line):
    print(line, flush=True)
    time.sleep(60)
fit(learner(TINY, 5, 'cpu'), 3, .02, pruner=PRUNERS[kind](), state=state, say=say)
"""

def killed_after_an_epoch(kind, state):
    "A training in a process of its own that ends by SIGKILL, in the pause after its first epoch"
    threads = str(torch.get_num_threads())          # Dask's nanny leaves numbers of its own in os.environ
    env = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-W', 'ignore', '-c', KILLED, kind, str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as p:
        assert 'epoch 1 of 3' in p.stdout.readline()
        while not state.exists(): time.sleep(.05)
        p.send_signal(signal.SIGKILL)

@pytest.mark.parametrize('kind', PRUNERS)
def test_a_pruning_goes_on_after_a_kill(tmp_path, kind):
    "This process ends with the weights of an undisturbed training"
    killed_after_an_epoch(kind, tmp_path/'state')
    def ending(state):
        learn = learner(TINY, 5, 'cpu')
        fit(learn, 3, .02, pruner=PRUNERS[kind](), state=tmp_path/state)
        return fingerprint(learn.model), len(learn.recorder.lrs)
    (resumed, few), (whole, all_) = ending('state'), ending('whole')
    assert resumed == whole and few*3 == all_*2

def test_a_state_is_written_whole(tmp_path, monkeypatch):
    "An error while writing leaves the state of the epoch before, and no other file"
    whole, learn = learner(TINY, 3, 'cpu'), learner(TINY, 3, 'cpu')
    fit(whole, 3, .02)
    save, calls = torch.save, []
    def full(thing, path):
        calls.append(path)
        if len(calls) < 2: return save(thing, path)
        Path(path).write_bytes(b'half')
        raise OSError('no space left')
    monkeypatch.setattr(training.torch, 'save', full)
    with pytest.raises(OSError, match='no space left'): fit(learn, 3, .02, state=tmp_path/'state')
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ['state']
    learn = learner(TINY, 3, 'cpu')
    fit(learn, 3, .02, state=tmp_path/'state')
    assert same(whole, learn)

OTHERS = [dict(epochs=4), dict(lr=.1), dict(pruner=PRUNERS['drop']()), dict(pruner=None)]

@pytest.mark.parametrize('other', OTHERS)
def test_the_state_of_another_training_is_refused(tmp_path, other):
    args = dict(epochs=3, lr=.02, pruner=PRUNERS['magnitude'](), state=tmp_path/'state')
    with pytest.raises(TimeUp): fit(learner(TINY, 3, 'cpu'), **args, deadline=0.)
    with pytest.raises(ValueError, match='state of another training'):
        fit(learner(TINY, 3, 'cpu'), **{**args, **other})

def test_a_deadline_needs_a_state():
    with pytest.raises(ValueError, match='a deadline needs a state'):
        fit(learner(TINY, 3, 'cpu'), 3, .02, deadline=0.)

# States that this code can't use

@pytest.fixture
def broken_off(tmp_path):
    "The file of a pruning with one of three epochs done"
    with pytest.raises(TimeUp):
        fit(learner(TINY, 3, 'cpu'), 3, .02, pruner=PRUNERS['drop'](), state=tmp_path/'state', deadline=0.)
    return tmp_path/'state'

def begins_anew(state, why):
    "The file is put aside with one warning, and the training ends where an undisturbed one does"
    content = state.read_bytes()
    anew, whole = learner(TINY, 3, 'cpu'), learner(TINY, 3, 'cpu')
    with pytest.warns(UserWarning) as said: fit(anew, 3, .02, pruner=PRUNERS['drop'](), state=state)
    fit(whole, 3, .02, pruner=PRUNERS['drop']())
    assert len(said) == 1 and re.search(f'{why}.*state.unusable', str(said[0].message), re.S)
    assert same(anew, whole) and len(anew.recorder.lrs) == 3*len(anew.dls.train)
    assert state.with_name('state.unusable').read_bytes() == content

def rewritten(state, change):
    "The file with something else in it"
    saved = read(state, 'cpu')
    change(saved)
    write(state, saved)
    return state

@pytest.mark.parametrize('part', [0, .5, .99])
def test_a_truncated_state_is_put_aside(broken_off, part):
    data = broken_off.read_bytes()
    broken_off.write_bytes(data[:int(part*len(data))])
    begins_anew(broken_off, 'no state to go on from')

def test_a_file_of_something_else_is_put_aside(tmp_path):
    torch.save([1, 2, 3], tmp_path/'state')
    begins_anew(tmp_path/'state', 'not of format 2')

def test_a_state_without_a_format_is_put_aside(broken_off):
    "As they were written before there was one: the holder was called otherwise, and KeyError was the end"
    def old(saved):
        for k in ('format', 'names'): del saved[k]
        saved['keeper'] = saved.pop('holder')
    begins_anew(rewritten(broken_off, old), 'not of format 2')

def test_a_state_of_a_later_format_is_put_aside(broken_off):
    begins_anew(rewritten(broken_off, lambda saved: saved.update(format=3)), 'not of format 2')

RENAMED = {
    'pruner': ('draws', "the pruner here has \\['draws'\\]"), 'holder': ('changed', "the holder here has"),
    'model': ('conv1.weight', "the model here has \\['conv1.weight'\\]")}

@pytest.mark.parametrize('part', RENAMED)
def test_a_state_with_other_names_is_put_aside(broken_off, part):
    "As if an attribute, or a layer, had been renamed since it was written"
    name, why = RENAMED[part]
    def rename(saved):
        saved['names'][part].remove(name)
        saved['names'][part].append(f'old_{name}')
    begins_anew(rewritten(broken_off, rename), why)

def test_a_pruner_that_was_used_already_goes_on(tmp_path):
    "What fastai adds to a callback in a fit is no reason to begin anew"
    cb, whole = PRUNERS['drop'](), learner(TINY, 3, 'cpu')
    args = dict(epochs=3, lr=.02, pruner=cb, state=tmp_path/'state')
    for _ in range(2):
        with pytest.raises(TimeUp): fit(learner(TINY, 3, 'cpu'), **args, deadline=0.)
    resumed = learner(TINY, 3, 'cpu')
    fit(resumed, **args)
    fit(whole, 3, .02, pruner=PRUNERS['drop']())
    assert same(resumed, whole) and len(resumed.recorder.lrs) == len(resumed.dls.train)

def test_every_is_a_number_of_seconds(tmp_path):
    "With an hour between two writings only the end is written"
    learn, seen = learner(TINY, 3, 'cpu'), []
    def say(line): seen.append((tmp_path/'state').exists())
    fit(learn, 3, .02, state=tmp_path/'state', every=3600, say=say)
    assert seen == [False, False, True]

def test_fit_does_not_validate():
    class Count(Callback):
        def before_validate(self): calls.append('started')
        def after_batch(self): calls.append(self.training)
    learn, calls = learner(TINY, 0, 'cpu'), []
    learn.add_cb(Count())
    fit(learn, 1, .02)
    assert False not in calls and True in calls

# Dense networks

def test_dense_trains_once(tmp_path, monkeypatch, device):
    net = dense(TINY, 0, tmp_path, device)
    monkeypatch.setattr(training, 'fit', lambda *a, **k: pytest.fail('trained twice'))
    again = dense(TINY, 0, tmp_path, device)
    assert fingerprint(net.learn.model) == fingerprint(again.learn.model) and net.facts == again.facts
    assert not list(tmp_path.glob('*.part')) and not list(tmp_path.glob('*.tmp'))

@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_facts(tmp_path, device, precision):
    "Which images were right, of which weights, made how and on what"
    net = dense(replace(TINY, precision=precision), 0, tmp_path, device)
    for part in ('valid', 'test'):
        right, fact = answers(net.learn.model, getattr(net.learn.dls, part)), net.facts[part]
        assert (fact['n'], fact['right']) == (len(right), int(right.sum()))
        assert torch.equal(unpack(fact['bits']), right)
    assert net.facts['sha256'] == fingerprint(net.learn.model) and net.facts['precision'] == precision
    assert {**net.facts, **machine(device)} == net.facts and net.facts['threads'] == torch.get_num_threads()
    assert net.facts['processor'] and net.facts['seconds'] >= 0

def test_again_has_the_weights_and_other_batches(tmp_path):
    net = dense(TINY, 0, tmp_path, 'cpu')
    learn = net.again()
    assert learn is not net.learn and fingerprint(learn.model) == fingerprint(net.learn.model)
    assert learn.dls.train.epoch == TINY.epochs

def test_a_seed_or_a_recipe_of_its_own_is_a_network_of_its_own(tmp_path):
    nets = [dense(r, s, tmp_path, 'cpu') for r, s in ((TINY, 0), (TINY, 1), (replace(TINY, wd=0), 0))]
    assert len({n.facts['sha256'] for n in nets}) == 3 and len(list(tmp_path.glob('*.pt'))) == 3

def test_a_dense_training_goes_on(tmp_path):
    "Stopped twice by its time, it ends with the network of an undisturbed one and leaves no state behind"
    for call in range(2):
        with pytest.raises(TimeUp, match=f'{call + 1} of 3'): dense(TINY, 0, tmp_path/'a', 'cpu', deadline=0.)
    a, b = dense(TINY, 0, tmp_path/'a', 'cpu'), dense(TINY, 0, tmp_path/'b', 'cpu')
    assert a.facts['sha256'] == b.facts['sha256'] and not list(tmp_path.rglob('*.part'))

def test_waiting_for_another_process_obeys_the_deadline(tmp_path):
    with FileLock(tmp_path/f'{TINY.name}-0.pt.lock'), pytest.raises(TimeUp, match='another process'):
        dense(TINY, 0, tmp_path, 'cpu', deadline=time.monotonic() + .1)

@pytest.mark.parametrize('damage', ['cut', 'empty', 'bit'])
def test_a_damaged_network_is_named(tmp_path, damage):
    net = dense(TINY, 0, tmp_path, 'cpu')
    file = tmp_path/f'{TINY.name}-0.pt'
    data = bytearray(file.read_bytes())
    if damage == 'cut': data = data[:len(data)//2]
    if damage == 'empty': data = b''
    if damage == 'bit': data[data.find(net.learn.model.fc1.weight.detach().numpy().tobytes()[:64])] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f'{file.name} is damaged.*delete it'):
        dense(TINY, 0, tmp_path, 'cpu')

def test_a_public_network_is_read_and_not_trained(tmp_path, monkeypatch):
    "With weights and images made here: the file's weights, normalised as they were trained, and their facts"
    net = NETWORKS['resnet20']()
    digits = learner(TINY, 0, 'cpu').dls
    asked = {}
    def small(name, **kwargs):
        asked.update(name=name, **kwargs)
        return training_dls('digits', **{**kwargs, 'valid': 100, 'stats': None})
    training_dls = training.get_dls
    monkeypatch.setattr(training, 'get_dls', small)
    monkeypatch.setattr(training, 'public_weights', lambda name: {**net.state_dict(), 'conv1.weight': grey})
    grey = net.conv1.weight[:, :1].detach().clone()          # digits have one channel
    got = dense(Recipe('resnet20', 'cifar10', public=True), 0, tmp_path, 'cpu')
    assert asked['name'] == 'cifar10' and asked['stats'] == training.PUBLIC_STATS
    assert torch.equal(got.learn.model.linear.weight, net.linear.weight) and got.facts['seconds'] == 0
    assert got.facts['test']['n'] == len(digits.test.dataset) and not list(tmp_path.glob('*.part'))

# Machines and fingerprints

def test_a_fingerprint_sees_every_bit():
    a = learner(SMALL, 0, 'cpu').model
    first = fingerprint(a)
    assert first == fingerprint(copy.deepcopy(a)) and len(first) == 64
    assert first == fingerprint(copy.deepcopy(a).to(memory_format=torch.channels_last))
    for name, v in a.state_dict().items():
        old = v.clone()
        v.view(-1)[-1] += 1
        assert fingerprint(a) != first, name
        v.copy_(old)
    assert fingerprint(a) == first

def test_a_machine_is_plain_data(device):
    m = machine(device)
    assert set(m) == {'processor', 'threads', 'device', 'torch', 'fastai', 'python'}
    assert m['device'].startswith(device) and m['torch'] == torch.__version__ and type(m['torch']) is str
