"Laws of the block maxima of all of ResNet-50's layers at once, against SciPy's maximum likelihood"
import time
import numpy as np
from scipy import stats
from prunelab.core import seeded, weights
from prunelab.lab.models import resnet50
from prunelab.tails import fit_gev
from .common import in_turns, main, row

def block_maxima(w, b=9):
    "Largest |w| of each 3×3 kernel, or of b consecutive inputs of one unit; what is left over is left out"
    is_kernel = w.ndim == 4 and w[0, 0].numel() == b
    rows = w.detach().abs().flatten(2 if is_kernel else 1)
    whole = rows.shape[-1]//b*b
    return rows[..., :whole].unflatten(-1, (-1, b)).amax(-1).flatten()

def prepare():
    "Weights of a network"
    with seeded(0): model = resnet50()
    return weights(model)

def scipy_shapes(maxima):
    "Shape of each layer, with the sign turned: SciPy's c is -xi"
    return [-stats.genextreme.fit(m.numpy())[0] for m in maxima]

def cpu_seconds(f):
    "(result, seconds of processor time): also fair where other work shares the cores"
    start = time.process_time()
    found = f()
    return found, time.process_time() - start

def off_from_scipy(fitted, shapes, maxima, least=5000):
    "Differences of xi in layers of at least so many blocks"
    return [abs(a - b) for a, b, m in zip(fitted.xi.tolist(), shapes, maxima) if len(m) >= least]

def run():
    ws = prepare()
    maxima = [block_maxima(w) for w in ws.values()]
    fitted = fit_gev(maxima)
    t = in_turns(5, whole=lambda: fit_gev([block_maxima(w) for w in ws.values()]),
                 kept=lambda: [law.cdf(w.abs()) for law, w in zip(fitted, ws.values())],
                 read=lambda: [w.abs() for w in ws.values()])
    ours = [cpu_seconds(lambda: fit_gev(maxima))[1] for _ in range(5)]
    floor = [cpu_seconds(lambda: [np.sort(m.numpy()) for m in maxima])[1] for _ in range(5)]
    shapes, peer = cpu_seconds(lambda: scipy_shapes(maxima))          # once: it takes about a minute
    off = off_from_scipy(fitted, shapes, maxima)
    n, total = sum(map(len, maxima)), sum(w.numel() for w in ws.values())
    largest = f'largest difference of xi in {len(off)} layers of at least 5,000 blocks; other: .05'
    return [
        row('scipy', f'GEVs of {len(maxima)} layers, {n:,} maxima, CPU s; other: SciPy maximum likelihood',
            ours, peer, 'peer/ours', target='at least 100'),
        row('floor', 'the same; other: the maxima sorted, no more', ours, floor),
        row('weights', f'the same from {total:,} weights on, s; other: one second', t['whole'], 1.,
            'peer/ours', target='at least 1'),
        row('cdf', 'G(|w|) of every weight, s; other: |w| alone', t['kept'], t['read'], 'peer/ours'),
        row('agreement', largest, max(off), .05, 'peer/ours', unit='xi', target='at least 1')]

if __name__ == '__main__': main(run, threads=1)      # one thread, since SciPy uses one, too
