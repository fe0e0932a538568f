"What the benchmarks share: timing in turns, and rows"
import time

def in_turns(rounds=5, **contestants):
    "Seconds of each contestant: the fastest of `rounds`, taken in turn after one that only warms up"
    best = {}
    for r in range(rounds + 1):
        for name, f in contestants.items():
            start = time.perf_counter(); f(); t = time.perf_counter() - start
            if r: best[name] = min(t, best.get(name, t))
    return best

def show(rows):
    "Print rows {what, ours, peer, ratio, target}"
    for r in rows:
        target = '' if r['target'] is None else f"target {r['target']}"
        print(f"{r['what']:<88} ours {r['ours']:>11,.4g}  other {r['peer']:>11,.4g}  ratio {r['ratio']:>7.2f}  {target}", flush=True)
