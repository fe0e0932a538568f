"""Training as the reproductions do it, images a second through a `Learner`: python -m tests.bench.bench_train

Contestants take turns and the best of their rounds counts: on a busy machine ratios say more than times.
"""
import tempfile, warnings
from pathlib import Path

import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import CropPad, FlipItem, RandomCrop
from fastai.vision.data import ImageDataLoaders

from prunelab.core import generator
from prunelab.lab.data import DeviceLoader, Images
from prunelab.lab.training import Recipe, fit, learner, machine
from .bench_loader import MEAN, STD, draw
from .common import in_turns, main, row

NETS = {    # images an epoch on a CPU, and the ratio of bfloat16 to float32 that is asked for
    'resnet18': (256, 1.8), 'resnet20': (1024, 1.8), 'resnet56': (512, None), 'vgg16': (256, None),
    'lenet5': (6400, None)}

def packed(n, c, size, device, bs=128):
    "Loaders of random images, as packed as real ones"
    gen = generator(0, 'cpu')
    def images(n):
        x = torch.randint(256, (n, c, size, size), dtype=torch.uint8, generator=gen, device='cpu')
        return Images(x, torch.randint(10, (n,), generator=gen, device='cpu'), [*'0123456789'])
    tfms = [IntToFloatTensor(), Normalize.from_stats(MEAN[:c], STD[:c], cuda=False)]
    train = DeviceLoader(images(n), bs, shuffle=True, drop_last=True, augment=c == 3, after_batch=tfms)
    return DataLoaders(train, DeviceLoader(images(bs), bs, after_batch=tfms), device=device)

def epoch(learn):
    "A function that trains for one epoch, to the end of the device's work"
    def run():
        fit(learn, 1, .01)
        if learn.dls.device.type == 'cuda': torch.cuda.synchronize()
    return run

def compare(learners, rounds):
    "Images a second of each learner, in each round"
    seconds = in_turns(rounds, **{name: epoch(learn) for name, learn in learners.items()})
    sizes = {name: len(learn.dls.train)*learn.dls.train.bs for name, learn in learners.items()}
    return {name: [sizes[name]/t for t in times] for name, times in seconds.items()}

def half_against_full(network, n, target, device, rounds):
    "bfloat16 against float32, all else alike"
    c, size = (1, 28) if network == 'lenet5' else (3, 32)
    recipes = {p: Recipe(network, 'cifar10', precision=p) for p in ('bf16', 'float32')}
    learners = {p: learner(r, 0, device, packed(n, c, size, device)) for p, r in recipes.items()}
    rates = compare(learners, rounds)
    what = f'train {network}, images/s, bf16 against float32'
    return row(network, what, rates['bf16'], rates['float32'], unit='images/s', target=target)

def convolutions(device, rounds, bs=128):
    "The limit of such a training: nothing but the convolutions of a ResNet-18's second part, there and back"
    x = torch.randn(bs, 128, 16, 16, generator=generator(0, 'cpu'), device='cpu').to(device)
    def passes(dtype, layout):
        conv = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(device, dtype, memory_format=layout)
        batch = x.to(dtype).contiguous(memory_format=layout).requires_grad_()
        def run():
            conv(batch).sum().backward()
            if device.type == 'cuda': torch.cuda.synchronize()
        return run
    # Each in the layout that our training takes for it on a CPU
    seconds = in_turns(5*rounds, half=passes(torch.bfloat16, torch.channels_last),
                       full=passes(torch.float32, torch.contiguous_format))
    rates = {name: [bs/t for t in times] for name, times in seconds.items()}
    return row('limit', 'a convolution, there and back, images/s, bf16 against float32', rates['half'],
               rates['full'], unit='images/s')

def packed_against_files(device, cuda, rounds):
    "Our loader against fastai's folder of files, with the same small ResNet behind it"
    n, workers = (45_000, 8) if cuda else (1024, 2)
    width, precision = (None, 'bf16') if cuda else (.125, 'float32')
    recipe = Recipe('resnet18', 'cifar10', width=width, precision=precision)
    with tempfile.TemporaryDirectory() as tmp:
        draw(Path(tmp), min(n, 10_000))
        files = ImageDataLoaders.from_folder(
            tmp, valid_pct=.01, seed=0, bs=128, device=device, num_workers=workers,
            item_tfms=[CropPad(40), RandomCrop(32), FlipItem()],
            batch_tfms=Normalize.from_stats(MEAN, STD, cuda=cuda))
        rates = compare({'ours': learner(recipe, 0, device, packed(n, 3, 32, device)),
                         'theirs': learner(recipe, 0, device, files)}, rounds)
    what = f'train ResNet-18{"" if cuda else " (1/8 width)"}, images/s, against ImageDataLoaders'
    return row('files', what, rates['ours'], rates['theirs'], unit='images/s',
               target='20,000 images/s' if cuda else None)

def run(device=None, rounds=3):
    "One row per comparison"
    cuda = torch.cuda.is_available() if device is None else device == 'cuda'
    device = torch.device('cuda' if cuda else 'cpu')
    rows = [packed_against_files(device, cuda, rounds)]
    for network, (n, target) in NETS.items():
        n, target = (45_000, None) if cuda else (n, target)
        rows.append(half_against_full(network, n, target, device, rounds))
    return [*rows, convolutions(device, rounds)]

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    print(machine('cuda' if torch.cuda.is_available() else 'cpu'))
    main(run)
