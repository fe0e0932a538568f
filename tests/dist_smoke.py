"""The wheel as a stranger gets it: `python tests/dist_smoke.py dist/prunelab-….whl` (`make dist` does it).

Installs the wheel, without extras, into an empty environment, and starts this file again there, far from the
checkout: `python -I tests/dist_smoke.py --inside`. What has to be true there is `inside`."""
import importlib.util
import pkgutil
import subprocess
import sys
import tempfile
import venv
import warnings
from pathlib import Path
from zipfile import ZipFile

DEV = ('nbdev', 'optuna', 'pytest', 'sphinx')                 # a bare installation brings none of them

def modules(names):
    "Dotted names of the Python files of prunelab among `names`"
    files = (Path(n) for n in names if n.startswith('prunelab/') and n.endswith('.py'))
    return {'.'.join(f.with_suffix('').parts).removesuffix('.__init__') for f in files}

def compare(wheel, root):
    "The wheel has the modules of the checkout: none is missing, none is left over from an older build"
    got = modules(ZipFile(wheel).namelist())
    want = modules(p.relative_to(root).as_posix() for p in (root/'prunelab').rglob('*.py'))
    assert got == want, f'not in the wheel: {sorted(want - got)}, only in the wheel: {sorted(got - want)}'

def digits():
    "Some of scikit-learn's digits as fastai DataLoaders, made of nothing but what a user has"
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    pairs = list(zip(torch.tensor(x, dtype=torch.float32)/16, torch.tensor(y)))
    return DataLoaders(DataLoader(pairs[:1200], bs=64, shuffle=True), DataLoader(pairs[1200:], bs=256))

def prune():
    "A Learner is pruned while it trains, to exactly what was asked, and the zeros stay"
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from torch import nn
    from prunelab.callbacks import PruneCB
    from prunelab.core import weights
    from prunelab.schedules import gradual
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    learn = Learner(digits(), model, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-2, cbs=PruneCB(.9, schedule=gradual()))
        learn.fit(1, 1e-2)
    zeros = sum(int((w == 0).sum()) for w in weights(model).values())
    assert zeros == round(.9*(64*100 + 100*10)), f'{zeros} zeros'
    return zeros

def refused(f):
    "The message with which `f` says what is not installed"
    try: f()
    except ImportError as e: return str(e)
    raise AssertionError('nothing was missing')

def inside():
    "All modules can be imported, a Learner is pruned, and a search says what it needs"
    import prunelab
    from prunelab.pareto import F2, search
    names = sorted(m.name for m in pkgutil.walk_packages(prunelab.__path__, 'prunelab.'))
    for name in names: importlib.import_module(name)
    said = refused(lambda: search(F2, None, None))
    assert "pip install 'prunelab[search]'" in said, said
    where = Path(prunelab.__file__).parent
    print(f'prunelab {prunelab.__version__} of {where}: {len(names)} modules, {prune()} zeros')
    return where

def main(wheel):
    "Compare, install, and start again inside"
    compare(wheel, Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder)/('Scripts' if sys.platform == 'win32' else 'bin')/'python'
        subprocess.run([python, '-m', 'pip', 'install', '-q', wheel.resolve()], check=True)
        cmd = [python, '-I', '-W', 'ignore', Path(__file__).resolve(), '--inside']
        subprocess.run(cmd, check=True, cwd=folder)

if __name__ == '__main__':
    if sys.argv[1:] != ['--inside']: main(Path(sys.argv[1]))
    else:
        there = [name for name in DEV if importlib.util.find_spec(name)]
        assert not there, f'{there} came with a bare installation'
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            where = inside()
        assert where.is_relative_to(sys.prefix), f'{where} is not the installed one'
