"""Do pages hold on other machines? `make elsewhere PAGES="nbs/20_drop.ipynb ..."`

Machine k is this one with the arithmetic of `machine/another_machine.py`. Odd ones compute with one
thread, even ones with two, and the third without the processor's vector units.
"""
import json, os, re, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from fastcore.script import call_parse
from . import table
from .training import training_pages

ROOT = Path(__file__).resolve().parent.parent.parent
COLOUR = re.compile(r'\x1b\[[\d;]*m')
PAGE_LINE = re.compile(r'File "<ipython-input[^\n]*\n')    # in a traceback, where library code has a file
COMMON = ['fastai.vision.all', 'matplotlib.pyplot', 'pandas', 'sklearn.datasets']    # what pages import
ERROR = re.compile(r'^[\w.]+(?:Error|Exception|Exit|Interrupt|Warning)\b', re.M)

def threads(machine): return 1 if machine is None else 2 - machine % 2

def cores():
    "How many this process may use: a container or taskset may allow fewer than there are"
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()

def environment(machine, since):
    "The variables that make a process another machine; None is this one"
    if machine is None: return {**os.environ, 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    here = str(Path(__file__).resolve().parent/'machine')
    paths = os.pathsep.join(filter(None, [here, os.environ.get('PYTHONPATH')]))
    found = {**os.environ, 'ELSEWHERE_MACHINE': str(machine), 'ELSEWHERE_SINCE': str(since),
             'PYTHONPATH': paths, 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): found[name] = str(threads(machine))
    found['OMP_WAIT_POLICY'] = 'passive'    # as many pages run at once as there are cores, two threads or one
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

class Server:
    "Runs pages on one machine, one at a time: see `server`"
    def __init__(self, machine, since, limit, imports=()):
        command = [sys.executable, '-m', 'tests.elsewhere.server', str(limit), *imports]
        self.machine, self.limit = machine, limit
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment(machine, since), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, page):
        "What failed, or None if the page holds; and the seconds that it took"
        begin = time.monotonic()
        print(page, file=self.process.stdin, flush=True)
        status, stderr = json.loads(self.process.stdout.readline())
        if status is None: stderr = f'TimeoutError: not done after {self.limit} seconds'
        return complaint(stderr) if status != 0 else None, time.monotonic() - begin

    def close(self): self.process.communicate()

def name(page):
    "As a reader of the repository would write it"
    return str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)

def every(pages, machines):
    "{machine: pages}, all pages on each"
    return {machine: pages for machine in range(1, machines + 1)}

def once(pages, machines, training):
    """{machine: pages}, each page on one: those of `training` on another one in turn, the others on this one

    The others are short, and come last: while the last long page runs they keep the other cores busy."""
    plan = {machine: training[machine - 1::machines] for machine in range(1, machines + 1)}
    return {**plan, None: [p for p in pages if p not in training]}

def results(plan, limit):
    """(page, machine, failure or None, seconds) of each run when it ends

    As many pages at once as this process may use cores, machine by machine."""
    since, servers = time.time(), {}    # one server for each thread
    n = sum(map(len, plan.values()))
    imports = COMMON if n > 5*len(plan) else ()    # with few pages a server would wait for them in vain

    def run(page, machine):
        thread = threading.get_ident()
        if thread not in servers or servers[thread].machine != machine:
            if thread in servers: servers.pop(thread).close()
            servers[thread] = Server(machine, since, limit, imports)
        return servers[thread].run(page)

    try:
        with ThreadPoolExecutor(cores()) as pool:
            runs = {pool.submit(run, page, machine): (page, machine)
                    for machine, pages in plan.items() for page in pages}
            for ended in as_completed(runs): yield *runs[ended], *ended.result()
    finally:
        for server in servers.values(): server.close()

def run_all(plan, limit, keep):
    """{page's name: (torch, {machine: failure or None})}

    Says each result when it's there, and then hands all of them so far to `keep`."""
    torch, found = version('torch').partition('+')[0], {}
    for page, machine, failure, seconds in results(plan, limit):
        found.setdefault(name(page), (torch, {}))[1][machine] = failure
        where = 'this machine' if machine is None else f'machine {machine}'
        print(f'{where}: {name(page)}: {failure or "holds"} ({seconds:.0f} s)', flush=True)
        keep(found)
    return found

@call_parse(pos=['pages'])
def main(
    pages:str='', # Notebooks, separated by spaces; all of nbs/ if none
    machines:int=3, # How many machines
    training:bool=False, # Of these pages only those that assert outcomes of training
    each_once:bool=False, # Each page once: on another machine if it asserts how training ends, else on this
    table_file:str='', # Table to keep: rows of these pages are replaced, others stay
    limit:int=3600, # Seconds that a page may take
):
    "Run pages on simulated other machines; exit status 1 if one fails"
    chosen = [Path(p).resolve() for p in pages.split()] or sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
    if each_once and table_file: sys.exit('a table has all machines of a page: leave out --each-once')
    missing = [str(p) for p in chosen if not p.is_file()]    # nbdev-test would say that all of nothing holds
    if missing: sys.exit(f'no such page: {missing}')
    trains = training_pages(chosen, sorted((ROOT/'prunelab').rglob('*.py'))) if training or each_once else []
    plan = once(chosen, machines, trains) if each_once else every(trains if training else chosen, machines)
    before, begin = table.read(table_file) if table_file else {}, time.monotonic()
    def keep(found):
        if table_file: table.write(table_file, {**before, **found})
    found = run_all(plan, limit, keep)
    failures = [failure for _, row in found.values() for failure in row.values()]
    failed = sum(failure is not None for failure in failures)
    if not each_once: print(table.markdown(found))
    print(f'{len(failures) - failed} of {len(failures)} runs hold, in {time.monotonic() - begin:.0f} seconds')
    sys.exit(failed > 0)
