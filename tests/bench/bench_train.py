"Training and scoring as the reproductions do it, images per second through fastai's `Learner`: `python -m tests.bench.bench_train`"
import tempfile, time, warnings
from pathlib import Path
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import CropPad, FlipItem, RandomCrop
from fastai.vision.data import ImageDataLoaders
from prunelab.basin import evaluate_population
from prunelab.core import weights
from prunelab.lab.data import DeviceLoader, Images
from prunelab.masks import apply_
from prunelab.lab.models import resnet18
from prunelab.stochastic import stochastic_prune
from prunelab.lab.training import Recipe, learner
from .bench_loader import MEAN, STD, draw
from .common import show

def rate(learn, epochs=2):
    "Images a second of the best of `epochs` training epochs after one that warms up; validation is not timed"
    best, learn._do_epoch_validate = 0, lambda *args, **kwargs: None
    learn.fit(1)
    for _ in range(epochs):
        start = time.perf_counter()
        learn.fit(1)
        if torch.cuda.is_available(): torch.cuda.synchronize()
        best = max(best, len(learn.dls.train)*learn.dls.train.bs/(time.perf_counter() - start))
    return best

def run(device=None):
    "One row per comparison: {what, ours, peer, ratio, target}"
    cuda = torch.cuda.is_available() if device is None else device == 'cuda'
    device, n, width, bs, members = torch.device('cuda' if cuda else 'cpu'), 45_000 if cuda else 1_000, None if cuda else .125, 128, 20 if cuda else 2
    recipe, rows = Recipe(resnet18, 'cifar10', width=width, bs=bs), []
    with tempfile.TemporaryDirectory() as tmp:
        draw(Path(tmp), min(n, 10_000))
        files = ImageDataLoaders.from_folder(tmp, valid_pct=.01, seed=0, bs=bs, device=device, num_workers=8 if cuda else 2, item_tfms=[CropPad(40), RandomCrop(32), FlipItem()], batch_tfms=Normalize.from_stats(MEAN, STD, cuda=cuda))
        gen = torch.Generator('cpu').manual_seed(0)
        images = lambda n: Images(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=gen, device='cpu'), torch.randint(10, (n,), generator=gen, device='cpu'), [*'0123456789'])
        tfms = [IntToFloatTensor(), Normalize.from_stats(MEAN, STD, cuda=False)]
        packed = lambda: DataLoaders(DeviceLoader(images(n), bs, shuffle=True, drop_last=True, augment=True, after_batch=tfms), DeviceLoader(images(bs), bs, after_batch=tfms), device=device)
        ours = learner(recipe, 0, device, dls=packed())
        theirs = learner(recipe, 0, device, dls=files)
        a, b = rate(ours), rate(theirs)
        rows.append(dict(what=f'train ResNet-18{"" if cuda else " (1/8 width)"} bs {bs}, images/s, against ImageDataLoaders', ours=a, peer=b, ratio=a/b, target='20,000 images/s' if cuda else None))
        if cuda:
            fast = learner(recipe, 0, device, dls=packed())
            fast.model.compile()
            c = rate(fast)
            rows.append(dict(what='the same with torch.compile, against without', ours=c, peer=a, ratio=c/a, target=None))
    ws, test = weights(ours.model, ('conv1', 'fc')), DeviceLoader(images(10_000 if cuda else 500), 500, after_batch=tfms, device=device)
    def score(amp):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            start = time.perf_counter()
            evaluate_population(ours.model, (apply_(w, m) for m, w in (stochastic_prune(ws, .9, .005, (0, i)) for i in range(members))), test)
            return time.perf_counter() - start
    score(cuda)
    s, full = score(cuda), score(False)
    rows.append(dict(what=f'{members} noisy-pruned members on {len(test.dataset):,} images, s, against float32', ours=s, peer=full, ratio=full/s, target='5 s' if cuda else None))
    return rows

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    show(run())
