"README.md and its figures from nbs/index.ipynb: `python docs/readme.py`; `--check` fails if they differ."
import re
import sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- written from nbs/index.ipynb by `make readme`: edit that notebook -->\n'
FIGURE = ('Three ideas side by side: noise in the weights, weights that leave and return, '
          'a probability learnt from the tail')

def without_directives(source):
    "A cell as a reader should see it"
    return '\n'.join(line for line in source.splitlines() if not line.startswith('#|'))

def index():
    "The front page without hidden cells, its links relative to the README"
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide\n')]
    nb.metadata['language_info'] = {'name': 'python'}
    for c in nb.cells:
        if '#| hide_input' in c.source: c.metadata['transient'] = {'remove_source': True}
        c.source = without_directives(c.source)
        if c.cell_type == 'markdown': c.source = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', c.source)
    return nb

def render() -> dict: # {path: bytes}
    "The files that the index makes"
    text, made = MarkdownExporter().from_notebook_node(index())
    files = {}
    for name, data in made['outputs'].items():
        text = text.replace(f'![svg]({name})', f'![{FIGURE}](docs/images/{name})')
        files[ROOT/'docs/images'/name] = data
    return {ROOT/'README.md': f'{NOTE}{text.strip()}\n'.encode(), **files}

def check(files):
    "Complain about files that differ from what they are made from"
    stale = [p.name for p, data in files.items() if not p.exists() or p.read_bytes() != data]
    if stale: sys.exit(f'{stale} differ from nbs/index.ipynb: run `make readme`')

def write(files):
    "Write them, and say which"
    for p, data in files.items():
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(data)
        print(p.relative_to(ROOT))

if __name__ == '__main__':
    if '--check' in sys.argv: check(render())
    else: write(render())
