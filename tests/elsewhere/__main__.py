"""Do pages hold on other machines? `make elsewhere PAGES="nbs/20_drop.ipynb ..."`

Machine k is this one with the arithmetic of `machine/another_machine.py`. Odd ones compute with one
thread, even ones with two, and the third without the processor's vector units.
"""
import os, platform, re, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from fastcore.script import call_parse
from .training import training_pages

ROOT = Path(__file__).resolve().parent.parent.parent
NBDEV_TEST = Path(sys.executable).with_name('nbdev-test')
COLOUR = re.compile(r'\x1b\[[\d;]*m')
PAGE_LINE = re.compile(r'File "<ipython-input[^\n]*\n')    # in a traceback, where library code has a file
ERROR = re.compile(r'^[\w.]+(?:Error|Exception|Exit|Interrupt|Warning)\b', re.M)

def threads(machine): return 2 - machine % 2

def environment(machine, since):
    "The variables that make a process another machine; None is this one"
    if machine is None: return {**os.environ, 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    here = str(Path(__file__).resolve().parent/'machine')
    paths = os.pathsep.join(filter(None, [here, os.environ.get('PYTHONPATH')]))
    found = {**os.environ, 'ELSEWHERE_MACHINE': str(machine), 'ELSEWHERE_SINCE': str(since),
             'PYTHONPATH': paths, 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): found[name] = str(threads(machine))
    if machine == 3: found['ATEN_CPU_CAPABILITY'] = 'default'
    return found

def complaint(stderr):
    "The page's line that failed and what it said, in one line"
    traceback = COLOUR.sub('', stderr).partition('nbdev Tests Failed')[0]
    *before, last = PAGE_LINE.split(traceback)
    line = last.strip().partition('\n')[0] + ' → ' if before else ''
    errors = list(ERROR.finditer(last))
    said = last[errors[-1].start():] if errors else last[-300:]
    return ' '.join((line + said).split())[:300]

def run(page, machine, since, limit):
    "What failed, or None if the page holds on this machine; and the seconds that it took"
    begin = time.monotonic()
    command = [NBDEV_TEST, page, '--n-workers', '0', '--cell-timeout', '0']
    process = subprocess.Popen(command, env=environment(machine, since), text=True, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try: stderr = process.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)    # with all that the page started
        process.communicate()
        stderr = f'TimeoutError: not done after {limit} seconds'
    failure = complaint(stderr) if process.returncode else None
    return failure, time.monotonic() - begin

def name(page):
    "As a reader of the repository would write it"
    return str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)

def run_all(pages, machines, limit):
    "{(page, machine): (failure or None, seconds)}, machine by machine, as many pages at once as cores allow"
    found, since = {}, time.time()
    for machine in machines:
        def one(page):
            failure, seconds = run(page, machine, since, limit)
            if failure: print(f'machine {machine}: {name(page)}: {failure}', flush=True)
            return failure, seconds
        with ThreadPoolExecutor(max(1, os.cpu_count() // threads(machine))) as pool:
            found |= {(page, machine): result for page, result in zip(pages, pool.map(one, pages))}
    return found

def table(pages, machines, found):
    "Markdown: a row for each page, a column for each machine"
    def cell(page, machine): return '**fails**' if found[page, machine][0] else 'holds'
    rows = [['page', *map(str, machines)], ['---']*(len(machines) + 1)]
    rows += [[name(page), *(cell(page, machine) for machine in machines)] for page in pages]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)

REPORT = """# Pages on simulated other machines

Written by `make elsewhere`, with torch {torch} and Python {python}: {hold} of {n} runs hold.
Each machine changes drawn and loaded weights by one part in a million, and what layers compute by the size of
its rounding (`tests/elsewhere/machine`). Odd ones compute with one thread, even ones with two, and the third
without the processor's vector units.

{table}
{failures}"""

def report(pages, machines, found):
    "The table, what its columns mean, and what failed"
    failures = [f'\n* {name(page)}, machine {machine}: `{failure}`\n'
                for (page, machine), (failure, _) in found.items() if failure]
    return REPORT.format(torch=version('torch').partition('+')[0], python=platform.python_version(),
                         hold=len(found) - len(failures), n=len(found), table=table(pages, machines, found),
                         failures=''.join(failures))

@call_parse(pos=['pages'])
def main(
    pages:str='', # Notebooks, separated by spaces; all of nbs/ if none
    machines:int=3, # How many machines
    training:bool=False, # Of these pages only those that assert outcomes of training
    table_file:str='', # Where to write the table
    limit:int=3600, # Seconds that a page may take
):
    "Run pages on simulated other machines; exit status 1 if one fails"
    chosen = [Path(p).resolve() for p in pages.split()] or sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
    missing = [str(p) for p in chosen if not p.is_file()]    # nbdev-test would say that all of nothing holds
    if missing: sys.exit(f'no such page: {missing}')
    if training: chosen = training_pages(chosen, sorted((ROOT/'prunelab').rglob('*.py')))
    numbers, begin = range(1, machines + 1), time.monotonic()
    found = run_all(chosen, numbers, limit)
    failed = sum(failure is not None for failure, _ in found.values())
    print(table(chosen, numbers, found))
    print(f'{len(found) - failed} of {len(found)} runs hold, in {time.monotonic() - begin:.0f} seconds')
    if table_file: Path(table_file).write_text(report(chosen, numbers, found))
    sys.exit(failed > 0)
