"What prunelab.lab.models promises beyond its page"
import pickle
import numpy as np, pytest, torch
from torch import nn
from prunelab.core import seeded, weights
from prunelab.lab.models import lenet5, lenet300, resnet18, resnet50, vgg16, vgg19

CNNS = [vgg16, vgg19, resnet18, resnet50]
count = lambda net: sum(p.numel() for p in net.parameters())

@pytest.mark.parametrize('f,n', [(lenet300, 266_610), (lenet5, 431_080), (vgg16, 14_728_266), (vgg19, 20_040_522), (resnet18, 11_173_962), (resnet50, 23_520_842)])
def test_parameters(f, n): assert count(f()) == n

@pytest.mark.parametrize('f', CNNS)
@pytest.mark.parametrize('c_in,n_out,size', [(1, 10, 32), (3, 100, 32), (3, 200, 64), (1, 1, 64)])
def test_cnn_shapes(f, c_in, n_out, size):
    net = f(c_in, n_out, width=.1).eval()
    with torch.no_grad(): assert net(torch.randn(2, c_in, size, size)).shape == (2, n_out)

@pytest.mark.parametrize('f,size', [(lenet300, 1), (lenet300, 8), (lenet300, 64), (lenet5, 16), (lenet5, 17), (lenet5, 28), (lenet5, 32), (lenet5, 64)])
@pytest.mark.parametrize('c_in', [1, 3])
def test_lenet_shapes(f, size, c_in): assert f(c_in, 7, size)(torch.randn(2, c_in, size, size)).shape == (2, 7)

@pytest.mark.parametrize('f', CNNS)
def test_width_scales_every_layer(f):
    full, half = weights(f()), weights(f(width=.5))
    assert list(full) == list(half)
    for n, w in list(full.items())[1:-1]: assert half[n].numel()*4 == w.numel(), n

@pytest.mark.parametrize('f', CNNS)
def test_tiny_width_keeps_a_channel(f): assert f(width=1e-6)(torch.randn(2, 3, 64, 64)).shape == (2, 10)

@pytest.mark.parametrize('call,says', [
    (lambda: lenet5(size=15), 'size is 15'), (lambda: lenet300(size=0), 'size is 0'), (lambda: lenet300(c_in=0), 'c_in is 0'),
    (lambda: lenet5(n_out=-1), 'n_out is -1'), (lambda: vgg16(n_out=0), 'n_out is 0'), (lambda: vgg19(c_in='3'), "c_in is '3'"),
    (lambda: resnet18(width=-1), 'width is -1'), (lambda: resnet50(width=float('nan')), 'width is nan'), (lambda: vgg16(width='1'), "width is '1'")])
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
    assert isinstance(net.maxpool, nn.Identity) and net.conv1.stride == (1, 1) and net.conv1.kernel_size == (3, 3)

@pytest.mark.parametrize('f', CNNS)
def test_learns_from_every_weight(f):
    with seeded(3): net, x = f(width=.25), torch.randn(16, 3, 32, 32)
    net(x).logsumexp(1).sum().backward()
    for n, w in weights(net).items(): assert (w.grad == 0).float().mean() < .3, n
