"Every page opens in Colab, and every tutorial ends with three exercises whose solutions run with the page; that they are right is asserted there."
import configparser, re
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ['01_first_prune', '02_stochastic_pruning', '03_drop_pruning', '04_extreme_value_pruning', '06_write_your_own', '07_your_own_learner']
OPTIONS = re.compile(r'#\| code-fold: true\n#\| code-summary: "Solution (\d+)"\n')

def test_the_tutorials_are_all_there():
    here = {p.stem for p in (ROOT/'nbs/tutorials').glob('[!.]*.ipynb')}
    assert here >= set(NAMES)
    assert here - set(NAMES) <= {'05_which_one', '08_many_gpus'}, 'a tutorial that these tests do not know: name it in NAMES'

@pytest.fixture(params=NAMES)
def cells(request): return nbformat.read(ROOT/'nbs/tutorials'/f'{request.param}.ipynb', as_version=4).cells

@pytest.mark.parametrize('path', sorted(p for p in (ROOT/'nbs').rglob('[!.]*.ipynb') if '.ipynb_checkpoints' not in p.parts), ids=lambda p: p.stem)
def test_opens_in_colab(path):
    "The first cell of any page is hidden, installs from where the code is, and is the same everywhere but where Optuna is needed"
    first, *others = nbformat.read(path, as_version=4).cells
    ini = configparser.ConfigParser(); ini.read(ROOT/'settings.ini')
    what = f"git+{ini['DEFAULT']['git_url']}"
    head = "#| hide\nimport sys\nif 'google.colab' in sys.modules:"
    if any(re.search(r'^(?:import|from) .*\boptuna\b', c.source, re.M) for c in others):      # a page that searches
        assert first.source == f"""{head}\n    get_ipython().system('pip install -q "prunelab[search] @ {what}"')"""
    else: assert first.source == f"{head} get_ipython().system('pip install -q {what}')"
    assert not first.outputs

def test_exercises_have_solutions(cells):
    "Three exercises in one cell near the end; below it nothing but their solutions, in order, each with an assertion"
    at = next(i for i, c in enumerate(cells) if c.cell_type == 'markdown' and re.search(r'^## Exercises$', c.source, re.M))
    exercises = re.findall(r'^(\d+)\. .{20,}', cells[at].source.split('## Exercises')[1], re.M)
    solutions = [OPTIONS.match(c.source) for c in cells[at + 1:]]
    assert exercises == ['1', '2', '3'] and all(solutions) and [m[1] for m in solutions] == exercises
    assert all(re.search(r'^ *(assert|test_|check\()', c.source, re.M) for c in cells[at + 1:])
    assert not any('code-fold' in c.source for c in cells[:at])
