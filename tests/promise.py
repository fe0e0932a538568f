"""What is promised, tried with what people switch on: `keeps(choice)` says which guarantees hold.

A choice is a dict with a value for each of `FACTORS`. The guarantees are those of `test_guarantees.py`, which
are all looked at in one training of a small convolutional network."""
import tempfile
import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
import torch
import torch._dynamo
from fastai.callback.core import Callback, CancelStepException
import fastai.callback.schedule     # gives Learner lr_find, fine_tune, fit_one_cycle
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper, RMSProp
from torch import nn
from prunelab.callbacks import PruneCB
from prunelab.core import inner_model, seeded, weights
from prunelab.drop import DropPruning
from prunelab.extreme import ExtremeValuePruning
from prunelab.gradient_scores import snip
from prunelab.report import table
from prunelab.schedules import gradual, steps
from prunelab.scores import magnitude
from prunelab.stochastic import StochasticPruning
from .conftest import quiet

P, DENSE = .8, '0.weight'           # the target, and the layer that is excluded
BACKEND = 'eager'                   # traces the network; the soak test takes PyTorch's own compiler, too

METHODS = {
    'magnitude': partial(PruneCB, P, magnitude, schedule=gradual(n=5)),
    'snip': partial(PruneCB, P, snip, schedule=steps(2)),
    'stochastic': partial(StochasticPruning, P, .02, n=2, schedule=steps(2)),
    'drop': partial(DropPruning, P, schedule=gradual(n=8)),
    'extreme': partial(ExtremeValuePruning, b=4, small='pooled', schedule=steps(2))}

OPTIMIZERS = {'SGD': partial(SGD, mom=.9), 'Adam': Adam, 'RMSProp': partial(RMSProp, mom=.9),
              'torch AdamW': partial(OptimWrapper, opt=torch.optim.AdamW)}

# What is switched on: the value of the first column is what a plain `fit` does
FACTORS = {
    'method': [*METHODS], 'optimizer': [*OPTIMIZERS],
    'fit': ['fit', 'one cycle', 'fine_tune', 'frozen group'],
    'network': ['plain', 'channels_last', 'compiled'],
    'rates': ['one rate', 'discriminative rates'],
    'precision': ['float32', 'bfloat16 autocast'],
    'steps': ['all steps', 'skipped steps'],
    'batches': ['every batch', 'accumulation'],
    'gradients': ['as they are', 'clipping'],
    'inputs': ['clean', 'MixUp'],
    'saving': ['none saved', 'SaveModel'],
    'stopping': ['to the end', 'EarlyStopping'],
    'before': ['nothing before', 'lr_find'],
    'then': ['no second fit', 'second fit'],
    'file': ['no file', 'export and load']}
PLAIN = {name: values[0] for name, values in FACTORS.items()}

def possible(choice):
    "`torch.compile` returns an object that can't be pickled: with it, nothing can be exported"
    return not (choice.get('network') == 'compiled' and choice.get('file') == 'export and load')

# The training

class Images:
    "Made images of two channels, and the class that a fixed random teacher gives them"
    def __init__(self, n=64, seed=0):
        with seeded(seed): self.x = torch.randn(n, 2, 6, 6, device='cpu')
        with seeded(9): self.y = (self.x.flatten(1) @ torch.randn(72, 4, device='cpu')).argmax(1)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]
    def new_empty(self): return Images(0)

def network():
    "Two convolutions and a classifier"
    features = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2)]
    return nn.Sequential(*features, nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))

def halves(model):
    "Groups of parameters; the first one is what `fine_tune` freezes"
    net = inner_model(model)
    return [list(net[:4].parameters()), list(net[4:].parameters())]

def loaders():
    with seeded(2):
        train, valid = DataLoader(Images(), bs=16, shuffle=True), DataLoader(Images(32, 1), bs=32)
        return DataLoaders(train, valid, device=torch.device('cpu'))

def learner(choice, folder):
    "The same one for the same choice, with the global generators where its seed puts them"
    torch.manual_seed(3)
    net = network()
    if choice['network'] == 'channels_last': net = net.to(memory_format=torch.channels_last)
    if choice['network'] == 'compiled': net = torch.compile(net, backend=BACKEND)
    learn = Learner(loaders(), net, CrossEntropyLossFlat(), OPTIMIZERS[choice['optimizer']], wd=.01,
                    splitter=halves, metrics=accuracy, path=folder)
    learn.remove_cbs(ProgressCallback)
    learn.logger = quiet
    return learn

class Autocast(Callback):
    "What mixed precision does around the forward pass, on a CPU"
    order = 10
    def before_batch(self):
        self.cast = torch.autocast('cpu', torch.bfloat16)
        self.cast.__enter__()
    def after_loss(self): self.cast.__exit__(None, None, None)

class SkipSteps(Callback):
    "What a loss scaler does on overflow: every third step is skipped"
    order = 11
    def before_fit(self): self.n = 0
    def before_step(self):
        self.n += 1
        if self.n % 3 == 0: raise CancelStepException

SWITCHES = {'bfloat16 autocast': Autocast, 'skipped steps': SkipSteps, 'clipping': GradientClip,
            'MixUp': MixUp, 'accumulation': partial(GradientAccumulation, 32), 'SaveModel': SaveModelCallback,
            'EarlyStopping': partial(EarlyStoppingCallback, patience=1)}

def switched_on(choice): return [SWITCHES[v]() for v in choice.values() if v in SWITCHES]

def train(learn, choice, cbs, epochs=3):
    "One fit of the kind that was chosen"
    rate = slice(1e-3, 1e-2) if choice['rates'] == 'discriminative rates' else 1e-2
    if choice['fit'] == 'fine_tune': return learn.fine_tune(epochs - 1, 1e-2, cbs=cbs)
    if choice['fit'] == 'frozen group': learn.freeze()
    fit = learn.fit_one_cycle if choice['fit'] == 'one cycle' else learn.fit
    fit(epochs, rate, cbs=cbs)

# The guarantees

def state(learn): return {n: t.clone() for n, t in inner_model(learn.model).state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

class Watch(Callback):
    "Looks at the weights after every step and every batch, behind all other callbacks"
    order = 99
    def __init__(self, pruner): self.pruner, self.leaks, self.dense = pruner, [], []
    def after_step(self): self.look()
    def after_batch(self): self.look()
    def look(self):
        masks, ws = self.learn.hold_masks.masks, dict(inner_model(self.learn.model).named_parameters())
        self.leaks.append(sum(int(ws[n][~m].count_nonzero()) for n, m in masks.items()))
        self.dense.append(int((ws[DENSE] == 0).sum()))

def zeros(learn, names):
    ws = weights(inner_model(learn.model))
    return sum(int((ws[n] == 0).sum()) for n in names)

def run(choice, folder):
    "(Learner, pruner, watch) after a training"
    if choice['network'] == 'compiled': torch._dynamo.reset()   # or it stops to compile, and says nothing
    learn = learner(choice, folder)
    if choice['before'] == 'lr_find': learn.lr_find(num_it=4, show_plot=False)
    pruner = METHODS[choice['method']](exclude='0', when_frozen=choice['fit'] == 'frozen group', seed=5)
    watch = Watch(pruner)
    train(learn, choice, [pruner, watch, *switched_on(choice)])
    return learn, pruner, watch

def goal(pruner):
    "How many zeros there have to be"
    n = sum(m.numel() for m in pruner.masks.values())
    return round((pruner.target if pruner.target is not None else pruner.history['total'].iloc[-1])*n)

def by_hand(learn):
    "The loss on the validation data, computed without the Learner"
    net, data = inner_model(learn.model).eval(), Images(32, 1)
    with torch.no_grad(): return nn.functional.cross_entropy(net(data.x), data.y).item()

def exact(learn, pruner, watch):
    "The target is met exactly, and the schedule is done"
    return pruner.finished and zeros(learn, pruner.names) == goal(pruner) > 0

def held(learn, pruner, watch):
    "No masked weight was other than 0 after any step or batch"
    return len(watch.leaks) > 8 and not any(watch.leaks)

def left_alone(learn, pruner, watch):
    "An excluded layer has no zero, and the network no new name and no hook"
    net = inner_model(learn.model)
    bare = not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    return not any(watch.dense) and bare and list(net.state_dict()) == list(network().state_dict())

def measured(learn, pruner, watch):
    "The table's column, the history and the report say what the weights say"
    ours, n = zeros(learn, pruner.names), sum(m.numel() for m in pruner.masks.values())
    report = table(inner_model(learn.model), exclude='0').loc['prunable weights']
    said = [learn.hold_masks.last_sparsity, pruner.history['total'].iloc[-1]]
    column = list(learn.recorder.metric_names).index('sparsity') - 1            # rows begin behind the epoch
    said.append(learn.recorder.values[-1][column])
    in_report = report['weights'] - report['kept']
    return [round(x*n) for x in said] == [ours]*len(said) and in_report == ours

def loss_of_the_task(learn, pruner, watch):
    "`validate` returns the task's loss and the metric, nothing else, and writes nothing"
    before = state(learn)
    found = learn.validate()
    return len(found) == 2 and abs(found[0] - by_hand(learn)) < 1e-4 and same(before, state(learn))

def persists(learn, pruner, watch):
    "A second fit without the pruner brings no weight back, and trains the others"
    ours, before = zeros(learn, pruner.names), state(learn)
    learn.unfreeze()
    learn.fit(1, .01)
    return zeros(learn, pruner.names) == ours and not same(before, state(learn))

def from_a_file(learn, pruner, watch):
    "What `load_learner` returns has the same weights, and its zeros hold"
    ours = zeros(learn, pruner.names)
    learn.logger = print
    learn.export('learner.pkl')
    twin = load_learner(learn.path/'learner.pkl')
    is_same = same(state(twin), state(learn))
    twin.dls, twin.logger = loaders(), quiet
    twin.fit(1, .01)
    return is_same and zeros(twin, pruner.names) == ours

def lr_find_undone(learn, pruner, watch):
    "`lr_find` after the pruning changes no weight, no mask and no count"
    def now(): return state(learn), {n: m.clone() for n, m in pruner.masks.items()}, len(pruner.rows)
    before = now()
    learn.lr_find(num_it=4, show_plot=False)
    after = now()
    return same(before[0], after[0]) and same(before[1], after[1]) and before[2] == after[2]

ALWAYS = {'exact count': exact, 'zeros after every step': held, 'the rest is left alone': left_alone,
          'numbers are measured': measured, 'the task\'s loss': loss_of_the_task}
IF_ASKED = {'lr_find changes nothing': ('before', 'lr_find', lr_find_undone),
            'export keeps the zeros': ('file', 'export and load', from_a_file),
            'a second fit keeps the zeros': ('then', 'second fit', persists)}
REPEATS = 'two runs agree'

def keeps(
    choice, # {factor: value}; what is missing is as in `PLAIN`
    twice=True, # Train it twice, for the guarantee that two runs agree?
) -> dict: # {guarantee: True if it is kept}, of those that the choice can show
    "Train once or twice, and look at every guarantee"
    choice = {**PLAIN, **choice}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.filterwarnings('ignore')
        found = run(choice, folder)
        kept = {name: bool(f(*found)) for name, f in ALWAYS.items()}
        if twice: kept[REPEATS] = same(state(found[0]), state(run(choice, folder)[0]))
        asked = {name: f for name, (factor, value, f) in IF_ASKED.items() if choice[factor] == value}
        return {**kept, **{name: bool(f(*found)) for name, f in asked.items()}}
