"Run notebooks top to bottom in a real kernel and store clean outputs: `python docs/execute.py [NOTEBOOK ...]` (default: all)."
import os, re, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = re.compile(r'<progress|fastprogress|\.progress', re.I)   # fastai's bars: empty shells once training is over
LIMIT = 300_000                                                     # bytes of output a notebook may carry, explorables apart

def is_explorable(o):
    "A figure with a slider: `prunelab.plotting.explorable` limits its size itself"
    return '<figure class="explorable"' in o.get('data', {}).get('text/html', '')

def weight(page):
    "Bytes of output that count against the limit"
    return sum(len(str([o for o in c.outputs if not is_explorable(o)])) for c in page.cells if c.cell_type == 'code')

def clean_output(o):
    "The output without progress bars and carriage returns; None if nothing is left"
    if o.output_type == 'stream':
        o.text = re.sub(r'[^\n]*\r(?!\n)', '', o.text)
        return o if o.text.strip() else None
    if o.output_type in ('display_data', 'execute_result'):
        html = o.data.get('text/html', '')
        if PROGRESS.search(html) or ('text/html' in o.data and not html.strip()):
            table = re.search(r'<table.*</table>', html, re.S)
            if not table: return None
            o.data['text/html'] = table[0]
        if 'image/svg+xml' in o.data or 'image/png' in o.data: o.data.pop('text/plain', None)
    return o

def joined(outputs):
    "Consecutive pieces of one stream as one"
    res = []
    for o in outputs:
        if res and o.output_type == res[-1].output_type == 'stream' and o.name == res[-1].name: res[-1].text += o.text
        else: res.append(o)
    return res

def execute(path):
    "Run one notebook; its file changes only if every cell ran"
    start, nb = time.time(), nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [o for o in map(clean_output, joined(c.outputs)) if o is not None]
    clean_nb(nb)
    size = weight(nb)
    if size > LIMIT: raise ValueError(f'{path.name}: {size} bytes of output, at most {LIMIT} are allowed: use SVG for few marks, PNG for many')
    tmp = path.with_suffix('.tmp')
    nbformat.write(nb, tmp)
    os.replace(tmp, path)
    return f'{path.relative_to(ROOT)}: {time.time()-start:.0f} s, {size/1000:.0f} kB of output'

if __name__ == '__main__':
    os.environ.update(SOURCE_DATE_EPOCH='0', PYTHONHASHSEED='0',   # the same figure is the same file
                      IN_TEST='1',                                 # the last cell exports nothing: the page beside it imports
                      PYTHONWARNINGS='ignore::FutureWarning,ignore::DeprecationWarning,ignore::ResourceWarning')
    for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
    paths = [Path(p).resolve() for p in sys.argv[1:]] or sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    with ThreadPoolExecutor(2) as ex:
        jobs = {p: ex.submit(execute, p) for p in paths}
    failed = [p for p, j in jobs.items() if j.exception()]
    for p, j in jobs.items(): print(f'{p.name}: {j.exception()}' if j.exception() else j.result())
    sys.exit(f'{len(failed)} failed: {[p.name for p in failed]}' if failed else 0)
