"""Sixteen noisy networks, pruned to 90 % and evaluated: `evaluate_population` against one copy for each.

The copy gets its noise in place and is pruned by `torch.nn.utils.prune`.
`python -m tests.bench.bench_population` prints the rows. Both sides get the same draws and must find
the same accuracies."""
import copy
import tempfile
import time
from pathlib import Path
import torch
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from prunelab.allocation import global_
from prunelab.basin import noise, population
from prunelab.core import generator, seeded, weights
from prunelab.evaluate import evaluate_population
from prunelab.masks import apply_
from prunelab.scores import magnitude
from .common import main, row

N, MEMBERS, SIGMA, SPARSITY, BS = 1000, 16, .02, .9, 256

def make_images(
    folder:Path, # Gets `train` (a handful, never read here) and `valid`, each with one folder per class
    n:int=N, # Images, 28x28 grey
):
    "Ten classes: one blurred pattern for each class, plus noise"
    gen = generator(0, 'cpu')
    patterns = F.interpolate(torch.rand(10, 1, 7, 7, generator=gen), size=28, mode='bilinear')[:, 0]
    for i in range(n + 10):
        img = (patterns[i % 10] + .5*torch.randn(28, 28, generator=gen)).clamp(0, 1)
        to = folder/('train' if i < 10 else 'valid')/str(i % 10)
        to.mkdir(parents=True, exist_ok=True)
        Image.fromarray((img*255).byte().numpy()).save(to/f'{i}.png')

def lenet():
    "LeNet-5 for three equal colours, as fastai reads grey PNGs"
    features = [nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.Flatten(), *head)

def trained(batches):
    "Two epochs in random order: enough for accuracies to differ, so that agreement means something"
    x, y = map(torch.cat, zip(*batches))
    with seeded(0):
        net = lenet()
        opt = torch.optim.Adam(net.parameters(), 2e-3)
        for i in torch.randperm(2*len(y)).remainder(len(y)).split(64):
            F.cross_entropy(net(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
    return net

def ours(net, dl, chunk=MEMBERS):
    "Draw, prune and evaluate in one pass per chunk"
    drawn = population(weights(net), SIGMA, MEMBERS, seed=1)
    members = (apply_(m, global_(magnitude(m), SPARSITY)) for m in drawn)
    return evaluate_population(net, members, dl, chunk=chunk).tolist()

def pruned_copy(net, i):
    "Member i, made in place"
    other = copy.deepcopy(net).eval()
    eps = noise(weights(other), (1, i))
    for n, w in weights(other).items(): w.add_(SIGMA*eps[n])
    layers = [(m, 'weight') for m in other if hasattr(m, 'weight')]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)
    return other

@torch.no_grad()
def peer(net, dl):
    "One copy, one pruning and one loop over the data per member"
    accs = []
    for i in range(MEMBERS):
        other = pruned_copy(net, i)
        right = total = 0
        for x, y in dl:
            right += int((other(x).argmax(1) == y).sum())
            total += len(y)
        accs.append(right/total)
    return accs

@torch.no_grad()
def least(net, dl, packed):
    "What no one can leave out: read the images once, and run the network for each member"
    net.eval()
    for _ in dl: pass
    for _ in range(MEMBERS):
        for x, _ in packed: net(x)

def timed(f, *args):
    start = time.perf_counter()
    out = f(*args)
    return time.perf_counter() - start, out

def measured(
    contestants:dict, # {name: (function, loader or batches, …)}
    net, # Trained
    packed:list, # Batches in memory
    repeats:int, # Rounds of all in turn; five times as many where there is no loader
) -> tuple: # {name: seconds of each round}, {name: accuracies}
    "All of several rounds, after one that only warms up"
    seconds, found = {}, {}
    for r in range(5*repeats + 1):
        for name, (f, dl, *chunk) in contestants.items():
            if r == 0: timed(f, net, packed[:1], *chunk)
            elif r <= repeats or dl is packed:
                took, found[name] = timed(f, net, dl, *chunk)
                seconds.setdefault(name, []).append(took)
    return seconds, found

def run(
    repeats:int=3, # Rounds with the loader
) -> list: # Rows: seconds, or MB
    "Seconds for 16 members on a CPU"
    with tempfile.TemporaryDirectory() as tmp:
        make_images(Path(tmp))
        dls = ImageDataLoaders.from_folder(tmp, valid='valid', bs=BS, num_workers=0, device='cpu')
        packed = [tuple(t.as_subclass(torch.Tensor) for t in batch) for batch in dls.valid]
        net = trained(packed)
        contestants = dict(peer=(peer, dls.valid), loader=(ours, dls.valid), single=(ours, dls.valid, 1),
                           least=(least, dls.valid, packed), packed=(ours, packed),
                           peer_packed=(peer, packed))
        return rows_of(*measured(contestants, net, packed, repeats), net)

def rows_of(seconds, found, net):
    "What was measured, in words; an error if the contestants disagree"
    accs = found['peer']
    same = all(a == accs for name, a in found.items() if name != 'least')
    assert same and len(set(accs)) > 1, 'they disagree on the accuracies'
    n, m = sum(w.numel() for w in weights(net).values()), f'{MEMBERS} members'
    mb = 4e-6*n
    def against(name, what, a, b, target=None):
        return row(name, what, seconds[a], seconds[b], 'peer/ours', target=target)
    packed = f'{m}, packed batches against the fastai loader'
    return [against('loader', f'{m}, same fastai loader, chunk={MEMBERS}', 'loader', 'peer', 1.),
            against('single', f'{m}, same fastai loader, chunk=1', 'single', 'peer'),
            row('floor', f'{m}, same fastai loader; other: images read once, forward passes alone',
                seconds['loader'], seconds['least']),
            row('packed', packed, seconds['packed'], min(seconds['peer']), 'peer/ours', target=3.),
            against('packed both', f'{m}, packed batches on both sides', 'packed', 'peer_packed'),
            row('memory', f'MB of live members at chunk={MEMBERS}, against one copy with original, mask and '
                'product', MEMBERS*mb, 3*mb, 'peer/ours', unit='MB')]

if __name__ == '__main__': main(run, threads=2)
