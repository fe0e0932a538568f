"""Networks as people use them: `python -m tests.catalogue [--table FILE] [NAME ...]`.

Each one is pruned by 90 % inside of a `Learner`, trains a step on made data, and its zeros are counted. This
needs the extra `catalogue`. Weights are random, nothing is downloaded. Exit status 1 if a count is wrong."""
import argparse
import json
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn
from torch.nn import functional as F
from prunelab.allocation import erk
from prunelab.callbacks import PruneCB
from prunelab.core import seeded, weights

P, BATCH = .9, 2

class Case:
    "A network, one batch for it, and a loss"
    def __init__(self, model, xs, y, loss=F.cross_entropy):
        self.model, self.xs, self.y, self.loss = model, xs, y, loss

def images(size, channels=3): return (torch.randn(BATCH, channels, size, size),)
def classes(n=10): return torch.arange(BATCH) % n
def tokens(vocab, length=8): return torch.randint(1, vocab, (BATCH, length))

def first(out, y): return F.cross_entropy(out[0], y)
def logits(out, y): return F.cross_entropy(out.logits, y)
def per_token(out, y): return F.cross_entropy(out.flatten(0, 1), y.flatten())

# One of each family of torchvision's classifiers, with the smallest input that it takes

TORCHVISION = {
    'alexnet': 63, 'convnext_tiny': 32, 'densenet121': 32, 'efficientnet_b0': 32, 'efficientnet_v2_s': 32,
    'googlenet': 32, 'inception_v3': 75, 'maxvit_t': 224, 'mnasnet0_5': 32, 'mobilenet_v2': 32,
    'mobilenet_v3_small': 32, 'regnet_x_400mf': 32, 'regnet_y_400mf': 32, 'resnet18': 32,
    'resnext50_32x4d': 32, 'wide_resnet50_2': 32, 'shufflenet_v2_x0_5': 32, 'squeezenet1_1': 32,
    'swin_t': 32, 'swin_v2_t': 32, 'vgg11': 32, 'vit_b_16': 32}

def from_torchvision(name):
    from torchvision.models import get_model
    size = TORCHVISION[name]
    extra = {'googlenet': dict(aux_logits=False), 'inception_v3': dict(aux_logits=False),
             'vit_b_16': dict(image_size=size)}.get(name, {})
    if name in ('googlenet', 'inception_v3'): extra['init_weights'] = False
    return Case(get_model(name, weights=None, num_classes=10, **extra), images(size), classes())

TIMM = {'vit_tiny_patch16_224': 32, 'deit_tiny_patch16_224': 32, 'swin_tiny_patch4_window7_224': 224,
        'mixer_s32_224': 224, 'resmlp_12_224': 224, 'convnextv2_atto': 32, 'efficientvit_b0': 64,
        'repvgg_a0': 32, 'ghostnet_050': 32, 'resnet10t': 32}

def from_timm(name):
    import timm
    size = TIMM[name]
    extra = {'img_size': size} if name.startswith(('vit', 'deit')) else {}
    return Case(timm.create_model(name, pretrained=False, num_classes=10, **extra), images(size), classes())

# Others

def unet():
    from fastai.vision.models.unet import DynamicUnet
    from torchvision.models import resnet18
    body = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
    return Case(DynamicUnet(body, 3, (32, 32)), images(32), torch.randint(3, (BATCH, 32, 32)))

def awd_lstm():
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_lm_config
    from fastai.text.models.core import get_language_model
    config = {**awd_lstm_lm_config, 'emb_sz': 32, 'n_hid': 48, 'n_layers': 2}
    def loss(out, y): return per_token(out[0], y)
    return Case(get_language_model(AWD_LSTM, 60, config=config), (tokens(60),), tokens(60), loss)

def tabular():
    from fastai.tabular.model import TabularModel
    model = TabularModel([(7, 4), (5, 3)], 6, 3, [40, 20])
    return Case(model, (torch.randint(5, (BATCH, 2)), torch.randn(BATCH, 6)), classes(3))

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)

def bert():
    from transformers import BertConfig, BertForSequenceClassification
    config = BertConfig(vocab_size=90, max_position_embeddings=16, num_labels=3, **SMALL)
    return Case(BertForSequenceClassification(config), (tokens(90),), classes(3), logits)

def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel
    config = GPT2Config(vocab_size=90, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    def loss(out, y): return per_token(out.logits, y)
    return Case(GPT2LMHeadModel(config), (tokens(90),), tokens(90), loss)

def vit():
    from transformers import ViTConfig, ViTForImageClassification
    config = ViTConfig(image_size=32, patch_size=8, num_labels=10, **SMALL)
    return Case(ViTForImageClassification(config), images(32), classes(), logits)

OTHERS = {'fastai U-Net': unet, 'fastai AWD-LSTM': awd_lstm, 'fastai tabular': tabular,
          'transformers BERT': bert, 'transformers GPT-2': gpt2, 'transformers ViT': vit}
CASES = {**{f'torchvision {n}': partial(from_torchvision, n) for n in TORCHVISION},
         **{f'timm {n}': partial(from_timm, n) for n in TIMM}, **OTHERS}

# Prune, one step, count

class Repeated(list):
    "One batch, again and again"
    def new(self, **kwargs): return self

def learner(case, folder):
    batches = Repeated([(*case.xs, case.y)])
    dls = DataLoaders(batches, batches, device=torch.device('cpu'))
    dls.n_inp = len(case.xs)
    learn = Learner(dls, case.model, case.loss, partial(SGD, mom=.9), path=folder, lr=1e-3)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda row: None
    return learn

def zeros(ws): return sum(int((w == 0).sum()) for w in ws.values())

def row(name):
    "What comes of one network"
    begin = time.monotonic()
    with seeded(0), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action='ignore'):
        case = CASES[name]()
        ws = weights(case.model)
        learn, cb = learner(case, folder), PruneCB(P, allocation=erk)
        learn.prune(cb)
        pruned = {n: ws[n] for n in cb.names}
        before, steps, moved = {n: w.detach().clone() for n, w in pruned.items()}, 0, 0
        while not moved and steps < 2:      # a classifier that begins at 0 sends no gradient back at first
            learn.fit(1)
            steps, moved = steps + 1, sum(int((w != before[n]).sum()) for n, w in pruned.items())
    n = sum(w.numel() for w in pruned.values())
    return {'network': name, 'parameters': sum(p.numel() for p in case.model.parameters()), 'weights': n,
            'layers': len(pruned), 'asked': round(P*n), 'zeros': zeros(pruned), 'moved': moved,
            'steps': steps, 'empty': len(cb.rows[-1]['empty']), 'seconds': round(time.monotonic() - begin, 1)}

def guarded(name):
    try: return row(name)
    except Exception as e: return {'network': name, 'error': f'{type(e).__name__}: {e}'[:300]}

def is_right(row): return 'error' not in row and row['zeros'] == row['asked'] and row['moved'] > 0

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='parts of names; all networks without one')
    parser.add_argument('--table', type=Path, help='write a line for each network to this file')
    args = parser.parse_args()
    rows = []
    for name in CASES:
        if args.names and not any(part in name for part in args.names): continue
        rows.append(guarded(name))
        print(json.dumps(rows[-1]), flush=True)
        if args.table: args.table.write_text(''.join(json.dumps(r) + '\n' for r in rows), encoding='utf8')
    wrong = [r['network'] for r in rows if not is_right(r)]
    print(f'{len(rows) - len(wrong)} of {len(rows)} networks are as they should be', *wrong, sep='\n')
    sys.exit(bool(wrong))

if __name__ == '__main__': main()
