"What the benchmarks share: timing in turns, and rows"
import time

def seconds_of(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def in_turns(rounds=5, **contestants):
    "Seconds of each contestant: the fastest of `rounds`, taken in turn after one that only warms up"
    times = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, f in contestants.items(): times[name].append(seconds_of(f))
    return {name: min(t[1:]) for name, t in times.items()}

def show(rows):
    "Print rows {what, ours, peer, ratio, target}"
    for r in rows:
        target = '' if r['target'] is None else f"target {r['target']}"
        numbers = f"ours {r['ours']:>11,.4g}  other {r['peer']:>11,.4g}  ratio {r['ratio']:>7.2f}"
        print(f"{r['what']:<88} {numbers}  {target}", flush=True)
