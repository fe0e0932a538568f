"""Which pages assert outcomes of training? Computed from their code, so that no list can rot.

A page is one of them when it asserts something and mentions a training: a call of a method that fits or
takes an optimizer's step, or a function, of the library or of the page, that mentions one in turn. A
mention is enough, because functions are also handed on (`map(train_once, seeds)`), so there is rather a
page too many than too few.
"""
import ast
import nbformat
from IPython.core.inputtransformer2 import TransformerManager

TRAINING = {'fit', 'fit_one_cycle', 'fit_flat_cos', 'fit_sgdr', 'fine_tune', 'step'}

def parsed(path):
    "The code of a notebook or of a module"
    if path.suffix == '.py': return ast.parse(path.read_text())
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
    python = [TransformerManager().transform_cell(source) for source in cells]    # magics as Python
    return ast.parse('\n'.join(python))

def called(tree):
    "What stands before the parentheses of each call"
    return [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]

def own_names(tree):
    "What is assigned or handed in here, so that it means nothing else"
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}

def mentions(tree):
    "Names that come from outside, and `.fit` for any method that trains"
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - own_names(tree)
    fits = any(isinstance(f, ast.Attribute) and f.attr in TRAINING for f in called(tree))
    return names | {'.fit'} if fits else names

def is_method(f): return 'self' in (a.arg for a in f.args.args)

def functions(tree):
    "{name: what it mentions} of the functions that are neither methods nor inside another one"
    return {f.name: mentions(f) for f in tree.body if isinstance(f, ast.FunctionDef) and not is_method(f)}

def trainers(known):
    "Names among `known` functions that lead to a training"
    found = {'.fit'}
    while new := {name for name, others in known.items() if others & found} - found: found |= new
    return found

def asserts(tree):
    "Is there an assertion, or a call of fastcore's `test_...`?"
    if any(isinstance(n, ast.Assert) for n in ast.walk(tree)): return True
    return any(isinstance(f, ast.Name) and f.id.startswith('test_') for f in called(tree))

def training_pages(pages, modules):
    "Those of `pages` that train, by themselves or through `modules`, and assert"
    library, chosen = {}, []
    for m in modules: library |= functions(parsed(m))
    for page in pages:
        tree = parsed(page)
        own = own_names(tree)
        known = {name: others for name, others in library.items() if name not in own} | functions(tree)
        if mentions(tree) & trainers(known) and asserts(tree): chosen.append(page)
    return chosen
