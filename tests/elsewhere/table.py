"""The table of pages and machines: Markdown that is kept row by row.

A run replaces the rows of its pages and leaves the others, so each row says which torch it ran on.
"""
import os, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = re.compile(r'^\| (\S+\.ipynb) \| (\S+) \| (.*) \|$', re.M)
FAILURE = re.compile(r'^\* (\S+\.ipynb), machine (\d+): `(.*)`$', re.M)
WORDS = {True: '**fails**', False: 'holds', None: ''}    # None: the page didn't run on this machine

TEXT = """# Pages on simulated other machines

Found by `make elsewhere TABLE=…`: {hold} of {n} runs hold. A run replaces the rows
of its pages, so a row is about the page as it was then, with the torch named beside it. Each machine changes
drawn and loaded weights by one part in a million, and what layers compute by the size of its rounding
(`tests/elsewhere/machine`). Odd ones compute with one thread, even ones with two, and the third without the
processor's vector units.

{table}
{failures}"""

def line(cells): return f'| {" | ".join(cells)} |'

def markdown(rows):
    "A line for each page, a column for each machine; `rows` is {page: (torch, {machine: failure or None})}"
    machines = sorted({m for _, found in rows.values() for m in found})
    def cell(found, m): return WORDS[found[m] is not None if m in found else None]
    lines = [['page', 'torch', *map(str, machines)], ['---']*(len(machines) + 2)]
    for page, (torch, found) in sorted(rows.items()):
        lines.append([page, torch, *(cell(found, m) for m in machines)])
    return '\n'.join(map(line, lines))

def text(rows):
    "The whole file: what its columns mean, the table, and what failed"
    runs = [(page, m, failure) for page, (_, found) in sorted(rows.items()) for m, failure in found.items()]
    failed = ['* {}, machine {}: `{}`\n'.format(page, m, failure.replace('`', ''))
              for page, m, failure in runs if failure]
    failures = '\n' + '\n'.join(failed) if failed else ''
    return TEXT.format(hold=len(runs) - len(failed), n=len(runs), table=markdown(rows), failures=failures)

def parse(text):
    "The rows that `text` made this text of"
    numbers = [int(m) for m in re.search(r'^\| page \| torch \|(.*)\|$', text, re.M)[1].split('|')]
    failures = {(page, int(m)): failure for page, m, failure in FAILURE.findall(text)}
    rows = {}
    for page, torch, cells in ROW.findall(text):
        ran = [m for m, cell in zip(numbers, cells.split(' | ')) if cell.strip()]
        rows[page] = torch, {m: failures.get((page, m)) for m in ran}
    return rows

def read(path):
    "The rows of a file, without those of pages that are gone; none if there is no file"
    path = Path(path)
    rows = parse(path.read_text()) if path.exists() else {}
    return {page: row for page, row in rows.items() if (ROOT/page).is_file()}

def write(path, rows):
    "In one step, so that who is killed leaves a whole file"
    part = Path(f'{path}.part')
    part.write_text(text(rows))
    os.replace(part, path)
