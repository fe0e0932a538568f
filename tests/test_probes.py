"`prunelab.probes`: known variances and gradients, recalibration, and no trace in the network"
from math import inf, isnan, log
import pytest
import torch
from fastai.torch_core import TensorCategory, TensorImage
from torch import nn
from torch.nn import functional as F
from prunelab.core import seeded
from prunelab.probes import (feature_variance, fve, gradient_flow, mean_abs_log, recalibrate_bn,
    variance_ratio)

@pytest.fixture(autouse=True)
def exact():
    "The same sums in the same order, also on CUDA"
    flags = dict(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.backends.cudnn.flags(**flags): yield

class Net(nn.Module):
    "A convolution, BatchNorm, dropout, a classifier, and a layer that never runs"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5)
        self.fc, self.unused = nn.Linear(4*36, 3), nn.Linear(2, 2)

    def forward(self, x): return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))

@pytest.fixture
def net(device):
    with seeded(0), torch.device('cpu'): net = Net()
    return net.to(device)

def images(k, n): return TensorImage((k + 1)*torch.randn(n, 1, 8, 8) + k)
def classes(n): return TensorCategory(torch.randint(3, (n,)))

@pytest.fixture
def dl():
    "Three batches of 8, 8 and 5 on the CPU, of different size and spread"
    with seeded(1), torch.device('cpu'): return [(images(k, n), classes(n)) for k, n in enumerate((8, 8, 5))]

def plain(net, dl):
    device = next(net.parameters()).device
    return [tuple(t.as_subclass(torch.Tensor).to(device) for t in batch) for batch in dl]

def modes_of(net): return {n: m.training for n, m in net.named_modules()}
def snapshot(net): return modes_of(net), {n: t.clone() for n, t in net.state_dict().items()}
def unchanged(net, snap):
    modes, state = snap
    return modes == modes_of(net) and all(torch.equal(t, state[n]) for n, t in net.state_dict().items())

# Variance

def test_variance_by_hand(net, dl):
    V = feature_variance(net, dl)
    assert list(V) == ['conv', 'fc']                                # what did not run is not in it
    net.eval()
    with torch.no_grad():
        z = [(net.conv(x).double(), net(x).double()) for x, _ in plain(net, dl)]
    conv = sum(sum(c[:, i].reshape(-1).var().item() for i in range(4)) for c, _ in z)/3
    fc = sum(f.var(0).sum().item() for _, f in z)/3
    assert abs(V['conv']/conv - 1) < 1e-4 and abs(V['fc']/fc - 1) < 1e-4

def test_tokens_have_their_channel_last():
    with seeded(0): net, x = nn.Sequential(nn.Linear(5, 3)), torch.randn(4, 7, 5)
    with torch.no_grad(): want = net(x).reshape(28, 3).double().var(0).sum().item()
    assert abs(feature_variance(net, [(x, x)])['0'] - want) < 1e-5

def test_half_precision_does_not_overflow(device):
    net = nn.Linear(1, 1, bias=False).half().to(device)
    x = torch.tensor([[0.], [1000.], [2000.]], dtype=torch.half)
    with torch.no_grad(): net.weight.fill_(1)
    assert feature_variance(net, [(x, x)]) == {'': 1e6}

# No trace

@pytest.fixture
def half_frozen(net):
    "In training mode but for its BatchNorm, with a gradient and a layer that takes none"
    net.train()
    net.bn.eval()
    net.conv.weight.requires_grad_(False)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    return net

def test_probes_leave_no_trace(half_frozen, dl):
    net = half_frozen
    snap, rng = snapshot(net), torch.get_rng_state()
    a = feature_variance(net, dl), gradient_flow(net, dl, F.cross_entropy)
    assert unchanged(net, snap) and torch.equal(rng, torch.get_rng_state())
    again = feature_variance(net, dl), gradient_flow(net, dl, F.cross_entropy)
    assert a == again                                                # no dropout, no statistics
    assert bool((net.fc.weight.grad == 1).all()) and net.conv.weight.grad is None
    assert not any(m._forward_hooks for m in net.modules())

def test_a_probe_that_fails_leaves_no_trace(half_frozen, dl):
    snap = snapshot(half_frozen)
    short = [(x[:1], y[:1]) for x, y in dl]
    with pytest.raises(ValueError, match='short last batch'): feature_variance(half_frozen, short)
    assert unchanged(half_frozen, snap) and not any(m._forward_hooks for m in half_frozen.modules())

# Ratios

def test_ratio_averages_first():
    pruned, dense = [{'a': 1., 'b': 2.}, {'a': 3., 'b': 2.}], ({'a': 8., 'b': 1.}, {'a': 0., 'b': 1.})
    r = variance_ratio(pruned, dense)
    assert r == {'a': .5, 'b': 2.} and fve(r) == 1.25 and abs(mean_abs_log(r) - log(2)) < 1e-12

def test_dead_layers():
    r = variance_ratio({'a': 0., 'b': 1., 'c': 0.}, {'a': 1., 'b': 0., 'c': 0.})
    assert r['a'] == 0 and r['b'] == inf and isnan(r['c'])
    assert mean_abs_log({'a': 0., 'b': 1.}) == inf and mean_abs_log({'a': 1.}) == 0

# Gradient

def test_flow_is_the_gradient_of_the_mean_loss(net, dl):
    got = gradient_flow(net, dl, F.cross_entropy)
    part = gradient_flow(net, dl, F.cross_entropy, exclude='conv')
    net.eval()
    xs, ys = [torch.cat(t) for t in zip(*plain(net, dl))]
    F.cross_entropy(net(xs), ys).backward()
    fc, conv = net.fc.weight.grad.norm().item(), net.conv.weight.grad.norm().item()
    assert abs(got/(fc**2 + conv**2)**.5 - 1) < 1e-4 and abs(part/fc - 1) < 1e-4

@pytest.mark.parametrize('n, batches', [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (5000, 3)])
def test_flow_stops_after_n_samples(net, dl, n, batches):
    cut = gradient_flow(net, dl[:batches], F.cross_entropy)
    assert gradient_flow(net, dl, F.cross_entropy, n=n) == cut

def test_pruned_positions_count(net, dl):
    with torch.no_grad(): net.fc.weight.zero_()
    assert gradient_flow(net, dl, F.cross_entropy, exclude='conv') > 0

# Recalibration

def test_recalibration_is_the_plain_average(net, dl):
    assert recalibrate_bn(net, dl) is net
    with torch.no_grad(): z = [net.conv(x).transpose(0, 1).flatten(1) for x, _ in plain(net, dl)]
    close = dict(atol=1e-4, rtol=1e-4)
    assert torch.allclose(net.bn.running_mean, sum(t.mean(1) for t in z)/3, **close)
    assert torch.allclose(net.bn.running_var, sum(t.var(1) for t in z)/3, **close)

def test_recalibration_changes_statistics_alone(net, dl):
    net.train()
    net.bn.eval()
    modes, state = snapshot(net)
    recalibrate_bn(net, dl)
    assert modes == modes_of(net) and net.bn.momentum == .1
    others = {n: t for n, t in net.state_dict().items() if 'running' not in n and 'tracked' not in n}
    assert all(torch.equal(t, state[n]) for n, t in others.items())
    assert all(p.grad is None for p in net.parameters())

@pytest.mark.parametrize('n', [1, 2])
def test_recalibration_takes_some_batches(net, dl, n):
    mean = recalibrate_bn(net, dl, n).bn.running_mean.clone()
    assert torch.equal(mean, recalibrate_bn(net, dl[:n]).bn.running_mean)
    assert not torch.equal(mean, recalibrate_bn(net, dl).bn.running_mean)

def test_dropout_before_a_norm_stays_off(device):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(.9), nn.BatchNorm1d(4)).to(device)
    x = torch.randn(64, 4).to(device)
    recalibrate_bn(net, [(x, x)])
    with torch.no_grad(): assert torch.allclose(net[2].running_mean, net[0](x).mean(0), atol=1e-5)

def test_a_refused_recalibration(net, dl):
    net.train()
    snap = snapshot(net)
    with pytest.raises(ValueError, match='no batch'): recalibrate_bn(net, [])
    with pytest.raises(ValueError, match='at least 1'): recalibrate_bn(net, dl, 0)
    assert unchanged(net, snap) and net.bn.momentum == .1

def test_a_recalibration_that_fails_on_its_way(net, dl):
    modes = modes_of(net)
    with pytest.raises(RuntimeError): recalibrate_bn(net, [*dl, (torch.zeros(2, 5), dl[0][1])])
    assert net.bn.momentum == .1 and modes == modes_of(net)

def test_norms_without_statistics():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    x, snap = torch.randn(8, 3), snapshot(net)
    recalibrate_bn(net, [(x, x)])
    assert unchanged(net, snap)

# Refused

REFUSED = {
    'no such layer': (lambda net, dl: feature_variance(nn.ReLU(), dl), 'no layer'),
    'no data': (lambda net, dl: feature_variance(net, []), 'no batch'),
    'no data for a gradient': (lambda net, dl: gradient_flow(net, [], F.cross_entropy), 'no batch'),
    'unknown name': (lambda net, dl: gradient_flow(net, dl, F.cross_entropy, exclude='head'), 'matches none'),
    'other layers': (lambda net, dl: variance_ratio({'a': 1.}, {'b': 1.}), 'different layers')}

@pytest.mark.parametrize('what', REFUSED)
def test_refused(net, dl, what):
    call, says = REFUSED[what]
    with pytest.raises(ValueError, match=says): call(net, dl)

@pytest.mark.parametrize('layer, shape', [
    (nn.Conv1d(4, 3, 1), (8, 4, 5)), (nn.Conv3d(4, 3, 1), (8, 4, 2, 3, 5)),
    (nn.ConvTranspose2d(4, 3, 1), (8, 4, 5, 5)), (nn.BatchNorm2d(4), (8, 4, 5, 5)),
    (nn.GroupNorm(2, 4), (8, 4, 5)), (nn.LayerNorm(5), (8, 4, 5))])
def test_channels_are_where_the_layer_has_them(layer, shape):
    with seeded(0): x = torch.randn(shape)
    out = layer.eval()(x).detach()
    last = isinstance(layer, nn.LayerNorm)
    right = (out if last else out.movedim(1, -1)).flatten(0, -2).var(0).sum()
    found = feature_variance(nn.Sequential(layer), [(x, x)], layers=(type(layer),))
    assert found['0'] == pytest.approx(right.item(), rel=1e-5)

@pytest.mark.parametrize('batches', [[1], [8, 1]])
def test_a_failed_recalibration_leaves_the_old_statistics(batches):
    "A batch of one item has no variance"
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with seeded(0): net(torch.randn(64, 4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match='more than 1 value'):
        recalibrate_bn(net, [(torch.randn(n, 4), torch.zeros(n)) for n in batches])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[1].momentum == .1 and net.training and net[1].training
