"Every page opens in Colab; every tutorial ends with three exercises, and their solutions run with the page."
import configparser
import re
from pathlib import Path
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in (ROOT/'nbs').rglob('[!.]*.ipynb') if '.ipynb_checkpoints' not in p.parts)
NAMES = [
    '01_first_prune', '02_stochastic_pruning', '03_drop_pruning', '04_extreme_value_pruning',
    '06_write_your_own', '07_your_own_learner', '08_many_gpus']
PLANNED = {'05_which_one'}
HEAD = "#| hide\nimport sys\nif 'google.colab' in sys.modules:"
# What a page does that needs an extra of settings.ini
NEEDS = {
    'search': re.compile(r'^(?:import|from) .*\boptuna\b', re.M),
    'parallel': re.compile(r'^from prunelab\.processes import .*\btogether\b', re.M),
    'cluster': re.compile(r'\bconnected\(workers=')}
HAS_ASSERTION = re.compile(r'^ *(assert|test_|check\()', re.M)
OPTIONS = re.compile(r'#\| code-fold: true\n#\| code-summary: "Solution (\d+)"\n')

def cells_of(path): return nbformat.read(path, as_version=4).cells

@pytest.fixture(scope='module')
def source():
    "What pip installs the package from"
    ini = configparser.ConfigParser()
    ini.read(ROOT/'settings.ini')
    return f"git+{ini['DEFAULT']['git_url']}"

def test_the_tutorials_are_all_there():
    here = {p.stem for p in (ROOT/'nbs/tutorials').glob('[!.]*.ipynb')}
    assert here >= set(NAMES)
    assert here - set(NAMES) <= PLANNED, 'a tutorial that these tests do not know: name it in NAMES'

def install_cell(source, extras):
    "How a page that is opened in Colab installs the package, with the extras that it needs"
    if not extras: return f"{HEAD} get_ipython().system('pip install -q {source}')"
    return f"""{HEAD}
    get_ipython().system('pip install -q "prunelab[{','.join(extras)}] @ {source}"')"""

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_opens_in_colab(path, source):
    "The first cell is hidden, and the same everywhere but where an extra is needed"
    first, *others = cells_of(path)
    extras = [name for name, does in NEEDS.items() if any(does.search(c.source) for c in others)]
    assert first.source == install_cell(source, extras) and not first.outputs

# Exercises

@pytest.fixture(params=NAMES)
def cells(request): return cells_of(ROOT/'nbs/tutorials'/f'{request.param}.ipynb')

@pytest.fixture
def exercises(cells):
    "Where the cell with the exercises is"
    return next(i for i, c in enumerate(cells)
                if c.cell_type == 'markdown' and re.search(r'^## Exercises$', c.source, re.M))

def test_there_are_three_exercises_and_their_solutions_in_order(cells, exercises):
    "Near the end, and below them nothing but the solutions"
    asked = re.findall(r'^(\d+)\. .{20,}', cells[exercises].source.split('## Exercises')[1], re.M)
    solutions = [OPTIONS.match(c.source) for c in cells[exercises + 1:]]
    assert asked == ['1', '2', '3'] and all(solutions) and [m[1] for m in solutions] == asked

def test_solutions_assert_something(cells, exercises):
    assert all(HAS_ASSERTION.search(c.source) for c in cells[exercises + 1:])

def test_nothing_above_the_exercises_is_a_solution(cells, exercises):
    "Folded are, besides, assertions and drawings; what is called a solution stands below its question"
    assert not any('code-summary: "Solution' in c.source for c in cells[:exercises])
