"Generated files agree with their sources, and pages keep the project's rules."
import ast, builtins, filecmp, html, importlib.util, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PAGES = sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
MODULES = [p for p in sorted((ROOT/'prunelab').rglob('*.py')) if not p.name.startswith('_')]
IDS = [p.relative_to(ROOT/'nbs').as_posix() for p in PAGES]

spec = importlib.util.spec_from_file_location('docs_execute', ROOT/'docs/execute.py')
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)

def read(path): return nbformat.read(path, as_version=4)
def settings():
    ini = ConfigParser()
    ini.read(ROOT/'settings.ini')
    return ini['DEFAULT']
def code(page): return [c for c in page.cells if c.cell_type == 'code']
def exported(c): return bool(re.search(r'^#\| *exports?\b', c.source, re.M))
def module_of(path): return next((m[1] for c in code(read(path)) if (m := re.search(r'^#\| *default_exp +(\S+)', c.source, re.M))), None)
def n_lines(src): return sum(bool(line.strip()) and not line.startswith(('#|', '# %%', '# AUTO')) for line in src.splitlines())

@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    "A copy of what the generators read, generated anew"
    d = tmp_path_factory.mktemp('clean')
    for name in ('nbs', 'prunelab', 'docs'): shutil.copytree(ROOT/name, d/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, d)
    for p in (d/'prunelab').rglob('*.py'): p.unlink()
    run = lambda *cmd: subprocess.run([str(BIN/cmd[0]), *cmd[1:]], cwd=d, check=True, capture_output=True, text=True, env={'PATH': f'{BIN}:/usr/bin:/bin', 'HOME': str(d), 'GIT_CEILING_DIRECTORIES': str(d)})
    run('python', 'docs/config.py')
    run('nbdev-export')
    return d

def test_pyproject_is_made_from_settings(clean):
    assert (clean/'pyproject.toml').read_text() == (ROOT/'pyproject.toml').read_text(), 'run `make config`'
    assert (clean/'prunelab/__init__.py').read_text() == (ROOT/'prunelab/__init__.py').read_text(), 'run `make config`'
    stale = [i for p, i in zip(PAGES, IDS) if p.read_text() != (clean/'nbs'/i).read_text()]
    assert not stale, f'{stale} name another address than settings.ini: run `make config`'

def test_the_address_stands_once():
    "Where the code is and where the site is: settings.ini says it, everything else is made from it or reads it"
    ini = settings()
    address = re.compile(f'{re.escape(ini["git_url"])}|{ini["user"]}\\.github\\.io')
    made = re.compile(r'pyproject\.toml|prunelab/')                    # by nbdev, and test_pyproject_is_made_from_settings
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {f: (ROOT/f).read_text(errors='ignore') for f in tracked if (ROOT/f).is_file() and not made.match(f)}
    for page, i in zip(PAGES, IDS):                                    # their first cells are made by `make config`
        texts[f'nbs/{i}'] = '\n'.join(str(c) for c in read(page).cells[1:])
    assert ini['git_url'] in (ROOT/'pyproject.toml').read_text() and len(texts) > 50
    assert not (found := [f for f, text in texts.items() if address.search(text)]), found

def test_ruff():
    "Width, one statement a line, names; and no exception stands in ruff.toml that nothing needs"
    res = subprocess.run([sys.executable, ROOT/'docs/lint.py'], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr

def test_modules_are_made_from_notebooks(clean):
    names = {p.relative_to(d/'prunelab').as_posix() for d in (clean, ROOT) for p in (d/'prunelab').rglob('*.py')}
    same, differ, missing = filecmp.cmpfiles(clean/'prunelab', ROOT/'prunelab', names, shallow=False)
    assert not differ and not missing, f'{differ + missing} differ from the notebooks: run `make export`'

def test_readme_is_made_from_index():
    res = subprocess.run([sys.executable, ROOT/'docs/readme.py', '--check'], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

def test_imports_point_to_earlier_pages():
    order = {f'prunelab.{m}': p.relative_to(ROOT/'nbs').as_posix() for p in PAGES if (m := module_of(p))}
    assert len(order) == len(MODULES)
    for p in PAGES:
        if not module_of(p): continue
        for c in code(read(p)):
            if not exported(c): continue
            for node in ast.walk(ast.parse(c.source)):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('prunelab.'):
                    may_look_ahead = p.parent.name in ('lab', 'repro')     # the lab runs every chapter
                    assert order[node.module] < p.relative_to(ROOT/'nbs').as_posix() or may_look_ahead, f'{p.name} imports {node.module} of {order[node.module]}'
                    assert node.names[0].name != '*', f'{p.name}: star import'
                names = [node.module or ''] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
                assert not any(n.startswith('fastai.vision.all') for n in names), f'{p.name}: fastai.vision.all takes ten seconds'

def imported(node):
    "Names of the packages from outside that a statement imports"
    if isinstance(node, ast.ImportFrom): names = [] if node.level else [node.module]
    else: names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
    return {n.split('.')[0] for n in names}

def test_dependencies_are_declared():
    "What a module imports is in `requirements`; what a function imports when it is called may be in an extra"
    ini = settings()
    extras = dict(line.split(':') for line in ini['extras'].strip().splitlines())
    lists = {k: v.split() for k, v in {**extras, 'use': ini['requirements'], 'dev': ini['dev_requirements']}.items()}
    own = {f'{ini["lib_name"]}[{name}]' for name in extras}            # dev takes whole extras
    unbounded = [r for rs in lists.values() for r in rs if '>=' not in r and r not in own]
    assert not unbounded, f'{unbounded} have no lower bound'
    declared = {k: {re.split('[<>=!]', r)[0] for r in rs} for k, rs in lists.items()}
    late = set().union(declared['use'], *(declared[name] for name in extras))
    spelt = {'sklearn': 'scikit-learn', 'PIL': 'pillow'}
    known = {*sys.stdlib_module_names, 'prunelab', 'matplotlib_inline'}    # the last only where IPython brought it
    for path in MODULES:
        tree = ast.parse(path.read_text())
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            may = late if id(node) in inside else declared['use']
            missing = {spelt.get(n, n) for n in imported(node) - known} - may
            assert not missing, f'{path.name}, line {node.lineno}: {missing} is not in settings.ini'

@pytest.mark.parametrize('path', PAGES, ids=IDS)
def test_page(path):
    page = read(path)
    first = next(c.source for c in page.cells if c.cell_type == 'markdown').splitlines()
    assert first[0].startswith('# ') and any(line.startswith('> ') for line in first), 'a page begins with its name and a promise'
    assert path.stem not in ('search', 'genindex') and (path.stem != 'index' or path.parent.name == 'nbs'), 'the site generator owns this name'
    assert len({c.id for c in page.cells}) == len(page.cells)
    for c in code(page):
        where = f'{path.name}, cell {c.id}'
        if exported(c): assert n_lines(c.source) <= 40 and all(n <= 30 for n in functions(c.source)), f'{where}: an exported function has at most 30 lines'
        for o in c.outputs:
            text = str(o)
            assert o.output_type != 'error' and 'Traceback' not in text, f'{where}: a stored error'
            assert '<progress' not in text and '█' not in text, f'{where}: a stored progress bar'
            assert o.get('name') != 'stderr', f'{where}: stored warnings: {o.get("text")}'
    assert execute.weight(page) <= execute.LIMIT, 'at most 300 kB of output'
    assert any(c.outputs for c in code(page)), 'outputs are committed: run `make nbs`'

HYPE = re.compile(r'\b(state[- ]of[- ]the[- ]art|amazing|awesome|incredibl|blazing|revolution|ground-?breaking|cutting[- ]edge|world[- ]class|unprecedented|game[- ]chang|stunning|remarkabl|'
                  r'superior|outstanding|unparalleled|impressive|powerful|seamless|effortless|extremely|extraordinar|magical|unbeatable|ultimate|dramatic|spectacular|massive|huge\b)', re.I)

@pytest.mark.parametrize('path', PAGES, ids=IDS)
def test_a_page_does_not_praise(path):
    found = [m[0] for c in read(path).cells if c.cell_type == 'markdown' for m in HYPE.finditer(c.source)]
    assert not found, f'{found}: say what was measured instead'

@pytest.mark.parametrize('path', PAGES, ids=IDS)
def test_equations_are_typed(path):
    "After an equation that stands alone comes code, before the next heading"
    cells = read(path).cells
    for i, c in enumerate(cells):
        if c.cell_type != 'markdown' or '$$' not in c.source: continue
        after = next((d for d in cells[i + 1:] if d.cell_type == 'code' or d.source.startswith('#')), c)
        assert after.cell_type == 'code', f'{path.name}, cell {c.id}: type this equation in Python'

PROSE_ONLY = re.compile(r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|(?<=\])\([^)]*\)|(?:arXiv|doi|Python) \S+', re.S)
EXACT = re.compile(r'(?<![\w.,/–-])(\d{1,3}(?:,\d{3})+|\d+\.\d+)(?![\w]|[.,]\d)')     # 1,293 or 87.9: what nobody knows by heart

def printed(page):
    "All numbers in a page's code, outputs and figures"
    for c in code(page):
        out = [str(o.get('text', '')) + str(o.get('data', {}).get('text/plain', '')) + ' '.join(re.findall(r'>([^<]+)<', html.unescape(str(o.get('data', {}).get('text/html', '')) + str(o.get('data', {}).get('image/svg+xml', ''))))) for o in c.outputs]
        for n in re.findall(r'\d[\d_,]*(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?', '\n'.join([c.source, *out])): yield float(n.replace(',', '').replace('_', ''))

@pytest.mark.parametrize('path', PAGES, ids=IDS)
def test_numbers_in_prose_are_printed_on_the_page(path):
    "Or quoted: with a link, in the same paragraph or row, to where they come from. Rounding, percent and thousands are understood; powers of two are known"
    page = read(path)
    have, missing = set(printed(page)), []
    for c in page.cells:
        for par in re.split(r'\n\n|\n(?=\||\*|\d+\.)', c.source) if c.cell_type == 'markdown' else ():
            for s in EXACT.findall(PROSE_ONLY.sub('', par)) if '](http' not in par else ():
                v, d = float(s.replace(',', '')), len(s.partition('.')[2])
                power = v == int(v) and int(v) & (int(v) - 1) == 0
                if not power and not any(abs(round(y*k, d) - v) < 1e-9 for y in have for k in (1, 100, .01, 1000, .001, 1e-6)): missing.append(f'cell {c.id}: {s}')
    assert not missing, f'{path.name}: no cell prints these numbers: {missing}'

@pytest.mark.parametrize('path', [p for p in PAGES if module_of(p)], ids=[i for p, i in zip(PAGES, IDS) if module_of(p)])
def test_another_site_can_run_the_imports(path):
    "nbdev's own site runs every cell of a chapter that imports something, and no other: such a cell uses only what it or another such cell defines"
    known = {*dir(builtins), '__name__', 'get_ipython'}
    for c in code(read(path)):
        if re.search(r'nbdev_export\(\)|^[%!]', c.source, re.M): continue
        tree = ast.parse(c.source)
        nodes = list(ast.walk(tree))
        if not (exported(c) or re.search(r'^#\| *exporti\b', c.source, re.M) or any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes)): continue
        stars = any(a.name == '*' for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names)
        known |= {(a.asname or a.name).split('.')[0] for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names} | {n.name for n in nodes if hasattr(n, 'name') and n.name} | \
                 {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        unknown = {n.id for n in nodes if isinstance(n, ast.Name)} - known
        if stars: known |= unknown; continue
        assert not unknown or exported(c), f'{path.name}, cell {c.id}: {unknown} are not defined where this cell runs; put the imports into a cell of their own'

def functions(src):
    "Lines of each function in `src`, without blank ones; parameters with their comments do not count"
    lines = src.splitlines()
    for node in ast.walk(ast.parse(src)):
        if isinstance(node, ast.FunctionDef): yield n_lines('\n'.join(lines[node.body[0].lineno - 1:node.end_lineno]))

def test_no_machine_path_is_committed():
    "Neither sources nor outputs name a folder of the machine that they were written on"
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r'/(?:root|home/\w+|Users/\w+|work)/[\w.]')
    bad = [f for f in tracked if (ROOT/f).is_file() and pattern.search((ROOT/f).read_text(errors='ignore'))]
    assert not bad, bad
