"Generated files agree with their sources, and pages keep the project's rules."
import ast
import builtins
import filecmp
import html
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
import nbformat
import pytest
from .conftest import docs_script

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PAGES = sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
MODULES = [p for p in sorted((ROOT/'prunelab').rglob('*.py')) if not p.name.startswith('_')]

execute = docs_script('execute')

def name_of(path): return path.relative_to(ROOT/'nbs').as_posix()
def read(path): return nbformat.read(path, as_version=4)
def code(page): return [c for c in page.cells if c.cell_type == 'code']
def text(page): return [c for c in page.cells if c.cell_type == 'markdown']
def exports(c): return bool(re.search(r'^#\| *exports?\b', c.source, re.M))

def module_of(path):
    "What a page exports to; None if nothing"
    found = [re.search(r'^#\| *default_exp +(\S+)', c.source, re.M) for c in code(read(path))]
    return next((m[1] for m in found if m), None)

CHAPTERS = [p for p in PAGES if module_of(p)]
every_page = pytest.mark.parametrize('path', PAGES, ids=name_of)
every_chapter = pytest.mark.parametrize('path', CHAPTERS, ids=name_of)

@pytest.fixture(scope='module')
def settings():
    ini = ConfigParser()
    ini.read(ROOT/'settings.ini')
    return ini['DEFAULT']

@pytest.fixture(scope='module')
def tracked():
    "{name: text} of the files in the repository"
    listed = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.split() if (ROOT/name).is_file()]
    return {name: (ROOT/name).read_text(errors='ignore') for name in files}

# What is generated

def run_in(folder, command, *args):
    "Run a command of this environment in a folder that is no checkout"
    env = {'PATH': f'{BIN}:/usr/bin:/bin', 'HOME': str(folder), 'GIT_CEILING_DIRECTORIES': str(folder)}
    subprocess.run([BIN/command, *args], cwd=folder, check=True, capture_output=True, env=env)

@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "A copy of what the generators read, generated anew"
    d = tmp_path_factory.mktemp('clean')
    left_out = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'prunelab', 'docs'): shutil.copytree(ROOT/name, d/name, ignore=left_out)
    for name in ('settings.ini', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, d)
    for p in (d/'prunelab').rglob('*.py'): p.unlink()
    run_in(d, 'python', 'docs/config.py')
    run_in(d, 'nbdev-export')
    return d

@pytest.mark.parametrize('name', ['pyproject.toml', 'prunelab/__init__.py'])
def test_the_package_is_described_by_settings(clean, name):
    assert (clean/name).read_text() == (ROOT/name).read_text(), 'run `make config`'

def test_pages_have_the_address_of_settings(clean):
    stale = [name_of(p) for p in PAGES if p.read_text() != (clean/'nbs'/name_of(p)).read_text()]
    assert not stale, f'{stale} name another address than settings.ini: run `make config`'

def test_the_address_stands_once(settings, tracked):
    "Where code and site are: settings.ini says it, everything else is made from it or reads it"
    address = re.compile(f'{re.escape(settings["git_url"])}|{settings["user"]}\\.github\\.io')
    made = re.compile(r'pyproject\.toml|prunelab/')            # by nbdev, and tested above
    texts = {name: t for name, t in tracked.items() if not made.match(name)}
    for p in PAGES:                                            # their first cells are made by `make config`
        texts[f'nbs/{name_of(p)}'] = '\n'.join(str(c) for c in read(p).cells[1:])
    assert settings['git_url'] in (ROOT/'pyproject.toml').read_text() and len(texts) > 50
    found = [name for name, t in texts.items() if address.search(t)]
    assert not found, found

def test_ruff():
    "Width, one statement a line, names; and no exception stands in ruff.toml that nothing needs"
    res = subprocess.run([sys.executable, ROOT/'docs/lint.py'], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr

def test_modules_are_made_from_notebooks(clean):
    homes = (clean/'prunelab', ROOT/'prunelab')
    names = {p.relative_to(home).as_posix() for home in homes for p in home.rglob('*.py')}
    _, differ, missing = filecmp.cmpfiles(*homes, names, shallow=False)
    assert not differ and not missing, f'{differ + missing} differ from the notebooks: run `make export`'

def test_readme_is_made_from_index():
    res = subprocess.run([sys.executable, ROOT/'docs/readme.py', '--check'], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

def test_no_machine_path_is_committed(tracked):
    "Neither sources nor outputs name a folder of the machine that they were written on"
    folder = re.compile(r'/(?:root|home/\w+|Users/\w+|work)/[\w.]')
    found = [name for name, t in tracked.items() if folder.search(t)]
    assert not found, found

WARNINGS = {
    '/opt/lib/python3.11/site-packages/fastai/x.py:5: UserWarning: x': 'fastai/x.py:5: UserWarning: x',
    '/usr/lib/python3.12/random.py:7: DeprecationWarning: x': 'random.py:7: DeprecationWarning: x',
    '/srv/a b/prunelab/prunelab/lab/data.py:9: UserWarning: x': 'prunelab/lab/data.py:9: UserWarning: x',
    'C:\\py\\site-packages\\torch\\amp.py:1: FutureWarning: x': 'torch\\amp.py:1: FutureWarning: x',
    '/tmp/ipykernel_12/345.py:2: UserWarning: x': 'this cell:2: UserWarning: x',
    'see https://example.org/prunelab/a.py: done': None, '/srv/prunelab/a.py is a file': None}

@pytest.mark.parametrize('said, stored', WARNINGS.items())
def test_a_warning_is_stored_without_the_folders_of_this_machine(said, stored):
    text = f'epoch 1\n{said}\n  warn("x")\n'
    out = execute.clean_output(nbformat.v4.new_output('stream', name='stderr', text=text))
    assert out.text == text.replace(said, stored or said)

# Imports; which module may import which: test_wings

def imports(path):
    "The import statements that a page exports"
    trees = [ast.parse(c.source) for c in code(read(path)) if exports(c)]
    return [n for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]

@pytest.fixture(scope='module')
def order():
    "{module: its page}"
    return {f'prunelab.{module_of(p)}': name_of(p) for p in CHAPTERS}

def test_every_module_has_a_page(order):
    assert len(order) == len(MODULES)

def may_look_ahead(path):
    "The lab runs every chapter"
    return path.parent.name in ('lab', 'repro')

@every_chapter
def test_imports_point_to_earlier_pages(path, order):
    if may_look_ahead(path): return
    used = [n.module for n in imports(path) if isinstance(n, ast.ImportFrom)]
    later = [m for m in used if m in order and order[m] >= name_of(path)]
    assert not later, f'{path.name} imports {later}'

@every_chapter
def test_no_star_import_of_ours(path):
    froms = [n for n in imports(path) if isinstance(n, ast.ImportFrom)]
    stars = [n.module for n in froms if n.names[0].name == '*']
    assert not [m for m in stars if m.startswith('prunelab.')]

@every_chapter
def test_nothing_that_takes_ten_seconds_is_imported(path):
    for n in imports(path):
        names = [n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
        assert not any(name.startswith('fastai.vision.all') for name in names)

# Dependencies

def distributions(requirements):
    "Names without bounds"
    return {re.split('[<>=!]', r)[0] for r in requirements}

@pytest.fixture(scope='module')
def requirements(settings):
    "{where: requirements}; extras by their name"
    extras = dict(line.split(':') for line in settings['extras'].strip().splitlines())
    lists = {**extras, 'use': settings['requirements'], 'dev': settings['dev_requirements']}
    return {where: listed.split() for where, listed in lists.items()}

def test_requirements_have_lower_bounds(requirements, settings):
    own = {f'{settings["lib_name"]}[{where}]' for where in requirements}       # dev takes whole extras
    unbounded = [r for listed in requirements.values() for r in listed if '>=' not in r and r not in own]
    assert not unbounded

SPELT = {'sklearn': 'scikit-learn', 'PIL': 'pillow'}
# matplotlib_inline only where IPython brought it
KNOWN = {*sys.stdlib_module_names, 'prunelab', 'matplotlib_inline'}

def packages(node):
    "Packages from outside that a statement imports"
    if isinstance(node, ast.Import): names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
    else: names = []
    tops = {n.split('.')[0] for n in names} - KNOWN
    return {SPELT.get(n, n) for n in tops}

@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_dependencies_are_declared(path, requirements):
    "What a module imports is in `requirements`; what a function imports when it is called may be in an extra"
    use = distributions(requirements['use'])
    late = use.union(*(distributions(listed) for where, listed in requirements.items() if where != 'dev'))
    tree = ast.parse(path.read_text())
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        missing = packages(node) - (late if id(node) in inside else use)
        assert not missing, f'line {node.lineno}: {missing} is not in settings.ini'

# Pages

def n_lines(src):
    "Lines of code, without blank ones and directives"
    lines = [line for line in src.splitlines() if line.strip()]
    return sum(not line.startswith(('#|', '# %%', '# AUTO')) for line in lines)

def function_lengths(src):
    "Lines of each function's body; parameters with their comments don't count"
    lines = src.splitlines()
    for node in ast.walk(ast.parse(src)):
        if not isinstance(node, ast.FunctionDef): continue
        yield n_lines('\n'.join(lines[node.body[0].lineno - 1:node.end_lineno]))

@every_page
def test_a_page_begins_with_its_name_and_a_promise(path):
    first = text(read(path))[0].source.splitlines()
    assert first[0].startswith('# ') and any(line.startswith('> ') for line in first)

@every_page
def test_the_site_generator_owns_some_names(path):
    assert path.stem not in ('search', 'genindex')
    assert path.stem != 'index' or path.parent.name == 'nbs'

@every_page
def test_cells_have_ids_of_their_own(path):
    ids = [c.id for c in read(path).cells]
    assert len(set(ids)) == len(ids)

@every_page
def test_exported_functions_are_short(path):
    for c in filter(exports, code(read(path))):
        assert n_lines(c.source) <= 40 and max(function_lengths(c.source), default=0) <= 30, c.id

@every_page
def test_stored_outputs_are_clean(path):
    for c in code(read(path)):
        for o in c.outputs:
            shown = str(o)
            assert o.output_type != 'error' and 'Traceback' not in shown, f'{c.id}: an error'
            assert '<progress' not in shown and '█' not in shown, f'{c.id}: a progress bar'
            assert o.get('name') != 'stderr', f'{c.id}: warnings: {o.get("text")}'

@every_page
def test_outputs_are_committed_and_small(path):
    page = read(path)
    assert any(c.outputs for c in code(page)), 'run `make nbs`'
    assert execute.weight(page) <= execute.LIMIT

@every_page
def test_figures_are_told_in_words(path):
    "Who can't see a figure reads `#| fig-alt`"
    kinds = {c.id: {k for o in c.outputs for k in o.get('data', {})} for c in code(read(path))}
    silent = [c.id for c in code(read(path))
              if kinds[c.id] & {'image/svg+xml', 'image/png'} and '#| fig-alt: ' not in c.source]
    assert not silent

HYPE = re.compile(
    r'\b(state[- ]of[- ]the[- ]art|amazing|awesome|incredibl|blazing|revolution|ground-?breaking|'
    r'cutting[- ]edge|world[- ]class|unprecedented|game[- ]chang|stunning|remarkabl|superior|outstanding|'
    r'unparalleled|impressive|powerful|seamless|effortless|extremely|extraordinar|magical|unbeatable|ultimate|'
    r'dramatic|spectacular|massive|huge\b)', re.I)

@every_page
def test_a_page_does_not_praise(path):
    found = [m[0] for c in text(read(path)) for m in HYPE.finditer(c.source)]
    assert not found, 'say what was measured instead'

@every_page
def test_equations_are_typed(path):
    "After an equation that stands alone comes code, before the next heading"
    cells = read(path).cells
    for i, c in enumerate(cells):
        if c.cell_type != 'markdown' or '$$' not in c.source: continue
        after = next((d for d in cells[i + 1:] if d.cell_type == 'code' or d.source.startswith('#')), c)
        assert after.cell_type == 'code', f'cell {c.id}: type this equation in Python'

# Numbers in prose

CODE, MATH = r'```.*?```|`[^`]*`', r'\$\$.*?\$\$|\$[^$]*\$'
NO_CLAIM = re.compile(rf'{CODE}|{MATH}|(?<=\])\([^)]*\)|(?:arXiv|doi|Python) \S+', re.S)
PARAGRAPH = re.compile(r'\n\n|\n(?=\||\*|\d+\.)')
# 1,293 or 87.9: what nobody knows by heart
EXACT = re.compile(r'(?<![\w.,/–-])(\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w]|[.,]\d)')
NUMBER = re.compile(r'\d[\d_,]*(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?')

def shown_by(output):
    "The text of an output: printed, a table, a figure's labels"
    data = output.get('data', {})
    markup = html.unescape(str(data.get('text/html', '')) + str(data.get('image/svg+xml', '')))
    printed = str(output.get('text', '')) + str(data.get('text/plain', ''))
    return printed + ' '.join(re.findall(r'>([^<]+)<', markup))

def printed(page):
    "All numbers in a page's code, outputs and figures"
    for c in code(page):
        for n in NUMBER.findall('\n'.join([c.source, *map(shown_by, c.outputs)])):
            yield float(n.replace(',', '').replace('_', ''))

def is_known(s, have):
    "Was the number printed? Rounding, percent and thousands are understood; powers of two are known"
    v, digits = float(s.replace(',', '')), len(s.partition('.')[2])
    if v == int(v) and int(v) & (int(v) - 1) == 0: return True
    return any(abs(round(y*k, digits) - v) < 1e-9 for y in have for k in (1, 100, .01, 1000, .001, 1e-6))

def claims(page):
    "(cell, number as it is written); who quotes adds a link in the same paragraph or row"
    for c in text(page):
        for paragraph in PARAGRAPH.split(c.source):
            if '](http' in paragraph: continue
            for s in EXACT.findall(NO_CLAIM.sub('', paragraph)): yield c.id, s

@every_page
def test_numbers_in_prose_are_printed_on_the_page(path):
    page = read(path)
    have = set(printed(page))
    missing = [f'cell {cell}: {s}' for cell, s in claims(page) if not is_known(s, have)]
    assert not missing, 'no cell prints these numbers'

# Another site

def has_import(tree): return any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))

def imports_star(tree):
    "Does it bring names that nobody can see here?"
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return any(a.name == '*' for n in froms for a in n.names)

def defined(tree):
    "Names that a cell brings"
    for n in ast.walk(tree):
        if isinstance(n, ast.alias): yield (n.asname or n.name).split('.')[0]
        if getattr(n, 'name', None): yield n.name
        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load): yield n.id
        if isinstance(n, ast.arg): yield n.arg

def cells_that_run(path):
    "nbdev's own site runs every cell of a chapter that imports or exports something, and no other"
    for c in code(read(path)):
        if re.search(r'nbdev_export\(\)|^[%!]', c.source, re.M): continue
        tree = ast.parse(c.source)
        if re.search(r'^#\| *export[si]?\b', c.source, re.M) or has_import(tree): yield c, tree

@every_chapter
def test_another_site_can_run_the_imports(path):
    "Such a cell uses only what it or another such cell defines"
    known = {*dir(builtins), '__name__', 'get_ipython'}
    for c, tree in cells_that_run(path):
        known.update(defined(tree))
        unknown = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - known
        if imports_star(tree): known |= unknown
        elif not exports(c): assert not unknown, f'cell {c.id}: put the imports into a cell of their own'
