"""Images per second: packed loader against fastai's folder of files, same augmentation, CPU.

`python -m tests.bench.bench_loader`"""
import tempfile
import time
import warnings
from pathlib import Path
import numpy as np
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import CropPad, FlipItem, RandomCrop
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from prunelab.lab.data import DeviceLoader, Images
from prunelab.lab.images import as_pixels
from .common import main, row

TARGET, MEAN, STD = 10, [.49, .48, .45], [.25, .24, .26]

def draw(folder, n):
    "`n` noise PNGs of 32×32 pixels in two classes"
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder/f'{i % 2}'/f'{i:05d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)

def rates(dl, epochs):
    "Images per second over whole epochs; the first batch is not timed"
    next(iter(dl))
    found = []
    for _ in range(epochs):
        start = time.perf_counter()
        n = sum(len(x) for x, _ in dl)
        found.append(n/(time.perf_counter() - start))
    return found

def normalise(): return Normalize.from_stats(MEAN, STD, cuda=False)

def packed(folder):
    "All images of a folder as one tensor"
    files = sorted(folder.rglob('*.png'))
    x = torch.stack([as_pixels(f, 3, 32) for f in files])
    return Images(x, torch.tensor([int(f.parent.name) for f in files], device='cpu'), ['0', '1'])

def our_rates(images, bs, augment):
    tfms = [IntToFloatTensor(), normalise()]
    return rates(DeviceLoader(images, bs, shuffle=True, augment=augment, after_batch=tfms, device='cpu'), 5)

def peer_rates(folder, bs, item_tfms):
    "The better of no worker and two"
    def loader(workers):
        return ImageDataLoaders.from_folder(
            folder, valid_pct=.01, seed=0, bs=bs, device='cpu', num_workers=workers, item_tfms=item_tfms,
            batch_tfms=normalise()).train
    return max((rates(loader(workers), 5) for workers in (0, 2)), key=max)

class OnePass:
    "The least that a loader can do: read every packed byte once, and write every number once as a float"
    def __init__(self, images, bs): self.pieces = list(zip(images.x.split(bs), images.y.split(bs)))
    def __iter__(self): return ((x.float(), y) for x, y in self.pieces)

def run(n=4000, bs=128):
    "One row per comparison; images per second"
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        draw(folder, n)
        images = packed(folder)
        moves = [CropPad(40), RandomCrop(32), FlipItem()]
        floor = rates(OnePass(images, bs), 5)
        for name, what, item_tfms in (('augmented', 'pad-crop, flip, normalise', moves),
                                      ('plain', 'normalise', [])):
            ours, peer = our_rates(images, bs, bool(item_tfms)), peer_rates(folder, bs, item_tfms)
            what = f'loader, {what}, images/s'
            rows.append(row(name, f'{what}; other: fastai', ours, peer, unit='images/s', target=TARGET))
            what = f'{what}; other: bytes to floats, no more'
            rows.append(row(f'{name} floor', what, ours, floor, 'peer/ours', unit='images/s'))
    return rows

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    main(run)
