"""Run notebooks in a real kernel and store clean outputs: `python docs/execute.py [NOTEBOOK ...]`.

Without a name, all of them. Progress bars go; a notebook whose cells did not all run stays as it was."""
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb

ROOT = Path(__file__).resolve().parent.parent
# fastai's bars are empty shells once training is over
PROGRESS = re.compile(r'<progress|fastprogress|\.progress', re.I)
# A warning begins with a file: the folders before its package are those of this machine
WARNING = r'(?=:\d+: \w*Warning: )'
FOLDERS = re.compile(
    rf'^.*[\\/](?:(?:site|dist)-packages[\\/]|python3\.\d+[\\/]|(?=prunelab[\\/]))(?=\S+\.py{WARNING})', re.M)
CELL = re.compile(rf'^.*[\\/]ipykernel_\d+[\\/]\d+\.py{WARNING}', re.M)
LIMIT = 300_000       # bytes of output a notebook may carry, explorables apart
ENVIRONMENT = {
    'SOURCE_DATE_EPOCH': '0', 'PYTHONHASHSEED': '0',    # the same figure is the same file
    'IN_TEST': '1',       # the last cell exports nothing: the page beside it imports
    'PYTHONWARNINGS': 'ignore::FutureWarning,ignore::DeprecationWarning,ignore::ResourceWarning'}

def without_folders(text):
    "Warnings that name a file from its package on"
    return CELL.sub('this cell', FOLDERS.sub('', text))

def clean_stream(o):
    "Text without folders, and without what a carriage return has overwritten; None if nothing is left"
    o.text = without_folders(re.sub(r'[^\n]*\r(?!\n)', '', o.text))
    return o if o.text.strip() else None

def clean_display(o):
    "A table without the bar above it; None if there was only a bar"
    html = o.data.get('text/html', '')
    if PROGRESS.search(html) or ('text/html' in o.data and not html.strip()):
        table = re.search(r'<table.*</table>', html, re.S)
        if not table: return None
        o.data['text/html'] = table[0]
    if 'image/svg+xml' in o.data or 'image/png' in o.data: o.data.pop('text/plain', None)
    return o

def clean_output(o):
    "An output without progress bars and carriage returns; None if nothing is left"
    if o.output_type == 'stream': return clean_stream(o)
    if o.output_type in ('display_data', 'execute_result'): return clean_display(o)
    return o

def is_explorable(o):
    "A figure with a slider: `prunelab.plotting.explorable` limits its size itself"
    return '<figure class="explorable"' in o.get('data', {}).get('text/html', '')

def weight(page):
    "Bytes of output that count against the limit"
    outputs = [o for c in page.cells if c.cell_type == 'code' for o in c.outputs]
    return len(str([o for o in outputs if not is_explorable(o)]))

def joined(outputs):
    "Consecutive pieces of one stream as one"
    res = []
    for o in outputs:
        last = res[-1] if res else None
        if last and o.output_type == last.output_type == 'stream' and o.name == last.name: last.text += o.text
        else: res.append(o)
    return res

def execute(path):
    "Run one notebook; its file changes only if every cell ran"
    start, nb = time.time(), nbformat.read(path, as_version=4)
    where = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=where).execute()
    for c in nb.cells:
        if c.cell_type != 'code': continue
        c.outputs = [o for o in map(clean_output, joined(c.outputs)) if o is not None]
    clean_nb(nb)
    size = weight(nb)
    if size > LIMIT:
        raise ValueError(f'{path.name}: {size} bytes of output, at most {LIMIT} are allowed: '
                         'use SVG for few marks, PNG for many')
    tmp = path.with_suffix('.tmp')
    nbformat.write(nb, tmp)
    os.replace(tmp, path)
    return f'{path.relative_to(ROOT)}: {time.time()-start:.0f} s, {size/1000:.0f} kB of output'

def main(
    names, # Notebooks; all if there are none
) -> str: # What failed, '' if nothing did
    "Run notebooks, two at a time"
    everything = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    paths = [Path(name).resolve() for name in names] or everything
    with ThreadPoolExecutor(2) as pool: jobs = {p: pool.submit(execute, p) for p in paths}
    failed = [p.name for p, job in jobs.items() if job.exception()]
    for p, job in jobs.items(): print(f'{p.name}: {job.exception()}' if job.exception() else job.result())
    return f'{len(failed)} failed: {failed}' if failed else ''

if __name__ == '__main__':
    os.environ.update(ENVIRONMENT)
    for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(k, '1')
    sys.exit(main(sys.argv[1:]) or 0)
