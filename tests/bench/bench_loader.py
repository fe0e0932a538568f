"Images per second: packed loader against fastai's folder of files, same augmentation, CPU. `python -m tests.bench.bench_loader`"
import tempfile, time, warnings
from pathlib import Path
import numpy as np, torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import CropPad, FlipItem, RandomCrop
from fastai.vision.data import ImageDataLoaders
from PIL import Image
from prunelab.lab.data import DeviceLoader, Images
from prunelab.lab.images import as_pixels

TARGET, MEAN, STD = 10, [.49, .48, .45], [.25, .24, .26]

def draw(folder, n):
    "`n` noise PNGs of 32×32 pixels in two classes"
    rng = np.random.default_rng(0)
    for i in range(n):
        path = folder/f'{i % 2}'/f'{i:05d}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)

def rate(dl, epochs):
    "Images per second over whole epochs, best of `epochs`; the first batch is not timed"
    next(iter(dl))
    best = 0
    for _ in range(epochs):
        start, n = time.perf_counter(), 0
        for x, _ in dl: n += len(x)
        best = max(best, n/(time.perf_counter() - start))
    return best

def run(n=4000, bs=128):
    "One row per comparison: {what, ours, peer, ratio, target}; images per second"
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        draw(tmp, n)
        files = sorted(tmp.rglob('*.png'))
        ds = Images(torch.stack([_pixels(f, 3, 32) for f in files]), torch.tensor([int(f.parent.name) for f in files], device='cpu'), ['0', '1'])
        norm = lambda: Normalize.from_stats(MEAN, STD, cuda=False)
        rows = []
        for what, items, augment in (('pad-crop, flip, normalise', [CropPad(40), RandomCrop(32), FlipItem()], True), ('normalise', [], False)):
            ours = rate(DeviceLoader(ds, bs, shuffle=True, augment=augment, after_batch=[IntToFloatTensor(), norm()], device='cpu'), 5)
            peer = max(rate(ImageDataLoaders.from_folder(tmp, valid_pct=.01, seed=0, bs=bs, device='cpu', num_workers=w,
                item_tfms=items, batch_tfms=norm()).train, 2) for w in (0, 2))
            rows.append(dict(what=f'loader, {what}, images/s', ours=ours, peer=peer, ratio=ours/peer, target=TARGET))
    return rows

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    for r in run(): print('{what}: ours {ours:,.0f}, fastai {peer:,.0f}, ratio {ratio:.1f} (target {target})'.format(**r))
