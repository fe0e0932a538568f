"Three wings and a door: imports point downwards, nothing outside knows the lab, private names stay home."
import ast
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'prunelab'

# The one place that says what lies above what, lowest first. A module may import those before it, no others.
TOOLS = [
    'core', 'plotting', 'schedules', 'masks',
    'scores', 'gradient_scores', 'allocation', 'sampling',
    'processes', 'hold', 'evaluate', 'tails', 'report', 'checkpoint',
    'callbacks', 'resume']
METHODS = ['basin', 'landscape', 'probes', 'stochastic', 'drop', 'extreme', 'pareto']
DOOR = ['all']
LAB = [f'lab.{name}' for name in (
    'images', 'data', 'models', 'answers', 'training', 'experiment', 'compare', 'evidence', 'measures',
    'arms', 'stochastic', 'drop', 'extreme', 'head_to_head', 'engine', 'demo')]
ORDER = [*TOOLS, *METHODS, *DOOR, *LAB]

def module_name(path):
    "Such as 'lab.data'"
    return '.'.join(path.relative_to(LIB).with_suffix('').parts)

FILES = {module_name(p): p for p in sorted(LIB.rglob('*.py')) if not p.name.startswith('_')}

def absolute(node, module):
    "The package that `from … import` means, dots resolved"
    if not node.level: return node.module
    home = ['prunelab', *module.split('.')][:-node.level]
    return '.'.join([*home, *([node.module] if node.module else [])])

def imports(source, module, known):
    "(module of ours, name taken from it or None) for every import in `source`, wherever it stands"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found = [(a.name, None) for a in node.names]
        elif isinstance(node, ast.ImportFrom): found = [(absolute(node, module), a.name) for a in node.names]
        else: continue
        for package, name in found:
            whole = f'{package}.{name}'.removeprefix('prunelab.')       # from prunelab import masks
            part = package.removeprefix('prunelab.')
            if package.split('.')[0] != 'prunelab': continue
            if whole in known: yield whole, None
            elif part in known: yield part, name

def of(module):
    "What a module of ours imports from others of ours"
    return set(imports(FILES[module].read_text(), module, FILES))

def not_below(module, found, order):
    "Those of the imported modules that don't stand before `module`"
    return sorted({other for other, _ in found if order.index(other) >= order.index(module)})

def private(found):
    "Private names that come from another module"
    return sorted(f'{module}.{name}' for module, name in found if name and name.startswith('_'))

# What the pages export

def test_every_module_has_its_place():
    assert set(FILES) == set(ORDER), 'a new module needs a place in ORDER'

@pytest.mark.parametrize('module', FILES)
def test_imports_point_downwards(module):
    "And so there is no circle: where all arrows point down, none comes back"
    assert not not_below(module, of(module), ORDER)

@pytest.mark.parametrize('module', TOOLS)
def test_tools_know_no_method(module):
    assert {other for other, _ in of(module)} <= set(TOOLS)

@pytest.mark.parametrize('module', [*TOOLS, *METHODS, *DOOR])
def test_nothing_outside_knows_the_lab(module):
    assert not {other for other, _ in of(module)} & set(LAB)

def test_the_door_leads_to_tools_and_methods():
    behind = {other for other, _ in of('all')}
    assert set(METHODS) <= behind <= {*TOOLS, *METHODS}

@pytest.mark.parametrize('module', FILES)
def test_no_private_name_crosses(module):
    assert not private(of(module))

def attributes(source, module):
    "`other._name` for the modules that `source` imports whole"
    tree = ast.parse(source)
    whole = {a.asname or a.name.split('.')[-1] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
             for a in n.names if f'{absolute(n, module)}.{a.name}'.removeprefix('prunelab.') in FILES}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith('_'): continue
        if isinstance(node.value, ast.Name) and node.value.id in whole: yield f'{node.value.id}.{node.attr}'

@pytest.mark.parametrize('module', FILES)
def test_no_private_attribute_of_another_module_is_used(module):
    assert not list(attributes(FILES[module].read_text(), module))

# The test itself: each of these must be found

BROKEN = {
    'upwards': ('masks', 'from .callbacks import PruneCB'),
    'at the call': ('masks', 'def f():\n    from prunelab.drop import DropPruning'),
    'a method in a tool': ('report', 'import prunelab.stochastic'),
    'the lab from outside': ('callbacks', 'from prunelab.lab import data'),
    'the lab, by dots': ('pareto', 'from .lab.data import get_dls'),
    'upwards in the lab': ('lab.data', 'from .training import fit'),
    'from the lab to its door': ('lab.images', 'from . import engine')}

@pytest.mark.parametrize('case', BROKEN)
def test_an_arrow_that_points_up_is_found(case):
    module, source = BROKEN[case]
    assert not_below(module, set(imports(source, module, FILES)), ORDER)

DOWNWARDS = ['from ..core import seeded', 'from prunelab import core', 'import torch, fastai']

@pytest.mark.parametrize('source', DOWNWARDS)
def test_an_arrow_that_points_down_passes(source):
    assert not not_below('lab.data', set(imports(source, 'lab.data', FILES)), ORDER)

def test_a_private_name_is_found():
    assert private(set(imports('from .images import _pixels', 'lab.data', FILES))) == ['lab.images._pixels']
    assert list(attributes('from .lab import images\nimages._pixels(1)', 'core')) == ['images._pixels']
