"What the benchmarks share: timing in turns, and rows"
import json
import sys
import time
import torch

RATIOS = {'peer/ours': lambda ours, peer: peer/ours, 'ours/peer': lambda ours, peer: ours/peer,
          'ours - peer': lambda ours, peer: ours - peer}

def seconds_of(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def in_turns(rounds=5, **contestants):
    "Seconds of each contestant in each of `rounds`, taken in turn after one that only warms up"
    times = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, f in contestants.items(): times[name].append(seconds_of(f))
    return {name: t[1:] for name, t in times.items()}

def rounds_of(x): return [float(v) for v in (x if isinstance(x, (list, tuple)) else [x])]

def row(
    name:str, # Short and unique in its benchmark: pages look for it
    what:str, # In words
    ours, # A number, or one for each round
    peer, # The same
    of:str='ours/peer', # What the ratio is: 'ours/peer', 'peer/ours', or 'ours - peer'
    unit:str='s', # Of both; where it ends with '/s', more is better
    target=None, # In words or as a number; only printed
) -> dict: # As a line of the file of rows, but for the machine
    """The fastest round of both; the ratio of these two; the lowest and highest ratio of a round

    Where one side was measured once, the spread over rounds is the other side's."""
    ours, peer = rounds_of(ours), rounds_of(peer)
    if len(ours) != len(peer) and 1 not in (len(ours), len(peer)):
        raise ValueError(f'{name}: {len(ours)} rounds of ours and {len(peer)} of the other')
    n, best, ratio = max(len(ours), len(peer)), max if unit.endswith('/s') else min, RATIOS[of]
    each = [ratio(a, b) for a, b in zip(ours*(n//len(ours)), peer*(n//len(peer)))]
    a, b = best(ours), best(peer)
    return {'name': name, 'what': what, 'unit': unit, 'ours': a, 'peer': b, 'of': of, 'ratio': ratio(a, b),
            'low': min(each), 'high': max(each), 'n': len(ours), 'n peer': len(peer), 'target': target}

def line(r):
    "A row for people"
    target = '' if r['target'] is None else f"target {r['target']}"
    spread = '' if r['low'] == r['high'] else f"[{r['low']:.2f}, {r['high']:.2f}]"
    numbers = f"ours {r['ours']:>11,.4g}  other {r['peer']:>11,.4g}  ratio {r['ratio']:>7.2f} {spread:<16}"
    return f"{r['what']:<88} {numbers} n {r['n']:>2}  {target}".rstrip()

def main(
    run, # Makes rows
    threads:int=None, # Of torch; as torch finds the machine if None
):
    "What a benchmark does when it's called: print its rows, and write them to the file that is named"
    if threads: torch.set_num_threads(threads)
    rows = []
    for r in run():
        rows.append({**r, 'threads': torch.get_num_threads()})
        print(line(r), flush=True)
    if not sys.argv[1:]: return
    with open(sys.argv[1], 'w', encoding='utf8') as f: f.writelines(json.dumps(r) + '\n' for r in rows)
