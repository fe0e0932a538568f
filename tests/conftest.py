"A small `Learner` for the tests: a fixed random task, no data on disk, on every device; and a browser."
import importlib.util
import os
import re
import shutil
from contextlib import chdir
from pathlib import Path
os.environ.setdefault('MPLBACKEND', 'agg')
import nbformat
import pytest
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn
from prunelab.core import seeded

ROOT = Path(__file__).resolve().parent.parent

def docs_script(name):
    "A script of docs/ as a module"
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT/f'docs/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def as_id(x):
    "A name for a parameter of a test without addresses: the same in every process, as pytest-xdist needs it"
    return re.sub(r' at 0x\w+', '', str(x))

def quiet(row): pass

class Pairs:
    "Inputs and the class that a fixed random teacher gives them"
    def __init__(self, n=96, seed=0):
        with seeded(seed):
            self.x = torch.randn(n, 12, device='cpu')
            self.y = (self.x @ torch.randn(12, 4, device='cpu')).argmax(1)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]
    def new_empty(self): return Pairs(0)

def mlp():
    "Three prunable weights, 12·20 + 20·10 + 10·4 = 480 in all, and a BatchNorm"
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))

def make_learner(path='.', device='cpu', model=None, bs=16, **kwargs):
    "A silent `Learner`; its weights and the order of its batches are always the same"
    with seeded(1): model = model or mlp()
    with seeded(2):
        train, valid = DataLoader(Pairs(), bs=bs, shuffle=True), DataLoader(Pairs(48, 1), bs=48)
        dls = DataLoaders(train, valid, device=torch.device(device))
    options = {'metrics': accuracy, **kwargs}
    learn = Learner(dls, model.to(device), CrossEntropyLossFlat(), path=path, **options)
    learn.remove_cbs(ProgressCallback)
    learn.logger = quiet
    return learn

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')

@pytest.fixture(params=['cpu', pytest.param('cuda', marks=needs_cuda)])
def device(request): return request.param

@pytest.fixture
def new_learner(tmp_path, device):
    "A function that makes such a `Learner`"
    def make(**kwargs): return make_learner(tmp_path, device, **kwargs)
    return make

# In one place, since a process has one browser
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
OPTIONS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync']

@pytest.fixture(scope='session')
def browser():
    if not CHROMIUM:
        said = 'no Chromium is installed (Debian: apt-get install chromium)'
        pytest.fail(said) if os.environ.get('PRUNELAB_NEEDS_BROWSER') == '1' else pytest.skip(said)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield b
        b.close()

def run_page(page, place, instead):
    "What the page's cells define when they run with `instead` of `place`; pictures are drawn and thrown away"
    import matplotlib.pyplot as plt
    known = {'__name__': 'page'}
    cells = [c.source for c in nbformat.read(page, 4).cells[1:] if c.cell_type == 'code']
    assert sum(place in source for source in cells) == 1
    with chdir(page.parent), plt.rc_context():
        for source in cells:
            if 'nbdev_export' in source: continue
            exec(compile(source.replace(place, instead), f'{page.name}: {source[:60]!r}', 'exec'), known)
    plt.close('all')
    return known
