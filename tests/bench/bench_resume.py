"""What a checkpoint costs, of LeNet-5's training with one a minute: python -m tests.bench.bench_resume

A checkpoint costs the time of writing it, and between two of them a look at the clock after each batch."""
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
import numpy as np
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from prunelab.callbacks import PruneCB
from prunelab.drop import DropPruning
from prunelab.lab.models import lenet5
from prunelab.resume import PruneCheckpoint
from prunelab.schedules import gradual
from .bench_train import packed
from .common import main, row

class Write(Callback):
    "Writes a checkpoint after every tenth batch, and takes the time of that and of the others"
    order, run_valid = 120, False
    def __init__(self, keeper): self.keeper, self.writing, self.clock = keeper, [], []
    def after_batch(self):
        begin = time.perf_counter()
        if self.iter % 10 == 9: self.keeper.write(self.iter)
        else: self.keeper.after_batch()
        (self.writing if self.iter % 10 == 9 else self.clock).append(time.perf_counter() - begin)

def share(pruner, device='cpu'):
    "Seconds of a checkpoint, and the share of training that goes into it and into looking at the clock"
    dls = packed(6400, 1, 28, device)
    learn = Learner(dls, lenet5(), CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9))
    with tempfile.TemporaryDirectory() as folder, learn.no_bar(), learn.no_logging():
        write = Write(PruneCheckpoint(Path(folder)/'run', every=60))
        begin = time.perf_counter()
        learn.fit(2, .01, cbs=[pruner, write.keeper, write])
        batch = (time.perf_counter() - begin - sum(write.writing))/100
    one, clock = np.median(write.writing), np.median(write.clock)
    return one, clock/batch + one/60

def run():
    "One row per method"
    for pruner in (PruneCB(.9, schedule=gradual()), DropPruning(.9, schedule=gradual(n=20))):
        seconds, part = share(pruner)
        name = type(pruner).__name__
        what = f'checkpoint of LeNet-5, {name}, {1e3*seconds:.0f} ms: % of training, against 3 %'
        yield row(name, what, 100*part, 3., unit='% of training', target='at most 1')

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    main(run)
