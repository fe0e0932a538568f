"What prunelab.lab.models promises beyond its page"
import pickle

import numpy as np, pytest, torch
from fastai.data.external import fastai_path
from safetensors.torch import save_file
from torch import nn

from prunelab.core import seeded, weights
from prunelab.lab import models
from prunelab.lab.answers import answers
from prunelab.lab.data import get_dls
from prunelab.lab.models import (NETWORKS, PUBLIC, PUBLIC_STATS, UNPRUNED, lenet5, lenet300, public_weights,
    resnet18, resnet20, resnet32, resnet44, resnet50, resnet56, vgg16, vgg19)

CIFAR = [resnet20, resnet32, resnet44, resnet56]
CNNS = [vgg16, vgg19, resnet18, resnet50, resnet20, resnet56]
PARAMETERS = {
    'lenet300': 266_610, 'lenet5': 431_080, 'vgg16': 14_728_266, 'vgg19': 20_040_522,
    'resnet18': 11_173_962, 'resnet50': 23_520_842,
    'resnet20': 269_722, 'resnet32': 464_154, 'resnet44': 658_586, 'resnet56': 853_018}

def count(net): return sum(p.numel() for p in net.parameters())

@pytest.mark.parametrize('name', NETWORKS)
def test_parameters(name): assert count(NETWORKS[name]()) == PARAMETERS[name]

@pytest.mark.parametrize('f', CNNS)
@pytest.mark.parametrize('c_in,n_out,size', [(1, 10, 32), (3, 100, 32), (3, 200, 64), (1, 1, 64)])
def test_cnn_shapes(f, c_in, n_out, size):
    net = f(c_in, n_out, width=.1).eval()
    with torch.no_grad(): assert net(torch.randn(2, c_in, size, size)).shape == (2, n_out)

LENETS = [(lenet300, 1), (lenet300, 8), (lenet300, 64), *((lenet5, size) for size in (16, 17, 28, 32, 64))]

@pytest.mark.parametrize('f,size', LENETS)
@pytest.mark.parametrize('c_in', [1, 3])
def test_lenet_shapes(f, size, c_in):
    assert f(c_in, 7, size)(torch.randn(2, c_in, size, size)).shape == (2, 7)

@pytest.mark.parametrize('f', CNNS)
def test_width_scales_every_layer(f):
    full, half = weights(f()), weights(f(width=.5))
    assert list(full) == list(half)
    for n, w in list(full.items())[1:-1]: assert half[n].numel()*4 == w.numel(), n

@pytest.mark.parametrize('f', CNNS)
def test_tiny_width_keeps_a_channel(f): assert f(width=1e-6)(torch.randn(2, 3, 64, 64)).shape == (2, 10)

BAD = [
    (lambda: lenet5(size=15), 'size is 15'), (lambda: lenet300(size=0), 'size is 0'),
    (lambda: lenet300(c_in=0), 'c_in is 0'), (lambda: lenet5(n_out=-1), 'n_out is -1'),
    (lambda: vgg16(n_out=0), 'n_out is 0'), (lambda: vgg19(c_in='3'), "c_in is '3'"),
    (lambda: resnet18(width=-1), 'width is -1'), (lambda: resnet50(width=float('nan')), 'width is nan'),
    (lambda: vgg16(width='1'), "width is '1'"), (lambda: resnet20(width=0), 'width is 0'),
    (lambda: resnet56(n_out=0), 'n_out is 0')]

@pytest.mark.parametrize('call,says', BAD)
def test_bad_arguments(call, says):
    with pytest.raises(ValueError, match=says): call()

def test_numpy_integers_are_numbers(): assert count(lenet300(n_out=np.int64(10))) == 266_610

@pytest.mark.parametrize('f', [lenet300, lenet5, *CNNS])
def test_repeatable_and_pickles(f):
    kw = dict(width=.1) if f in CNNS else {}
    with seeded(1): a = f(**kw)
    with seeded(1): b = f(**kw)
    b = pickle.loads(pickle.dumps(b))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

@pytest.mark.parametrize('f', [resnet18, resnet50])
def test_small_stem_has_no_downsampling(f):
    net = f()
    assert isinstance(net.maxpool, nn.Identity)
    assert net.conv1.stride == (1, 1) and net.conv1.kernel_size == (3, 3)

@pytest.mark.parametrize('f', CNNS)
def test_learns_from_every_weight(f):
    with seeded(3): net, x = f(width=.25), torch.randn(16, 3, 32, 32)
    net(x).logsumexp(1).sum().backward()
    for n, w in weights(net).items(): assert (w.grad == 0).float().mean() < .3, n

# ResNets for CIFAR

@pytest.mark.parametrize('f,n', zip(CIFAR, (3, 5, 7, 9)))
def test_cifar_resnets_have_6n_plus_2_layers(f, n):
    assert len(weights(f())) == 6*n + 2

def test_the_shortcut_has_no_weights():
    "With all convolutions at zero, a block that narrows gives its input, subsampled, between zeros"
    block = resnet20().layer2[0].eval()
    for w in weights(block).values(): nn.init.zeros_(w)
    with seeded(0): x = torch.rand(2, 16, 8, 8)
    with torch.no_grad(): out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()

def test_an_odd_number_of_new_channels():
    with seeded(0): net, x = resnet20(width=.2), torch.randn(2, 3, 16, 16)       # 3, 6 and 13 channels
    assert net(x).shape == (2, 10)

# Names

@pytest.mark.parametrize('name', NETWORKS)
def test_what_is_not_pruned_is_first_and_last(name):
    net = NETWORKS[name]()
    names = list(weights(net))
    left = list(weights(net, UNPRUNED[name]))
    assert left == (names if 'lenet' in name else names[1:-1])

def test_every_table_has_the_same_names():
    assert list(UNPRUNED) == list(NETWORKS) and set(PUBLIC) < set(NETWORKS)

# Public weights

def published(path, network='resnet20', seed=0):
    "A file in the shape of the published ones, with the weights of a fresh network"
    with seeded(seed): net = NETWORKS[network]()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save({'best_prec1': 92., 'state_dict': {f'module.{k}': v for k, v in state.items()}}, path)
    return net

def same(net, state):
    want = net.state_dict()
    return list(want) == list(state) and all(torch.equal(want[k], v) for k, v in state.items())

@pytest.fixture
def home(tmp_path, monkeypatch):
    "fastai's folders are empty ones"
    monkeypatch.setattr(models, 'fastai_path', lambda kind: tmp_path/kind)
    (tmp_path/'model').mkdir()
    return tmp_path/'model'

def test_public_weights_from_a_path(tmp_path):
    net = published(tmp_path/'a.th')
    assert same(net, public_weights('resnet20', tmp_path/'a.th'))
    assert same(net, public_weights('resnet20', str(tmp_path/'a.th')))

def test_public_weights_from_the_model_folder(home):
    net = resnet32()
    save_file(net.state_dict(), home/'resnet32-cifar10.safetensors')
    assert same(net, public_weights('resnet32'))

def test_public_weights_are_fetched_and_checked(home, monkeypatch, tmp_path):
    net, asked = published(tmp_path/'a.th'), {}
    def fetch(url, **kwargs):
        asked.update(url=url, **kwargs)
        return torch.load(tmp_path/'a.th', weights_only=True)
    monkeypatch.setattr(models, 'load_state_dict_from_url', fetch)
    assert same(net, public_weights('resnet20'))
    assert asked['url'].endswith('pytorch_resnet_cifar10/raw/master/pretrained_models/resnet20-12fca82f.th')
    assert asked['check_hash'] and asked['weights_only'] and asked['model_dir'] == str(home)

def test_another_file_at_the_address_is_refused(home, monkeypatch, tmp_path):
    "The real download, from a file instead of the network: its hash is not the one in the name"
    (tmp_path/'web').mkdir()
    published(tmp_path/'web'/PUBLIC['resnet20'])
    monkeypatch.setattr(models, 'PUBLIC_ADDRESS', (tmp_path/'web').as_uri() + '/')
    with pytest.raises(FileNotFoundError, match='invalid hash value'): public_weights('resnet20')

def test_without_file_and_network_the_error_says_what_to_do(home, monkeypatch):
    def fetch(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(models, 'load_state_dict_from_url', fetch)
    with pytest.raises(FileNotFoundError) as e: public_weights('resnet56')
    file = str(home/'resnet56-cifar10.safetensors')
    for part in ('resnet56-4bfd9763.th', 'no route to host', file, 'Download'): assert part in str(e.value)

def test_wrong_and_damaged_files_are_named(tmp_path):
    file = tmp_path/'a.th'
    published(file, 'resnet32')
    with pytest.raises(ValueError, match='a.th does not hold a resnet20'): public_weights('resnet20', file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match='a.th is damaged'): public_weights('resnet32', file)
    with pytest.raises(FileNotFoundError, match='b.th'): public_weights('resnet32', tmp_path/'b.th')
    with pytest.raises(ValueError, match="no public weights of 'lenet5'"): public_weights('lenet5')

MEASURED = {'resnet20': 9173, 'resnet56': 9339}    # of 10,000 test images, in float32

@pytest.mark.parametrize('network', MEASURED)
def test_public_networks_are_right_as_often_as_published(network):
    "Only where the file of weights and the packed images are: elsewhere the tests above are all there is"
    weights_file = fastai_path('model')/f'{network}-cifar10.safetensors'
    images_file = fastai_path('data')/'cifar10-32px.safetensors'
    if not (weights_file.exists() and images_file.exists()):
        pytest.skip(f'needs {weights_file} and {images_file}')
    net = NETWORKS[network]()
    net.load_state_dict(public_weights(network))
    dls = get_dls('cifar10', bs=500, device='cpu', stats=PUBLIC_STATS)
    assert int(answers(net, dls.test).sum()) == MEASURED[network]
