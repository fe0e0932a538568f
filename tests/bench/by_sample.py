"""Another way to select exactly, which `prunelab.masks` does not take: a random sample says roughly where the
threshold is, and only scores near it are looked at closely. The page nbs/lab/70_performance says why not."""
import numpy as np
import torch
from prunelab.core import generator
from prunelab.masks import flatnonzero

SAMPLE, PIECE = 1 << 16, 1 << 18

def bracket(flats, k, size=SAMPLE):
    "(low, high), five standard errors around the place in a sample where the k-th largest should be"
    gen, n = generator(0, 'cpu'), sum(map(len, flats))
    def some(f): return f[torch.randint(len(f), (round(size*len(f)/n) + 1,), generator=gen, device='cpu')]
    x = np.sort(torch.cat([some(f) for f in flats]).numpy())
    place, error = len(x)*(1 - k/n), 5*(len(x)*k/n*(1 - k/n))**.5 + 1
    low, high = int(place - error), int(place + error)
    return x[low] if low >= 0 else -np.inf, x[high] if high < len(x) else np.inf

def keep_by_sample(scores, k, size=SAMPLE):
    "The masks of `keep_top` for float32 scores on the CPU; None where the sample has missed the threshold"
    flats = [s.reshape(-1) for s in scores.values()]
    low, high = bracket(flats, k, size)
    flat_masks = [torch.empty(len(f), dtype=torch.bool, device='cpu') for f in flats]
    views, places, near, above = [], [], [], 0
    for x, m in zip(flats, flat_masks):
        for piece, mask in zip(x.split(PIECE), m.split(PIECE)):
            torch.gt(piece, high, out=mask)
            if piece.max().isnan(): raise ValueError('scores are not numbers (NaN)')
            above += int(mask.count_nonzero())
            where = flatnonzero((piece >= low) ^ mask)
            views.append(mask)
            places.append(where)
            near.append(piece[where])
    chosen = first_largest(torch.cat(near), k - above)
    if chosen is None: return None
    for mask, where, c in zip(views, places, chosen.split([len(p) for p in places])): mask[where] = c
    return {name: m.view(s.shape) for (name, s), m in zip(scores.items(), flat_masks)}

def first_largest(x, k):
    "Bool: the `k` largest, of equal ones the first; None if there are not so many"
    if not 0 < k <= len(x): return None
    value = np.partition(x.numpy(), len(x) - k)[len(x) - k].item()
    chosen = x > value
    chosen[flatnonzero(x == value)[:k - int(chosen.count_nonzero())]] = True
    return chosen
