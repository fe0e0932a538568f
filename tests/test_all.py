"`from prunelab.all import *`: tools and methods, nothing that is heavy, nothing by accident."
import builtins
import subprocess
import sys
import pytest
import fastai.basics
import prunelab.all

def in_fresh_process(code):
    cmd = [sys.executable, '-W', 'ignore', '-c', code]
    return subprocess.run(cmd, capture_output=True, text=True, check=True).stdout.strip()

@pytest.mark.parametrize('name', prunelab.all.__all__)
def test_every_name_is_there_and_documented(name):
    assert getattr(prunelab.all, name).__doc__

def test_no_name_hides_a_builtin_or_one_of_fastai():
    names = prunelab.all.__all__
    assert not [n for n in names if hasattr(builtins, n) or hasattr(fastai.basics, n)]

def test_a_learner_can_prune_and_hold():
    code = '''
from prunelab.all import *
from fastai.learner import Learner
print(callable(Learner.prune), callable(Learner.hold))
'''
    assert in_fresh_process(code) == 'True True'

@pytest.fixture(scope='module')
def loaded():
    "Names of the modules that a fresh process has after the import"
    return in_fresh_process('import sys, prunelab.all; print(*sys.modules)').split()

@pytest.mark.parametrize('module', ['prunelab.lab', 'optuna', 'fastai.vision', 'torchvision'])
def test_what_is_not_loaded(module, loaded):
    assert 'prunelab.core' in loaded and not [m for m in loaded if f'{m}.'.startswith(f'{module}.')]
