"README.md and docs/images from nbs/index.ipynb: `python docs/readme.py`; `--check` fails if they differ."
import re
import sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
ALT = re.compile(r'^#\| *fig-alt: *"(.*)"$', re.M)

def prepared(nb):
    "The notebook without hidden cells and directives, and the alt texts of its figures in order"
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide\n')]
    nb.metadata['language_info'] = {'name': 'python'}
    alts = []
    for c in nb.cells:
        alts += ALT.findall(c.source)
        if '#| hide_input' in c.source: c.metadata['transient'] = {'remove_source': True}
        c.source = '\n'.join(line for line in c.source.splitlines() if not line.startswith('#|'))
        if c.cell_type == 'markdown': c.source = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', c.source)
        for o in c.get('outputs', ()):
            text = o.get('data', {}).get('text/markdown')
            if text: o.data['text/markdown'] = re.sub(r'\]\(([\w/]+\.ipynb)', r'](nbs/\1', text)
    return nb, alts

def render():
    "The files that the index makes: {path: bytes}"
    nb, alts = prepared(nbformat.read(ROOT/'nbs/index.ipynb', as_version=4))
    text, res = MarkdownExporter().from_notebook_node(nb)
    files = {}
    for (name, data), alt in zip(res['outputs'].items(), alts, strict=True):
        text = text.replace(f'![svg]({name})', f'![{alt}](docs/images/{name})')
        files[ROOT/'docs/images'/name] = data
    note = '<!-- written from nbs/index.ipynb by `make readme`: edit that notebook -->\n'
    return {ROOT/'README.md': (note + text.strip() + '\n').encode(), **files}

if __name__ == '__main__':
    files = render()
    if '--check' in sys.argv:
        stale = [p.name for p, data in files.items() if not p.exists() or p.read_bytes() != data]
        sys.exit(f'{stale} differ from nbs/index.ipynb: run `make readme`' if stale else 0)
    for p, data in files.items():
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(data)
    print(*(p.relative_to(ROOT) for p in files), sep='\n')
