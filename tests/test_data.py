"What prunelab.lab.images and prunelab.lab.data promise beyond their pages"
import copy
import pickle
import random
import subprocess
import sys
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import fastai.callback.schedule    # learn.lr_find
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from prunelab.lab import images as reading
from prunelab.core import generator, seeded
from prunelab.lab.data import DeviceLoader, Images, get_dls
from prunelab.lab.images import as_pixels, read_images

LAYOUT = {   # name: number of classes, folder of a class in training and in test, ending
    'mnist': (10, 'training/{}', 'testing/{}', 'png'), 'cifar10': (10, 'train/{}', 'test/{}', 'png'),
    'cifar100': (100, 'train/super/{}', 'test/super/{}', 'png'),
    'tiny_imagenet': (200, 'train/n{}/images', None, 'JPEG')}

def save(path, level, mode, size):
    "An image of one colour"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), level if mode == 'L' else (level, 0, 255)).save(path)

def make(name, root, per_class=3, size=None):
    "A folder in the layout of `name`; each image is one colour, 2·class (training) or 2·class + 1 (test)"
    n, train, test, ext = LAYOUT[name]
    size = size or reading._SOURCES[name].size
    folder, rows = root/name, []
    for k in range(n):
        mode = 'L' if name == 'mnist' or (name == 'tiny_imagenet' and k % 7 == 0) else 'RGB'
        for i in range(per_class): save(folder/train.format(k)/f'{k}_{i}.{ext}', 2*k % 256, mode, size)
        file = folder/test.format(k)/f't.{ext}' if test else folder/f'val/images/val_{k}.{ext}'
        save(file, (2*k + 1) % 256, mode, size)
        rows.append(f'val_{k}.{ext}\tn{k}\t0\t0\t1\t1')
    if not test: (folder/'val/val_annotations.txt').write_text('\n'.join(rows) + '\n')
    return folder

def mlp(dls):
    x, _ = dls.one_batch()
    with seeded(0): return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), dls.c)).to(x.device)

@pytest.fixture
def learn(tmp_path, device):
    dls = get_dls('digits', bs=64, device=device)
    learn = Learner(dls, mlp(dls), path=tmp_path, model_dir=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(3, .01)
    return learn

def as_bytes(images): return [bytes(image.flatten().tolist()) for image in images]

# reading

@pytest.fixture(params=LAYOUT, scope='module')
def layout(request, tmp_path_factory):
    "(name, number of classes, what was read)"
    folder = make(request.param, tmp_path_factory.mktemp('layout'))
    return request.param, LAYOUT[request.param][0], read_images(request.param, folder=folder)

def test_shapes_of_each_layout(layout):
    name, n, d = layout
    c, size = reading._SOURCES[name].channels, reading._SOURCES[name].size
    assert d['x_train'].shape == (3*n, c, size, size) and d['x_test'].shape == (n, c, size, size)
    assert d['x_train'].dtype == torch.uint8

def test_labels_of_each_layout(layout):
    name, n, d = layout
    assert len(d['vocab']) == n and d['y_train'].bincount().tolist() == [3]*n
    assert d['y_test'].sort()[0].tolist() == list(range(n))

@pytest.mark.parametrize('part,odd', [('train', 0), ('test', 1)])
def test_every_label_belongs_to_its_image(layout, part, odd):
    "The colour tells the class"
    name, _, d = layout
    classes = [int(d['vocab'][y].removeprefix('n')) for y in d[f'y_{part}']]
    level = torch.tensor(classes, device='cpu')*2 % 256 + odd
    off = (d[f'x_{part}'][:, 0, 0, 0].int() - level).abs() % 256
    assert (off.minimum(256 - off) <= (3 if name == 'tiny_imagenet' else 0)).all()      # JPEG loses a little

def test_grey_images_among_colour_ones(tmp_path):
    d = read_images('tiny_imagenet', folder=make('tiny_imagenet', tmp_path))
    grey = d['x_test'][d['vocab'].index('n7')]
    assert (grey[0] == grey[2]).all()

@pytest.mark.parametrize('name,size', [('mnist', 32), ('cifar10', 16), ('digits', 28)])
def test_resized_once_per_size(name, size, tmp_path):
    folder = None if name == 'digits' else make(name, tmp_path)
    assert read_images(name, size, folder)['x_train'].shape[-2:] == (size, size)
    if folder: assert [f.name for f in tmp_path.glob('*.safetensors')] == [f'{name}-{size}px.safetensors']

def test_a_kill_while_writing_leaves_nothing(tmp_path, monkeypatch):
    folder = make('mnist', tmp_path)
    def killed(*args): raise KeyboardInterrupt
    monkeypatch.setattr(reading.os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt): read_images('mnist', folder=folder)
    assert [f.name for f in tmp_path.iterdir()] == ['mnist']

def test_written_once(tmp_path, monkeypatch):
    folder = make('mnist', tmp_path)
    a = read_images('mnist', folder=folder)
    monkeypatch.setattr(reading, '_pack', None)
    b = read_images('mnist', folder=folder)
    assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)

@pytest.fixture
def packed(tmp_path):
    "(folder of MNIST's layout, its packed file)"
    folder = make('mnist', tmp_path)
    read_images('mnist', folder=folder)
    return folder, tmp_path/'mnist-28px.safetensors'

def test_a_file_of_another_size_is_refused(packed):
    folder, cache = packed
    cache.with_name('mnist-32px.safetensors').write_bytes(cache.read_bytes())
    with pytest.raises(ValueError, match='mnist-32px.*not mnist at 32 pixels'):
        read_images('mnist', 32, folder)

DAMAGES = {'a byte short': lambda b: b[:-1], 'cut': lambda b: b[:100], 'empty': lambda b: b'',
           'something else': lambda b: b'something else'}

@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_files_are_refused(packed, damage):
    folder, cache = packed
    cache.write_bytes(DAMAGES[damage](cache.read_bytes()))
    with pytest.raises(ValueError, match='mnist-28px.safetensors is damaged'):
        read_images('mnist', folder=folder)

@pytest.mark.parametrize('header', [None, {'a': 'b'}, {'prunelab': 'no json'}, {'prunelab': '[]'}])
def test_foreign_files_are_refused(packed, header):
    folder, cache = packed
    save_file({'x': torch.zeros(1, device='cpu')}, cache, header)
    with pytest.raises(ValueError, match='mnist-28px.safetensors is damaged'):
        read_images('mnist', folder=folder)

def test_a_broken_image_is_named(tmp_path):
    folder = make('cifar10', tmp_path)
    bad = folder/'test/3/t.png'
    bad.write_bytes(bad.read_bytes()[:-30])
    with pytest.raises(OSError, match='test/3/t.png is not a readable image'):
        read_images('cifar10', folder=folder)

def test_a_missing_class_is_named(tmp_path):
    folder = make('cifar10', tmp_path)
    (folder/'test/3/t.png').unlink()
    said = r"test/\*/\*.png has images of 9 classes, cifar10 has 10; missing: \['3'\]"
    with pytest.raises(FileNotFoundError, match=said): read_images('cifar10', folder=folder)

def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): read_images('cifar10', folder=tmp_path/'nowhere')

def test_missing_labels_are_named(tmp_path):
    folder = make('tiny_imagenet', tmp_path, 1, 8)
    (folder/'val/val_annotations.txt').unlink()
    with pytest.raises(FileNotFoundError, match='val_annotations.txt'):
        read_images('tiny_imagenet', folder=folder)

@pytest.mark.parametrize('name', LAYOUT)
def test_no_network_no_data(name, tmp_path, monkeypatch):
    "The error says where one looked, why the download failed, and what to do"
    def offline(url): raise OSError('no route to host')
    monkeypatch.setattr(reading, 'fastai_path', lambda kind: tmp_path/kind)
    monkeypatch.setattr(reading, 'untar_data', offline)
    with pytest.raises(FileNotFoundError) as e: get_dls(name)
    for part in (str(tmp_path/'data'), 'no route to host', 'unpack', reading._SOURCES[name].url):
        assert part in str(e.value)

def test_statistics_are_exact():
    gen = generator(0, 'cpu')
    x = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8, generator=gen, device='cpu')
    mean, std = reading._stats(x)
    x = x.double()/255
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, x.std((0, 2, 3), correction=0), rtol=1e-9)

def test_the_deviation_of_a_constant_channel_is_a_grey_level():
    _, std = reading._stats(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))
    assert std[0] == pytest.approx(1/255)

@pytest.mark.parametrize('c', [1, 3])
def test_pixels_of_a_small_picture(c):
    "Grey becomes colour and colour grey, in the size that is asked for"
    x = as_pixels(np.full((3, 5), 100, dtype=np.uint8), c, 4)
    assert x.dtype == torch.uint8 and x.shape == (c, 4, 4) and (x == 100).all()

# splitting

@pytest.fixture
def digits(): return read_images('digits')

@pytest.fixture
def dls(): return get_dls('digits', valid=200, bs=32)

def test_the_parts_are_the_whole(digits, dls):
    assert [len(dl.dataset) for dl in dls.loaders] == [1237, 200, 360]
    parts = as_bytes(dls.train.dataset.x) + as_bytes(dls.valid.dataset.x)
    assert sorted(parts) == sorted(as_bytes(digits['x_train']))
    assert torch.equal(dls.test.dataset.x.cpu(), digits['x_test'])

def test_the_split_is_stratified(digits, dls):
    def share(y): return y.cpu().bincount().double()/len(y)
    assert (share(dls.valid.dataset.y) - share(digits['y_train'])).abs().max() < .01

def test_fewer_training_images_are_stratified_too(dls):
    small = get_dls('digits', valid=200, n_train=100, bs=32)
    assert len(small.train_ds) == 100 and small.train_ds.y.bincount().min() >= 9
    assert torch.equal(small.valid_ds.x, dls.valid_ds.x)

def test_another_seed_moves_validation_images_and_no_test_image(dls):
    other = get_dls('digits', valid=200, seed=1)
    assert not torch.equal(other.valid_ds.x, dls.valid_ds.x)
    assert torch.equal(other.test.dataset.x, dls.test.dataset.x)

BAD = [
    dict(name='cifar'), dict(name=None), dict(valid=0), dict(valid=1.), dict(valid=-.1), dict(valid='x'),
    dict(valid=5), dict(valid=1430), dict(bs=0), dict(bs=-1), dict(bs=2.5), dict(bs=1294), dict(bs=None),
    dict(size=0), dict(size=2.5), dict(size='8'), dict(n_train=3), dict(n_train=5000), dict(seed=-1)]

@pytest.mark.parametrize('kw', BAD)
def test_bad_arguments(kw):
    "Each is named in the error"
    with pytest.raises(ValueError) as e: get_dls(**{'name': 'digits', **kw})
    value, = kw.values()
    assert repr(value).strip("'") in str(e.value)

# batches

@pytest.fixture
def on_device(device): return get_dls('digits', bs=100, device=device)

def test_a_batch_has_fastai_types(on_device, device):
    x, y = on_device.one_batch()
    assert type(x) is TensorImageBW and type(y) is TensorCategory
    assert x.shape == (100, 1, 8, 8) and x.dtype == torch.float32 and x.device.type == device

def test_loaders_are_as_long_as_they_say(on_device):
    lengths = [len(list(dl)) for dl in on_device.loaders]
    assert lengths == [len(dl) for dl in on_device.loaders] == [12, 2, 4]

def test_loaders_know_the_classes(on_device):
    assert on_device.c == 10 and list(on_device.vocab) == list('0123456789') and on_device.n_inp == 1
    assert torch.equal(torch.cat([y for _, y in on_device.test]), on_device.test.dataset.y)

def test_colour_and_greyscale_types(tmp_path):
    args = dict(bs=8, folder=make('cifar10', tmp_path), valid=10)
    dls = get_dls('cifar10', **args)
    assert type(dls.one_batch()[0]) is TensorImage
    assert dls.train.augment and not dls.valid.augment and not get_dls('digits').train.augment
    assert not get_dls('cifar10', augment=False, **args).train.augment

def images(n=60, c=3, size=12):
    "Random images of four classes"
    with seeded(0): x = torch.randint(1, 256, (n, c, size, size), dtype=torch.uint8, device='cpu')
    return Images(x, torch.arange(n, device='cpu') % 4, list('abcd'))

def augmented(seed=42): return DeviceLoader(images(), 16, shuffle=True, augment=True, seed=seed)

def same_batches(a, b): return all(torch.equal(x, y) for (x, _), (y, _) in zip(a, b, strict=True))

def two_epochs(seed, device):
    "The images of two epochs, on the CPU"
    dl = DeviceLoader(images(), 16, shuffle=True, seed=seed, augment=True, device=device)
    return [[x.as_subclass(torch.Tensor).cpu() for x, _ in dl] for _ in range(2)]

def test_two_runs_agree(device):
    a, b = two_epochs(3, device), two_epochs(3, device)
    assert len(a[0]) == 4 and all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))

def test_epochs_and_seeds_differ(device):
    (first, second), (other, _) = two_epochs(3, device), two_epochs(4, device)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], other[0])

def global_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

def test_global_random_state_is_neither_used_nor_changed():
    dl = augmented()              # fastai draws a number when a loader is made
    before = global_states()
    for _ in dl: pass
    assert global_states() == before

def test_looking_does_not_change_training():
    a, b = augmented(), augmented()
    a.one_batch()
    a.show_batch(show=False)
    assert same_batches(a, b)

@pytest.fixture
def one_image():
    "The same image four hundred times"
    x = images(1).x.expand(400, -1, -1, -1)
    return Images(x, torch.zeros(400, dtype=torch.int64, device='cpu'), ['a'])

def test_augmentation_is_per_image(one_image):
    x, _ = DeviceLoader(one_image, 400, shuffle=True, augment=True).one_batch()
    assert len(set(as_bytes(x))) > 100          # of 2·9·9 = 162 variants

def test_augmentation_moves_by_up_to_four_pixels(one_image):
    x, _ = DeviceLoader(one_image, 400, shuffle=True, augment=True).one_batch()
    inside = (x > 0).any(1)
    assert inside[:, 4:8, 4:8].all() and 0 < (~inside[:, 0, 0]).float().mean() < 1

@pytest.mark.parametrize('options', [dict(augment=True), dict(shuffle=True)])
def test_augmentation_needs_shuffling_and_to_be_asked_for(one_image, options):
    x, _ = next(iter(DeviceLoader(one_image, 400, **options)))
    assert torch.equal(x, one_image.x)

def test_a_shuffled_epoch_has_every_image_once():
    ds = images(50)
    x = torch.cat([x for x, _ in DeviceLoader(ds, 16, shuffle=True)])
    assert len(x) == 50 and set(as_bytes(x)) == set(as_bytes(ds.x))

def test_epoch_can_be_set():
    a, b = augmented(), augmented()
    for _ in range(2): list(a)
    b.epoch = 2
    assert same_batches(a, b)

def test_many_processes_share_the_images():
    from fastai.distributed import DistributedDL
    dl = DeviceLoader(images(), 8, shuffle=True, augment=True)
    parts = [DistributedDL(dl.new(), rank=r, world_size=2) for r in range(2)]
    for p in parts: p._broadcast = lambda t, rank: list(t)
    ys = [torch.cat([y for _, y in p]) for p in parts]
    assert [len(y) for y in ys] == [30, 30]

# the Learner

@pytest.mark.parametrize('part', range(3))
def test_predictions_keep_the_order(learn, part):
    preds, targs, _ = learn.get_preds(part, with_decoded=True)
    ds = learn.dls[part].dataset
    x = learn.dls.valid.after_batch((ds[:][0],))[0]
    assert torch.equal(targs, ds.y.cpu())
    assert torch.allclose(preds, learn.model(x).softmax(1).cpu(), atol=1e-5)

def test_predictions_of_a_shuffled_loader_keep_the_order(learn):
    dl = learn.dls.train.new(shuffle=True, drop_last=False)
    preds, targs = learn.get_preds(dl=dl)
    assert torch.equal(targs, learn.dls.train_ds.y.cpu()) and torch.equal(preds, learn.get_preds(0)[0])

def test_predicting_leaves_training_alone(learn):
    epoch = learn.dls.train.epoch
    learn.get_preds(0)
    learn.validate(0)
    learn.validate(2)
    learn.show_results(show=False)
    assert learn.dls.train.epoch <= epoch + 1       # validate(0) runs the training loader itself

@pytest.fixture
def same_digit(learn, tmp_path):
    "One test image in twelve ways"
    x = learn.dls.test.dataset.x[7].cpu()
    file = tmp_path/'a.png'
    Image.fromarray(x[0].numpy()).save(file)
    return [file, str(file), Image.open(file), Image.open(file).convert('RGB'), x, x[0], x/255, x.long(),
            x[0].numpy(), x.permute(1, 2, 0).numpy(), x[0].numpy()/255, learn.dls.test.dataset[7][0]]

def test_predict_anything(learn, same_digit):
    want = learn.get_preds(2)[0][7]
    for item in same_digit:
        name, number, probs = learn.predict(item)
        assert torch.allclose(probs, want, atol=1e-5) and int(number) == int(want.argmax())
        assert name == learn.dls.vocab[int(number)]

def test_predict_many_at_once(learn, same_digit):
    preds, targs = learn.get_preds(dl=learn.dls.test_dl(same_digit))
    assert preds.shape == (len(same_digit), 10) and targs is None

def test_predict_a_larger_picture(learn):
    assert learn.predict(np.zeros((50, 30, 3), dtype=np.uint8))[2].shape == (10,)

def test_what_is_no_image_is_refused(learn):
    x = learn.dls.test.dataset.x[7].cpu()
    for bad in (x.float() + 300, x.int() - 1):
        with pytest.raises(ValueError, match='0..255'): learn.predict(bad)
    with pytest.raises(OSError, match='nowhere.png'): learn.predict('nowhere.png')

def test_export_carries_no_images(learn, tmp_path):
    learn.export('e.pkl')
    raw = (tmp_path/'e.pkl').read_bytes()
    assert len(raw) < 60_000          # 650 weights and two transforms; the images are 115 thousand bytes
    for dl in learn.dls.loaders: assert not any(x.cpu().numpy().tobytes() in raw for x in dl.dataset.x[:50])
    assert len(learn.dls.train_ds) == 1293     # exporting leaves the learner's own data alone

def test_an_exported_learner_predicts(learn, tmp_path):
    item = learn.dls.test.dataset.x[0].cpu()
    learn.export('e.pkl')
    back = load_learner(tmp_path/'e.pkl')
    for dl in back.dls.loaders: assert len(dl.dataset) == len(list(dl)) == 0
    assert torch.allclose(back.predict(item)[2], learn.predict(item)[2], atol=1e-5)
    assert back.dls.vocab == learn.dls.vocab

def test_lr_find(learn): assert learn.lr_find(num_it=12, show_plot=False).valley > 0

@pytest.fixture
def figures():
    "Closes figures when a test is over"
    yield
    plt.close('all')

def test_show_batches_and_results(learn, figures):
    learn.dls.show_batch(max_n=4)
    learn.dls.train.show_batch(unique=True, max_n=4)
    learn.dls.test_dl([learn.dls.valid_ds.x[0].cpu()]).show_batch()
    learn.show_results(max_n=4)
    assert len(plt.gcf().axes) == 4

def test_interpretation(learn, figures):
    cm = ClassificationInterpretation.from_learner(learn, ds_idx=2).confusion_matrix()
    assert cm.sum() == 360

SHOW = """
import matplotlib; matplotlib.use('agg')
import sys, tempfile
from prunelab.lab.data import get_dls
assert 'torchvision' not in sys.modules
import fastai.callback.progress
from fastai.learner import Learner
from torch import nn
import matplotlib.pyplot as plt
dls = get_dls('digits')
dls.show_batch(max_n=4)
assert len(plt.gcf().axes) == 4
learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), path=tempfile.gettempdir())
with learn.no_bar(): learn.show_results(max_n=6)
assert len(plt.gcf().axes) == 6
"""

def test_showing_registers_itself():
    "Results show without an import of fastai.vision.learner; our import doesn't bring torchvision's models"
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', SHOW], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

# A tensor made without a device would land on `meta`, and any use of it with the images would fail

@pytest.fixture
def elsewhere():
    "Tensors of nobody's device have no content here"
    with torch.device('meta'): yield

def test_reading_whatever_the_default_device(tmp_path, elsewhere):
    folder = make('mnist', tmp_path)
    read = [read_images('mnist', folder=folder) for _ in range(2)]        # packs, then loads
    read.append(read_images('digits'))
    assert {v.device.type for d in read for v in d.values() if isinstance(v, torch.Tensor)} == {'cpu'}

def test_batches_whatever_the_default_device(elsewhere):
    dl = DeviceLoader(images(), 16, shuffle=True, augment=True, device='cpu')
    assert sorted(y for _, ys in dl for y in ys.tolist()) == sorted(images().y.tolist())

def test_predictions_whatever_the_default_device(tmp_path):
    dls = get_dls('digits', device='cpu')
    learn = Learner(dls, mlp(dls), path=tmp_path)
    with torch.device('meta'), learn.no_bar(), learn.no_logging():
        preds, targs = learn.get_preds(dl=dls.train.new(shuffle=True, drop_last=False))
        probabilities = learn.predict(dls.train_ds.x[0])[2]
    assert torch.equal(targs, dls.train_ds.y) and probabilities.shape == (10,)
    assert torch.equal(preds, learn.get_preds(0)[0])

def test_decode_gives_the_bytes_back(learn):
    x, _ = learn.dls.valid.decode(next(iter(learn.dls.valid)))
    assert (x.cpu().int() - learn.dls.valid_ds.x[:len(x)].cpu().int()).abs().max() <= 1

@pytest.mark.parametrize('copied', [copy.deepcopy, lambda dls: pickle.loads(pickle.dumps(dls))])
def test_copies_and_pickles(learn, copied):
    assert torch.equal(copied(learn.dls).one_batch()[0], learn.dls.one_batch()[0])
