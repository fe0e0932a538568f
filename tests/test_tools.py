"What keeps the project in order: configuration, ruff, the git hook, the report of style, the guide"
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
import nbformat
import pytest
from .conftest import docs_script

ROOT = Path(__file__).resolve().parent.parent

config, hooks, lint, style = (docs_script(name) for name in ('config', 'hooks', 'lint', 'style'))

# ---- configuration

def test_extras_are_read_and_mistakes_are_named():
    assert config.extras('') == {}
    assert config.extras('\na: x>=1 y>=2,!=3\nb: z') == {'a': ['x>=1', 'y>=2,!=3'], 'b': ['z']}
    for bad in ('a x>=1', 'a:', ': x', 'dev: x', 'a: x\na: y'):
        with pytest.raises(ValueError, match='settings.ini'): config.extras(bad)

@pytest.fixture
def project(tmp_path):
    "Settings of somebody else, with two pages"
    for name in ('prunelab', 'nbs/guide'): (tmp_path/name).mkdir(parents=True)
    (tmp_path/'prunelab/__init__.py').write_text('__version__ = "0"\n')
    for name in ('nbs/40_pareto.ipynb', 'nbs/guide/changelog.ipynb'): shutil.copy(ROOT/name, tmp_path/name)
    text = (ROOT/'settings.ini').read_text().replace('user = prunelab', 'user = somebody')
    (tmp_path/'settings.ini').write_text(text + '    more: abc>=1 def>=2\n')
    return tmp_path

def test_what_settings_cannot_say(project):
    config.main(project)
    made = config.tomlkit.parse((project/'pyproject.toml').read_text())
    extras = made['project']['optional-dependencies']
    assert extras['more'] == ['abc>=1', 'def>=2'] and {'dev', 'search'} < extras.keys()
    assert made['tool']['setuptools']['packages']['find']['include'] == ['prunelab', 'prunelab.*']

def test_a_new_address_reaches_every_page(project):
    config.main(project)
    for page in (project/'nbs').rglob('*.ipynb'):
        was = (ROOT/page.relative_to(project)).read_text()
        assert page.read_text() == was.replace('github.com/prunelab/', 'github.com/somebody/') != was
        nbformat.read(page, as_version=4)
    assert 'github.com/somebody/prunelab"' in (project/'pyproject.toml').read_text()

def test_the_second_time_nothing_is_written(project):
    config.main(project)
    files = [p for p in project.rglob('*') if p.suffix in ('.toml', '.ipynb')]
    before = [p.stat().st_mtime_ns for p in files]
    config.main(project)
    assert [p.stat().st_mtime_ns for p in files] == before and len(files) == 3

# ---- ruff

CLEAN, WIDE, TWO = 'x = 1\n', f'x = {"1"*110}\n', 'x = 1; y = 2\n'

def folder(path, files, listed=''):
    "A folder with our rules and other exceptions"
    rules = (ROOT/'ruff.toml').read_text().partition('[lint.per-file-ignores]\n')
    (path/'ruff.toml').write_text(''.join(rules[:2]) + listed)
    for name, text in files.items(): (path/name).write_text(text)
    return path

@pytest.mark.parametrize('text', [WIDE, TWO, 'import os\n', 'print(nowhere)\n', 'x =\n'])
def test_what_breaks_a_rule_fails(tmp_path, text, capsys):
    assert lint.main(folder(tmp_path, {'a.py': CLEAN})) == 0
    assert lint.main(folder(tmp_path, {'a.py': text})) == 1 and 'a.py:1' in capsys.readouterr().out

def test_short_ifs_directives_and_acting_imports_pass(tmp_path):
    text = f'import fastai.torch_core\nif 1: print(2)\n#| fig-alt: "{"long "*30}"\n'
    assert lint.main(folder(tmp_path, {'a.py': text})) == 0

def test_pages_are_read(tmp_path):
    cells = [nbformat.v4.new_code_cell(s) for s in ('#| default_exp a', '%time 1', WIDE)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'a.ipynb')
    assert lint.broken(folder(tmp_path, {})) == {'a.ipynb': {'E501'}}

@pytest.mark.parametrize('listed, left', [
    ('"a.py" = ["E501"]\n', '"a.py" = ["E501"]\n'),
    ('"a.py" = ["E501", "E702"]\n', '"a.py" = ["E501"]\n'),
    ('"a.py" = ["E501"]\n"b.py" = ["E501"]\n"gone.py" = ["F401"]\n', '"a.py" = ["E501"]\n')])
def test_the_list_only_shrinks(tmp_path, listed, left, capsys):
    at = folder(tmp_path, {'a.py': WIDE, 'b.py': CLEAN}, listed)
    assert lint.main(at) == int(listed != left)
    assert ('SHRINK=1' in capsys.readouterr().out) == (listed != left)
    assert lint.main(at, shrink=True) == 0
    assert (at/'ruff.toml').read_text().endswith(f'per-file-ignores]\n{left}')
    (at/'b.py').write_text(TWO)
    assert lint.main(at, shrink=True) == 1                     # what is not in the list does not get into it

@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A repository with our rules, our hook, and nothing committed"
    folder(tmp_path, {})
    (tmp_path/'docs').mkdir()
    shutil.copy(ROOT/'docs/hooks.py', tmp_path/'docs')
    monkeypatch.chdir(tmp_path)
    for k in ('GIT_DIR', 'GIT_INDEX_FILE', 'GIT_WORK_TREE'): monkeypatch.delenv(k, raising=False)
    for cmd in ('init -q', 'config user.name me', 'config user.email me@example.com'): hooks.git(*cmd.split())
    hooks.install()
    return tmp_path

def commit(): return subprocess.run(['git', 'commit', '-qm', 'text'], capture_output=True, text=True)

def test_the_hook_reads_what_is_committed(clone):
    (clone/'a b.py').write_text(WIDE)
    hooks.git('add', '.')
    (clone/'a b.py').write_text(CLEAN)                         # mended in the folder only
    refused = commit()
    assert refused.returncode == 1 and 'E501' in refused.stdout + refused.stderr
    hooks.git('add', '.')
    (clone/'a b.py').write_text(TWO)                           # broken in the folder only
    assert commit().returncode == 0

def test_the_hook_replaces_no_other(clone):
    hook = clone/'.git/hooks/pre-commit'
    hooks.install()                                            # ours it does
    hook.write_text('#!/bin/sh\nexit 0\n')
    with pytest.raises(SystemExit, match='not ours'): hooks.install()
    assert hook.read_text() == '#!/bin/sh\nexit 0\n'

# ---- the report of style

def test_statement_sizes_by_hand():
    "x = 1 is Assign, Name, Store, Constant; an if counts its test alone, a def and an import nothing"
    assert style.statement_sizes('x = 1') == [4]
    assert sorted(style.statement_sizes('import a\ndef f(x):\n    if x: return x')) == [3, 3]
    assert [style.percentile_90(range(1, n + 1)) for n in (1, 9, 10, 11, 20)] == [1, 9, 9, 10, 18]

def test_comments_and_voice_by_hand():
    src = '#| export\ndef f(\n    x, # Documentation\n): # More of it\n    # Why\n\n    return x # Because'
    assert style.comments(src) == (2, 6)

def test_code_without_its_documentation():
    src = 'def f(\n    x, # Documentation\n):\n    "A docstring"\n    return x # Why'
    assert style.code_only(src) == 'def f(x):\n    return x'
    text = "We say it, and you read it. `we` $you$\n\n| you | we |\n\n```\nwe\n```\n\nIt isn't [yours](we)."
    assert style.prose([nbformat.v4.new_markdown_cell(text)]) == (2, 10)

def test_the_report_has_every_module_and_page():
    res = subprocess.run([sys.executable, ROOT/'docs/style.py'], capture_output=True, text=True, check=True)
    for name in ('core', 'lab.data', 'all tools', 'all methods', 'all lab', 'guide/contributing.ipynb'):
        assert re.search(f'^{name} ', res.stdout, re.M), name

# ---- the guide

def markdown(path):
    "The text of a page"
    cells = nbformat.read(path, as_version=4).cells
    return '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown')

GUIDE = {p: markdown(ROOT/p) for p in ('nbs/guide/contributing.ipynb', 'nbs/index.ipynb')}
CODE = re.compile(r'```sh\n(.*?)```|(`[^`\n]+`)', re.S)
GUIDE['.github/CONTRIBUTING.md'] = (ROOT/'.github/CONTRIBUTING.md').read_text()

@pytest.mark.parametrize('page', GUIDE)
def test_commands_and_files_of_the_guide_exist(page):
    targets = re.findall(r'^([\w-]+):', (ROOT/'Makefile').read_text(), re.M)
    code = '\n'.join(a + b for a, b in CODE.findall(GUIDE[page]))
    commands = set(re.findall(r'(?:^|`)make ([\w-]+)', code, re.M))
    files = set(re.findall(r'\b(?:nbs|tests|docs)/[\w/]+\.(?:ipynb|py)', code))
    files = {f for f in files if 'name' not in f}              # nbs/NN_name.ipynb is yours to choose
    assert commands and not commands - {*targets}
    assert not [f for f in files if not (ROOT/f).exists()]

NAME = re.compile(r'`(prunelab(?:\.\w+)+)`')

def resolves(name):
    "Is there such a module, or a module that offers such a name? Read, not imported"
    path = ROOT/name.replace('.', '/')
    if path.with_suffix('.py').exists() or path.is_dir(): return True
    module = path.parent.with_suffix('.py')
    if not module.exists(): return False
    names = next(n for n in ast.parse(module.read_text()).body if ast.unparse(n).startswith('__all__ ='))
    return path.name in ast.literal_eval(names.value)

def test_renames_of_the_changelog():
    "Old names are gone, new ones are there"
    rows = re.findall(r'^\| (`[^|]+`) \| (`[^|]+`) \|$', markdown(ROOT/'nbs/guide/changelog.ipynb'), re.M)
    old, new = ([m[1] for r in rows if (m := NAME.fullmatch(r[i]))] for i in (0, 1))
    assert len(old) > 10 and not [n for n in old if resolves(n)] and not [n for n in new if not resolves(n)]
