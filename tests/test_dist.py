"""The wheel, without a network: what is in it, what it asks for, and that it works where Optuna is missing.

`make dist` does the same for real, in an empty environment."""
import email
import shutil
import subprocess
import sys
from zipfile import ZipFile
import pytest
from tests import dist_smoke
from tests.test_tools import ROOT

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy of what it is built from"
    d = tmp_path_factory.mktemp('dist')
    for name in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, d)
    shutil.copytree(ROOT/'prunelab', d/'prunelab', ignore=shutil.ignore_patterns('__pycache__'))
    cmd = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', d/'out', d]
    subprocess.run(cmd, check=True)
    return next((d/'out').glob('*.whl'))

def test_the_wheel_has_every_module(wheel):
    dist_smoke.compare(wheel, ROOT)
    assert 'prunelab/lab/engine.py' in ZipFile(wheel).namelist()

def test_a_wheel_without_the_lab_is_noticed(wheel, tmp_path):
    with ZipFile(wheel) as old, ZipFile(tmp_path/'less.whl', 'w') as new:
        for name in old.namelist():
            if '/lab/' not in name: new.writestr(name, old.read(name))
    with pytest.raises(AssertionError, match='not in the wheel.*prunelab.lab.engine'):
        dist_smoke.compare(tmp_path/'less.whl', ROOT)

def test_the_wheel_asks_for_optuna_only_to_search(wheel):
    names = ZipFile(wheel).namelist()
    meta = ZipFile(wheel).read(next(n for n in names if n.endswith('/METADATA')))
    asked = email.message_from_bytes(meta).get_all('Requires-Dist')
    optuna = [r for r in asked if r.startswith('optuna')]
    assert any(r.startswith('fastai>') and ';' not in r for r in asked)
    assert len(optuna) == 1 and optuna[0].endswith('extra == "search"')

def test_everything_but_a_search_works_without_optuna(wheel, tmp_path):
    "In a process that has the unpacked wheel and no Optuna"
    ZipFile(wheel).extractall(tmp_path/'site')
    code = "import sys; sys.modules['optuna'] = None; import dist_smoke; print(dist_smoke.inside())"
    env = {'PYTHONPATH': f'{tmp_path/"site"}:{ROOT/"tests"}', 'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path)}
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, env=env,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(tmp_path/'site/prunelab')
