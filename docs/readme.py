"README.md from nbs/index.ipynb, figures to docs/images: `python docs/readme.py`; with `--check`, fail if they differ."
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent

def render():
    "The files that the index makes: {path: bytes}"
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide\n')]
    nb.metadata['language_info'] = {'name': 'python'}
    for c in nb.cells:
        if '#| hide_input' in c.source: c.metadata['transient'] = {'remove_source': True}
        c.source = '\n'.join(line for line in c.source.splitlines() if not line.startswith('#|'))
        if c.cell_type == 'markdown': c.source = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', c.source)
    text, res = MarkdownExporter().from_notebook_node(nb)
    files = {}
    for name, data in res['outputs'].items():
        text = text.replace(f'![svg]({name})', f'![Three ideas side by side: noise in the weights, weights that leave and return, a probability learnt from the tail](docs/images/{name})')
        files[ROOT/'docs/images'/name] = data
    note = '<!-- written from nbs/index.ipynb by `make readme`: edit that notebook -->\n'
    return {ROOT/'README.md': (note + text.strip() + '\n').encode(), **files}

if __name__ == '__main__':
    files = render()
    if '--check' in sys.argv:
        stale = [p.name for p, data in files.items() if not p.exists() or p.read_bytes() != data]
        sys.exit(f'{stale} differ from nbs/index.ipynb: run `make readme`' if stale else 0)
    for p, data in files.items(): p.parent.mkdir(exist_ok=True); p.write_bytes(data)
    print(*(p.relative_to(ROOT) for p in files), sep='\n')
