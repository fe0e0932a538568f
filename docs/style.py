"""How the code and the prose read, in numbers: `python docs/style.py` (`make style`).

A report and no gate: a number that must be met is soon met by squeezing. In fastai, jaxpruner,
claudette and the fast.ai course nine of ten statements have at most 17 to 27 nodes, half of the exported
cells at most 290 to 380 characters, and `we` and `you` stand about 30 times in 1,000 words (20 to 49,
by page)."""
import ast
import io
import re
import tokenize
from pathlib import Path
from statistics import median
import nbformat
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = {'body', 'orelse', 'finalbody', 'handlers', 'cases'}
HEADERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
CODE, MATH, TABLE = r'```.*?```|`[^`]*`', r'\$\$.*?\$\$|\$[^$]*\$', r'^\|[^\n]*\|$|^:::[^\n]*$'
NOT_PROSE = re.compile(rf'{CODE}|{MATH}|{TABLE}|(?<=\])\([^)]*\)', re.S | re.M)
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# others are tools, or the lab's
METHODS = {'basin', 'landscape', 'probes', 'stochastic', 'drop', 'extreme', 'pareto'}

def statement_size(
    node, # A statement
) -> int:
    "Nodes of the syntax tree, without the statements inside"
    n, todo = 0, [node]
    while todo:
        now = todo.pop()
        n += 1
        for field, value in ast.iter_fields(now):
            if field in BLOCKS and isinstance(value, list): continue
            todo += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]
    return n

def statement_sizes(src):
    "Sizes of all statements of `src` but imports and the headers of functions and classes"
    nodes = ast.walk(ast.parse(src))
    return [statement_size(n) for n in nodes if isinstance(n, ast.stmt) and not isinstance(n, HEADERS)]

def signature_lines(src):
    "Numbers of the lines before a function's first statement: comments beside code are documentation there"
    defs = [n for n in ast.walk(ast.parse(src)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {i for n in defs for i in range(n.lineno, n.body[0].lineno)}

def comments(
    src, # A cell
) -> tuple: # (comments, lines that are not blank)
    "Comments that explain code: neither directives nor documentation of parameters"
    signature = signature_lines(src)
    tokens = tokenize.generate_tokens(io.StringIO(src).readline)
    found = [t for t in tokens if t.type == tokenize.COMMENT and not t.string.startswith('#|')]
    beside = [t for t in found if t.start[0] in signature and t.line[:t.start[1]].strip()]
    return len(found) - len(beside), sum(bool(line.strip()) for line in src.splitlines())

def percentile_90(sizes):
    "The smallest size that at least nine of ten do not exceed"
    return sorted(sizes)[-(-9*len(sizes)//10) - 1]

def prose(cells):
    "(we and you, words) of the text of a page"
    text = NOT_PROSE.sub(' ', '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown'))
    return len(re.findall(r'\b(?:we|you)\b', text, re.I)), len(WORD.findall(text))

def exported(cells):
    "Sources of the cells that a page exports"
    code = (c.source for c in cells if c.cell_type == 'code')
    return [src for src in code if re.search(r'^#\| *export[si]?\b', src, re.M)]

def code_only(
    src, # A cell
) -> str:
    "The cell without docstrings, comments and documentation of parameters, in a uniform layout"
    tree = ast.parse(src)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(node) is not None: node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)

def row(
    sources, # Exported cells
) -> dict:
    "The numbers of a module, or of several together"
    sizes = [n for src in sources for n in statement_sizes(src)]
    counted = [comments(src) for src in sources]
    cells = [src for src in sources if re.search(r'^(?:@|def |class )', src, re.M)] or ['']
    return {'statement, nodes': percentile_90(sizes), 'cell, characters': median(map(len, cells)),
            'of these code': median(len(code_only(src)) for src in cells),
            'comments in 100 lines': 100*sum(n for n, _ in counted)/sum(lines for _, lines in counted)}

def wing(module):
    "Tools, methods or lab"
    return 'lab' if module.startswith('lab.') else 'methods' if module in METHODS else 'tools'

def code_table(pages):
    "One row per module and one per wing"
    modules = {}
    for cells in pages.values():
        name = next((m[1] for c in cells if (m := re.match(r'#\| *default_exp +(\S+)', c.source))), None)
        if name: modules[name] = exported(cells)
    wings = {}
    for name, sources in modules.items(): wings.setdefault(f'all {wing(name)}', []).extend(sources)
    return pd.DataFrame({name: row(sources) for name, sources in {**modules, **wings}.items()}).T

def prose_table(pages):
    "One row per page"
    rows = {}
    for name, cells in pages.items():
        spoken, words = prose(cells)
        voice = 1000*spoken/max(words, 1)
        rows[name] = {'cells': len(cells), 'words': words, 'we and you in 1,000 words': voice}
    return pd.DataFrame(rows).T

if __name__ == '__main__':
    files = sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
    pages = {p.relative_to(ROOT/'nbs').as_posix(): nbformat.read(p, as_version=4).cells for p in files}
    for title, table in (('nine of ten statements, half of the cells', code_table), ('prose', prose_table)):
        print(f'{title}:\n{table(pages).round(1).to_string(float_format="{:g}".format)}\n')
