"What prunelab.lab.images and prunelab.lab.data promise beyond their pages"
import copy, pickle, random, subprocess, sys
import numpy as np, pytest, torch
import fastai.callback.schedule    # learn.lr_find
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.torch_core import TensorCategory, TensorImage, TensorImageBW
from PIL import Image
from torch import nn
from prunelab.lab import images as reading
from prunelab.core import generator, seeded
from prunelab.lab.data import DeviceLoader, Images, get_dls
from prunelab.lab.images import read_images

LAYOUT = {   # name: number of classes, folder of a class in training and in test, ending
    'mnist': (10, 'training/{}', 'testing/{}', 'png'), 'cifar10': (10, 'train/{}', 'test/{}', 'png'),
    'cifar100': (100, 'train/super/{}', 'test/super/{}', 'png'), 'tiny_imagenet': (200, 'train/n{}/images', None, 'JPEG')}

def make(name, root, per_class=3, size=None):
    "A folder in the layout of `name`; each image is one colour, 2·class (training) or 2·class + 1 (test)"
    n, train, test, ext = LAYOUT[name]
    size = size or reading._SETS[name][3]
    folder, rows = root/name, []
    def save(path, level, mode):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size, size), level if mode == 'L' else (level, 0, 255)).save(path)
    for k in range(n):
        colour = 'L' if name == 'mnist' or (name == 'tiny_imagenet' and k % 7 == 0) else 'RGB'
        for i in range(per_class): save(folder/train.format(k)/f'{k}_{i}.{ext}', 2*k % 256, colour)
        if test: save(folder/test.format(k)/f't.{ext}', (2*k + 1) % 256, colour)
        else:
            save(folder/f'val/images/val_{k}.{ext}', (2*k + 1) % 256, colour)
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

# reading

@pytest.mark.parametrize('name', LAYOUT)
def test_layouts(name, tmp_path):
    folder, (n, *_) = make(name, tmp_path), LAYOUT[name]
    d, (_, _, c, size, *_) = read_images(name, folder=folder), reading._SETS[name]
    assert d['x_train'].shape == (3*n, c, size, size) and d['x_test'].shape == (n, c, size, size) and d['x_train'].dtype == torch.uint8
    assert len(d['vocab']) == n and d['y_train'].bincount().tolist() == [3]*n and d['y_test'].sort()[0].tolist() == [*range(n)]
    for part, odd in (('train', 0), ('test', 1)):      # the colour tells the class: every label belongs to its image
        level = torch.tensor([int(d['vocab'][y].removeprefix('n')) for y in d[f'y_{part}']], device='cpu')*2 % 256 + odd
        near = (d[f'x_{part}'][:, 0, 0, 0].int() - level).abs() % 256
        assert (near.minimum(256 - near) <= (3 if name == 'tiny_imagenet' else 0)).all()
    if name == 'tiny_imagenet': assert (d['x_test'][d['vocab'].index('n7'), 0] == d['x_test'][d['vocab'].index('n7'), 2]).all()   # grey becomes RGB

@pytest.mark.parametrize('name,size', [('mnist', 32), ('cifar10', 16), ('digits', 28)])
def test_resized_once_per_size(name, size, tmp_path):
    folder = None if name == 'digits' else make(name, tmp_path)
    assert read_images(name, size, folder)['x_train'].shape[-2:] == (size, size)
    if folder: assert [o.name for o in tmp_path.glob('*.safetensors')] == [f'{name}-{size}px.safetensors']

def test_written_once_and_whole(tmp_path, monkeypatch):
    folder = make('mnist', tmp_path)
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(reading.os, 'replace', killed); read_images('mnist', folder=folder)
    assert [o.name for o in tmp_path.iterdir()] == ['mnist']
    a = read_images('mnist', folder=folder)
    monkeypatch.setattr(reading, '_pack', None)
    b = read_images('mnist', folder=folder)
    assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)

def test_damaged_and_foreign_files(tmp_path):
    folder, cache = make('mnist', tmp_path), tmp_path/'mnist-28px.safetensors'
    read_images('mnist', folder=folder)
    whole = cache.read_bytes()
    (tmp_path/'mnist-32px.safetensors').write_bytes(whole)
    with pytest.raises(ValueError, match='mnist-32px.*not mnist at 32 pixels'): read_images('mnist', 32, folder)
    for bad in (whole[:-1], whole[:100], b'', b'something else'):
        cache.write_bytes(bad)
        with pytest.raises(ValueError, match='mnist-28px.safetensors is damaged'): read_images('mnist', folder=folder)
    from safetensors.torch import save_file
    for meta in (None, {'a': 'b'}, {'prunelab': 'no json'}, {'prunelab': '[]'}):
        save_file({'x': torch.zeros(1, device='cpu')}, cache, meta)
        with pytest.raises(ValueError, match='mnist-28px.safetensors is damaged'): read_images('mnist', folder=folder)

def test_broken_folders_name_the_file(tmp_path):
    folder = make('cifar10', tmp_path)
    bad = folder/'test/3/t.png'
    good = bad.read_bytes(); bad.write_bytes(good[:-30])
    with pytest.raises(OSError, match='test/3/t.png is not a readable image'): read_images('cifar10', folder=folder)
    bad.unlink()
    with pytest.raises(FileNotFoundError, match=r"test/\*/\*.png has images of 9 classes, cifar10 has 10; missing: \['3'\]"): read_images('cifar10', folder=folder)
    with pytest.raises(FileNotFoundError, match='nowhere'): read_images('cifar10', folder=tmp_path/'nowhere')
    tiny = make('tiny_imagenet', tmp_path, 1, 8)
    (tiny/'val/val_annotations.txt').unlink()
    with pytest.raises(FileNotFoundError, match='val_annotations.txt'): read_images('tiny_imagenet', folder=tiny)

@pytest.mark.parametrize('name', LAYOUT)
def test_no_network_no_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, 'fastai_path', lambda kind: tmp_path/kind)
    def offline(url): raise OSError('no route to host')
    monkeypatch.setattr(reading, 'untar_data', offline)
    with pytest.raises(FileNotFoundError) as e: get_dls(name)
    for part in (str(tmp_path/'data'), 'no route to host', 'unpack', reading._SETS[name][0]): assert part in str(e.value)

def test_statistics_are_exact():
    x = torch.randint(0, 256, (50, 3, 9, 9), dtype=torch.uint8, generator=generator(0, 'cpu'), device='cpu')
    mean, std = reading._stats(x)
    x = x.double()/255
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-12); np.testing.assert_allclose(std, x.std((0, 2, 3), correction=0), rtol=1e-9)
    assert reading._stats(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))[1][0] == pytest.approx(1/255)

# splitting

def test_split_is_clean_and_stratified():
    d, dls = read_images('digits'), get_dls('digits', valid=200, bs=32)
    rows = lambda *xs: sorted(bytes(o.flatten().tolist()) for x in xs for o in x)
    assert [len(o.dataset) for o in dls.loaders] == [1237, 200, 360]
    assert rows(dls.train.dataset.x, dls.valid.dataset.x) == rows(d['x_train']) and torch.equal(dls.test.dataset.x.cpu(), d['x_test'])
    share = lambda y: y.cpu().bincount().double()/len(y)
    assert (share(dls.valid.dataset.y) - share(d['y_train'])).abs().max() < .01
    small = get_dls('digits', valid=200, n_train=100, bs=32)
    assert len(small.train_ds) == 100 and torch.equal(small.valid_ds.x, dls.valid_ds.x) and small.train_ds.y.bincount().min() >= 9
    other = get_dls('digits', valid=200, seed=1)
    assert not torch.equal(other.valid_ds.x, dls.valid_ds.x) and torch.equal(other.test.dataset.x, dls.test.dataset.x)

@pytest.mark.parametrize('kw', [dict(name='cifar'), dict(name=None), dict(valid=0), dict(valid=1.), dict(valid=-.1), dict(valid='x'), dict(valid=5), dict(valid=1430),
    dict(bs=0), dict(bs=-1), dict(bs=2.5), dict(bs=1294), dict(bs=None), dict(size=0), dict(size=2.5), dict(size='8'), dict(n_train=3), dict(n_train=5000), dict(seed=-1)])
def test_bad_arguments(kw):
    with pytest.raises(ValueError) as e: get_dls(**{'name': 'digits', **kw})
    assert repr([*kw.values()][0]).strip("'") in str(e.value)

# batches

def test_types_shapes_and_length(device):
    dls = get_dls('digits', bs=100, device=device)
    x, y = dls.one_batch()
    assert type(x) is TensorImageBW and type(y) is TensorCategory and x.shape == (100, 1, 8, 8) and x.dtype == torch.float32 and x.device.type == device
    assert [len(list(o)) for o in dls.loaders] == [len(o) for o in dls.loaders] == [12, 2, 4]
    assert dls.c == 10 and list(dls.vocab) == list('0123456789') and dls.n_inp == 1
    assert torch.equal(torch.cat([y for _, y in dls.test]), dls.test.dataset.y)

def test_colour_and_greyscale_types(tmp_path):
    dls = get_dls('cifar10', bs=8, folder=make('cifar10', tmp_path), valid=10)
    assert type(dls.one_batch()[0]) is TensorImage and dls.train.augment and not dls.valid.augment
    assert not get_dls('digits').train.augment and not get_dls('cifar10', bs=8, folder=tmp_path/'cifar10', valid=10, augment=False).train.augment

def images(n=60, c=3, size=12):
    with seeded(0): return Images(torch.randint(1, 256, (n, c, size, size), dtype=torch.uint8, device='cpu'), torch.arange(n, device='cpu') % 4, list('abcd'))

def test_two_runs_agree_and_epochs_differ(device):
    run = lambda seed=3, k=2: [[x.as_subclass(torch.Tensor).cpu() for x, _ in dl] for dl in [DeviceLoader(images(), 16, shuffle=True, seed=seed, augment=True, device=device)] for _ in range(k)]
    a, b = run(), run()
    assert all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q)) and len(a[0]) == 4
    assert not torch.equal(a[0][0], a[1][0]) and not torch.equal(a[0][0], run(4)[0][0])

def test_global_random_state_is_neither_used_nor_changed():
    dl = DeviceLoader(images(), 16, shuffle=True, augment=True)
    states = lambda: (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    before = states()
    for _ in dl: pass
    assert states() == before

def test_looking_does_not_change_training():
    a, b = (DeviceLoader(images(), 16, shuffle=True, augment=True) for _ in range(2))
    a.one_batch(); a.show_batch(show=False)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(a, b))

def test_augmentation_is_per_image_and_only_while_shuffling():
    one = Images(images(1).x.expand(400, -1, -1, -1), torch.zeros(400, dtype=torch.int64, device='cpu'), ['a'])
    x, _ = DeviceLoader(one, 400, shuffle=True, augment=True).one_batch()
    assert len({bytes(o.flatten().tolist()) for o in x}) > 100          # of 2·9·9 = 162 variants
    inside = (x > 0).any(1)
    assert inside[:, 4:8, 4:8].all() and 0 < (~inside[:, 0, 0]).float().mean() < 1
    assert torch.equal(next(iter(DeviceLoader(one, 400, augment=True)))[0], one.x)
    assert torch.equal(next(iter(DeviceLoader(one, 400, shuffle=True)))[0], one.x)

def test_a_shuffled_epoch_has_every_image_once():
    ds = images(50)
    got = torch.cat([x for x, _ in DeviceLoader(ds, 16, shuffle=True)])
    assert len(got) == 50 and {bytes(o.flatten().tolist()) for o in got} == {bytes(o.flatten().tolist()) for o in ds.x}

def test_epoch_can_be_set():
    a, b = (DeviceLoader(images(), 16, shuffle=True, augment=True) for _ in range(2))
    list(a); list(a); b.epoch = 2
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(a, b))

def test_many_processes_share_the_images():
    from fastai.distributed import DistributedDL
    dl = DeviceLoader(images(), 8, shuffle=True, augment=True)
    parts = [DistributedDL(dl.new(), rank=r, world_size=2) for r in range(2)]
    for p in parts: p._broadcast = lambda t, rank: list(t)
    ys = [torch.cat([y for _, y in p]) for p in parts]
    assert [len(y) for y in ys] == [30, 30]

# the Learner

def test_predictions_keep_the_order(learn):
    for i in range(3):
        preds, targs, dec = learn.get_preds(i, with_decoded=True)
        ds = learn.dls[i].dataset
        assert torch.equal(targs, ds.y.cpu())
        x = learn.dls.valid.after_batch((ds[:][0],))[0]
        assert torch.allclose(preds, learn.model(x).softmax(1).cpu(), atol=1e-5)
    dl = learn.dls.train.new(shuffle=True, drop_last=False)
    assert torch.equal(learn.get_preds(dl=dl)[1], learn.dls.train_ds.y.cpu())
    assert torch.equal(learn.get_preds(dl=dl)[0], learn.get_preds(0)[0])

def test_predicting_leaves_training_alone(learn):
    epoch = learn.dls.train.epoch
    learn.get_preds(0); learn.validate(0); learn.validate(2); learn.show_results(show=False)
    assert learn.dls.train.epoch <= epoch + 1       # validate(0) runs the training loader itself

def test_predict_anything(learn, tmp_path):
    x = learn.dls.test.dataset.x[7].cpu()
    Image.fromarray(x[0].numpy()).save(tmp_path/'a.png')
    items = [tmp_path/'a.png', str(tmp_path/'a.png'), Image.open(tmp_path/'a.png'), Image.open(tmp_path/'a.png').convert('RGB'), x, x[0], x/255, x.long(),
             x[0].numpy(), x.permute(1, 2, 0).numpy(), x[0].numpy()/255, learn.dls.test.dataset[7][0]]
    want = learn.get_preds(2)[0][7]
    for o in items:
        name, number, probs = learn.predict(o)
        assert torch.allclose(probs, want, atol=1e-5) and name == learn.dls.vocab[int(number)] and int(number) == int(want.argmax())
    preds, targs = learn.get_preds(dl=learn.dls.test_dl(items))
    assert preds.shape == (len(items), 10) and targs is None
    assert learn.predict(np.zeros((50, 30, 3), dtype=np.uint8))[2].shape == (10,)
    for bad in (x.float() + 300, x.int() - 1):
        with pytest.raises(ValueError, match='0..255'): learn.predict(bad)
    with pytest.raises(OSError, match='nowhere.png'): learn.predict('nowhere.png')

def test_export_carries_no_images(learn, tmp_path):
    learn.export('e.pkl')
    raw, item = (tmp_path/'e.pkl').read_bytes(), learn.dls.test.dataset.x[0].cpu()
    assert len(raw) < 60_000          # 650 weights and two transforms; the images are 115 thousand bytes
    for ds in (o.dataset for o in learn.dls.loaders): assert not any(o.cpu().numpy().tobytes() in raw for o in ds.x[:50])
    back = load_learner(tmp_path/'e.pkl')
    assert [len(o.dataset) for o in back.dls.loaders] == [0, 0, 0] and [len(list(o)) for o in back.dls.loaders] == [0, 0, 0]
    assert torch.allclose(back.predict(item)[2], learn.predict(item)[2], atol=1e-5) and back.dls.vocab == learn.dls.vocab
    assert len(learn.dls.train_ds) == 1293     # exporting leaves the learner's own data alone

def test_lr_find_show_and_interpret(learn):
    import matplotlib.pyplot as plt
    assert learn.lr_find(num_it=12, show_plot=False).valley > 0
    learn.dls.show_batch(max_n=4); learn.dls.train.show_batch(unique=True, max_n=4); learn.show_results(max_n=4)
    assert len(plt.gcf().axes) == 4
    plt.close('all')
    learn.dls.test_dl([learn.dls.valid_ds.x[0].cpu()]).show_batch()
    cm = ClassificationInterpretation.from_learner(learn, ds_idx=2).confusion_matrix()
    assert cm.sum() == 360
    plt.close('all')

def test_showing_registers_itself():
    "`show_results` works without anyone importing fastai.vision.learner, and importing prunelab.lab.data does not import torchvision's models"
    code = ("import matplotlib; matplotlib.use('agg')\nimport sys, tempfile\nfrom prunelab.lab.data import get_dls\nassert 'torchvision' not in sys.modules\n"
        "import fastai.callback.progress\nfrom fastai.learner import Learner\nfrom torch import nn\nimport matplotlib.pyplot as plt\ndls = get_dls('digits')\ndls.show_batch(max_n=4)\nassert len(plt.gcf().axes) == 4\n"
        "learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), path=tempfile.gettempdir())\n"
        "with learn.no_bar(): learn.show_results(max_n=6)\nassert len(plt.gcf().axes) == 6")
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

def test_whatever_the_default_device(tmp_path):
    "A tensor made without a device would land on `meta`, and any use of it with the images would fail"
    folder = make('mnist', tmp_path)
    with torch.device('cpu'):
        dls = get_dls('digits', device='cpu')
        learn = Learner(dls, mlp(dls), path=tmp_path)
    with torch.device('meta'), learn.no_bar(), learn.no_logging():
        for _ in range(2): d = read_images('mnist', folder=folder)        # packs, then loads
        assert {o.device.type for o in [*d.values(), *read_images('digits').values()] if isinstance(o, torch.Tensor)} == {'cpu'}
        dl = DeviceLoader(images(), 16, shuffle=True, augment=True, device='cpu')
        assert sorted(y for _, ys in dl for y in ys.tolist()) == sorted(images().y.tolist())
        preds, targs = learn.get_preds(dl=dls.train.new(shuffle=True, drop_last=False))
        assert torch.equal(targs, dls.train_ds.y) and learn.predict(dls.train_ds.x[0])[2].shape == (10,)
    assert torch.equal(preds, learn.get_preds(0)[0])

def test_decode_gives_the_bytes_back(learn):
    x, y = learn.dls.valid.decode(next(iter(learn.dls.valid)))
    assert (x.cpu().int() - learn.dls.valid_ds.x[:len(x)].cpu().int()).abs().max() <= 1

def test_copies_and_pickles(learn):
    for dls in (copy.deepcopy(learn.dls), pickle.loads(pickle.dumps(learn.dls))):
        assert torch.equal(dls.one_batch()[0], learn.dls.one_batch()[0])
