"""The whole product of the promise: `python -m tests.soak.promise [--pairs 1] [--table FILE]`.

Every method with every optimizer and every single thing that people switch on; then any two such things, of
which a share can be taken; then trainings that are killed, and PyTorch's own compiler. Exit status 1 if a
guarantee fails."""
import argparse
import itertools
import json
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
import fastai
import torch
from .. import promise
from ..promise import FACTORS, METHODS, OPTIMIZERS, PLAIN, keeps, possible
from .kills import METHODS as KILLED_METHODS, TRAININGS, Runs, differing

KILL, AS_IF = 'killed and resumed', 'ends as if nothing had happened'

def switches():
    "[{factor: value}] of all single things that can be switched on"
    others = {k: v for k, v in FACTORS.items() if k not in ('method', 'optimizer')}
    return [{k: x} for k, values in others.items() for x in values[1:]]

def everyone(cases):
    "Each case with all methods and optimizers; a quarter of the way through each method has met each case"
    optimizers = [*OPTIMIZERS]
    turns = range(len(optimizers))
    for turn, (i, on), (j, m) in itertools.product(turns, enumerate(cases), enumerate(METHODS)):
        yield {'method': m, 'optimizer': optimizers[(turn + i + j) % len(optimizers)], **on}

def product(share):
    "Choices: nothing and each switch, and then a share of all pairs of switches"
    yield from everyone([{}, *switches()])
    pairs = [{**a, **b} for a, b in itertools.combinations(switches(), 2) if a.keys() != b.keys()]
    pairs = [*filter(possible, pairs)]
    yield from itertools.islice(everyone(pairs), round(share*len(pairs)*len(METHODS)*len(OPTIMIZERS)))

def in_words(choice):
    "What is switched on"
    on = [v for k, v in choice.items() if k not in ('method', 'optimizer') and v != PLAIN[k]]
    return ' and '.join(on) or 'nothing else'

def guarded(choice):
    "What `keeps` says; an exception counts as a guarantee that isn't kept"
    try: return keeps(choice)
    except Exception as e: return {f'{type(e).__name__}: {e}': False}

class Table:
    "Counts of runs and of kept guarantees"
    def __init__(self): self.counts, self.broken = defaultdict(lambda: [0, 0]), []
    def add(self, switch, choice, found):
        for guarantee, kept in found.items():
            count = self.counts[switch, guarantee]
            count[0] += 1
            count[1] += kept
            if not kept: self.broken.append({'choice': choice, 'guarantee': guarantee})
    def rows(self):
        return [{'switch': s, 'guarantee': g, 'runs': n, 'kept': k} for (s, g), (n, k) in self.counts.items()]

def whole(table, share, written):
    "The product; pairs of switches count in one row. `written` is called now and then"
    for i, choice in enumerate(product(share)):
        on = len(choice) - 2
        found = guarded(choice)
        table.add(in_words(choice) if on < 2 else 'any two of these', choice, found)
        bad = [g for g, kept in found.items() if not kept]
        if bad or i % 20 == 0:
            print(f'{i:5} {choice}: {bad or "kept"}', flush=True)
            written()

def kills(table, seed=1):
    "Every training of `kills` with every method, killed up to three times"
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(f'{folder}/runs', seed)
        for training, method in itertools.product(TRAININGS, KILLED_METHODS):
            ending = runs.whole(training, method)
            found = differing(ending, runs.killed(training, method, 0, 3))
            table.add(KILL, {'training': training, 'method': method}, {AS_IF: not found})
    print(f'{runs.kills} kills', flush=True)

def compiled(table):
    "Every method with code that PyTorch's own compiler has made; it needs a C++ compiler"
    if not any(map(shutil.which, ('c++', 'g++', 'clang++'))): return print('no C++ compiler: not compiled')
    promise.BACKEND = 'inductor'
    for method in METHODS:
        choice = {'method': method, 'network': 'compiled'}
        table.add('compiled to machine code', choice, guarded(choice))
        print(f'compiled: {method}', flush=True)

def about():
    "On what it was run"
    n = len(list(everyone([{}, *switches()])))
    return {'trainings in the product': n, 'torch': torch.__version__, 'fastai': fastai.__version__,
            'python': platform.python_version(), 'processor': platform.machine()}

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pairs', type=float, default=1., help='share of the pairs of switches, from 0 to 1')
    parser.add_argument('--table', type=Path, help='write what was found to this file')
    args = parser.parse_args()
    table = Table()
    def written():
        found = {'about': about(), 'rows': table.rows(), 'broken': table.broken}
        if args.table: args.table.write_text(json.dumps(found, indent=1) + '\n', encoding='utf8')
        return found['rows']
    whole(table, args.pairs, written)
    for more in (compiled, kills):
        written()
        more(table)
    runs, kept = (sum(r[k] for r in written()) for k in ('runs', 'kept'))
    print(f'{kept:,} of {runs:,} guarantees kept')
    sys.exit(kept < runs)

if __name__ == '__main__': main()
