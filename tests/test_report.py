"What prunelab.report promises beyond its page"
import copy
import gzip
import warnings
import pandas as pd
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from prunelab.core import seeded, weights
from prunelab.lab.models import lenet5, resnet18
from prunelab.probes import feature_variance
from prunelab.report import REST, macs, plot_layers, sizes, sparse_bytes, stored, table

@pytest.fixture
def net():
    "LeNet-5, half of its largest layer 0"
    with seeded(0): net = lenet5()
    with torch.no_grad(): net.fc1.weight[::2] = 0
    return net

IMAGE = torch.zeros(1, 1, 28, 28)

# MACs

def test_macs_of_lenet5_by_hand(net):
    m = macs(net, torch.zeros(9, 1, 28, 28))['MACs']
    assert m.to_dict() == {'conv1.weight': 24*24*20*25, 'conv2.weight': 8*8*50*20*25, 'fc1.weight': 800*500,
                           'fc2.weight': 5000, REST: 0}

@pytest.mark.parametrize('layer,shape,expected', [
    (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 9, 9), 5*5*8*2*9),
    (nn.Conv1d(3, 5, 4), (3, 10), 7*5*3*4),
    (nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 4, 4), 4*4*2*3*4),
    (nn.Linear(6, 5), (7, 6), 7*6*5)])
def test_macs_of_layers(layer, shape, expected):
    assert macs(layer, torch.zeros(2, *shape))['MACs'].to_dict() == {'weight': expected, REST: 0}

def test_macs_sparse_is_dense_times_kept_fraction(net):
    m = macs(net, IMAGE)
    assert m['sparse MACs']['fc1.weight'] == m['MACs']['fc1.weight']//2
    assert m['sparse MACs']['conv2.weight'] == m['MACs']['conv2.weight']

@pytest.fixture
def mixed():
    "Layers of many kinds, one of them in eval mode"
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(),
                            nn.Flatten(), nn.Linear(36, 2))
    net.train()
    net[1].eval()
    return net

def test_macs_changes_nothing(mixed):
    x, before, rng = torch.ones(3, 1, 5, 5), copy.deepcopy(mixed.state_dict()), torch.get_rng_state()
    macs(mixed, x)
    assert [m.training for m in mixed.modules()] == [True, True, False, True, True, True, True]
    assert all(torch.equal(before[n], t) for n, t in mixed.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in mixed.parameters())
    assert torch.equal(x, torch.ones(3, 1, 5, 5)) and torch.equal(rng, torch.get_rng_state())

def test_modes_come_back_after_an_error(mixed):
    with pytest.raises(RuntimeError): macs(mixed, torch.ones(1, 3, 5, 5))      # wrong channels
    assert mixed.training and not mixed[1].training

def test_macs_leaves_an_inplace_input_alone():
    x = -torch.ones(1, 3)
    macs(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), x)
    assert torch.equal(x, -torch.ones(1, 3))

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Bilinear(3, 4, 2), nn.Linear(2, 5)
    def forward(self, x, y): return self.b(x[:, :2]) + y[:, :1]

def test_macs_of_several_inputs():
    with pytest.warns(UserWarning, match='a.weight'):
        m = macs(TwoInputs(), (torch.zeros(2, 3), torch.zeros(2, 4)))
    assert m['MACs']['b.weight'] == 10

def test_macs_needs_tensors():
    with pytest.raises(ValueError, match='must be a tensor'): macs(nn.Linear(2, 2), 3)

# attention, and what has no formula

def test_macs_of_attention_are_told_apart():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    m = macs(layer, torch.zeros(1, 5, 8))['MACs']
    assert m['self_attn.in_proj_weight'] == 5*8*24 and m['self_attn.out_proj.weight'] == 5*8*8
    assert m['linear1.weight'] == m['linear2.weight'] == 5*8*16
    assert m[REST] == 2*5*5*8                # scores and their product with the values

class Attention(nn.Module):
    "Attention alone, and a weight that nothing multiplies by"
    def __init__(self, **kwargs):
        super().__init__()
        self.unused, self.kwargs = nn.Linear(1, 1), kwargs
    def forward(self, q, k, v): return nn.functional.scaled_dot_product_attention(q, k, v, **self.kwargs)

KINDS = {'full': {}, 'causal': {'is_causal': True}, 'grouped': {'enable_gqa': True}}

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_macs_of_attention_are_the_same_fused_or_not(kind, backend):
    "Whatever torch's own table holds: two batched products, for each head of the queries"
    n_kv = 2 if kind == 'grouped' else 4
    q, k, v = torch.randn(1, 4, 5, 6), torch.randn(1, n_kv, 7, 6), torch.randn(1, n_kv, 7, 6)
    with sdpa_kernel(backend), pytest.warns(UserWarning, match='unused.weight'):
        assert macs(Attention(**KINDS[kind]), (q, k, v))['MACs'][REST] == 4*5*7*(6 + 6)

@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_macs_are_the_same_in_every_grad_mode(mode):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with mode(): assert macs(layer, torch.zeros(1, 5, 8))['MACs'][REST] == 2*5*5*8

class Applies(nn.Module):
    "A network whose forward pass is `function`"
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(3, 3)
    def forward(self, x): return self.function(self.layer(x))

@pytest.mark.parametrize('function,name', [
    (lambda x: torch.mv(x.T, x[:, 0]), 'aten.mv'),
    (lambda x: torch.dot(x[0], x[0]), 'aten.dot'),
    (lambda x: torch.cdist(x, x), 'aten._cdist_forward'),
    (lambda x: torch.addmv(x[0], x.T, x[:, 0]), 'aten.addmv'),
    (lambda x: nn.functional.bilinear(x, x, torch.ones(2, 3, 3)), 'aten._trilinear'),
    (lambda x: nn.LSTM(3, 4)(x), 'lstm|rnn')])
def test_an_operation_without_a_formula_is_named(function, name):
    with pytest.warns(UserWarning, match=rf'{name}.* may multiply but have no formula'):
        assert macs(Applies(function), torch.ones(1, 3))['MACs']['layer.weight'] == 9

@pytest.mark.parametrize('function', [
    torch.relu, nn.LayerNorm(3), nn.BatchNorm1d(3).eval(), nn.PReLU(),
    lambda x: x*x + x, lambda x: torch.cat([x, x]), lambda x: torch.where(x > 0, x, -x), lambda x: x @ x.T,
    lambda x: x.index_select(1, torch.tensor([0, 2])),
    lambda x: nn.functional.embedding(torch.tensor([0]), x),
    lambda x: nn.functional.scaled_dot_product_attention(x, x, x)])
def test_what_multiplies_nothing_or_is_counted_is_not_suspected(function):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        macs(Applies(function), torch.ones(1, 3))

# the table

def test_table_adds_up(net):
    t, layers = table(net, IMAGE), list(weights(net))
    assert list(t.index) == [*layers, 'prunable weights', REST, 'all parameters']
    for c in ('weights', 'kept', 'MACs', 'sparse MACs'):
        assert t[c][layers].sum() == t[c]['prunable weights'] == t[c]['all parameters'] - t[c][REST]
    assert t['share'][layers].sum() + t['share'][REST] == pytest.approx(1)

def test_table_counts_what_is_there(net):
    t = table(net, IMAGE)
    assert t['weights']['all parameters'] == sum(p.numel() for p in net.parameters())
    assert t['kept']['all parameters'] == t['weights']['all parameters'] - 200_000
    assert t['compression']['fc1.weight'] == 2 and t['shape']['fc1.weight'] == (500, 800)
    assert t['speed-up']['all parameters'] == pytest.approx(2_293_000/2_093_000)

def test_zeros_that_nobody_pruned_count_as_kept(net):
    before = table(net)
    with torch.no_grad(): net.fc1.bias.zero_()
    assert table(net)['kept'].equals(before['kept'])

def test_table_without_a_batch(net):
    assert 'MACs' not in table(net)

def test_table_with_exclusion_counts_the_excluded_as_the_rest(net):
    full, part = table(net, IMAGE), table(net, IMAGE, exclude='fc1')
    assert 'fc1.weight' not in part.index and part['compression']['prunable weights'] == 1
    for c in ('weights', 'kept', 'MACs', 'sparse MACs'):
        assert part[c]['all parameters'] == full[c]['all parameters']
    assert part['MACs'][REST] == full['MACs']['fc1.weight']

def test_table_refuses_unknown_names(net):
    with pytest.raises(ValueError, match='matches none'): table(net, exclude='head')

def tied(n):
    "Two layers that share a weight of n×n"
    net = nn.Sequential(nn.Linear(n, n, bias=False), nn.Linear(n, n, bias=False))
    net[1].weight = net[0].weight
    return net

def test_table_counts_a_tied_weight_once():
    t = table(tied(4), torch.zeros(1, 4))
    assert t['weights']['all parameters'] == 16 and t['MACs']['all parameters'] == 32

@pytest.mark.parametrize('show', [repr, lambda t: t._repr_html_()], ids=['text', 'html'])
def test_display(net, show):
    with torch.no_grad(): net.fc1.weight.zero_()
    text = show(table(net, IMAGE))
    assert 'empty' in text and '400,000' in text and '100.00%' in text and 'nan' not in text.lower()

def test_parts_of_a_table_can_be_shown(net):
    t = table(net)
    assert isinstance(t, pd.DataFrame)
    for part in (t[['kept']], t.T, t['kept']): repr(part)

def test_whole_network_empty():
    net = nn.Linear(4, 2, bias=False)
    with torch.no_grad(): net.weight.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', message='.*is left')
        assert 'empty' in repr(table(net, torch.zeros(1, 4)))

# bytes

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_stored_and_sparse_bytes(dtype):
    w = torch.tensor([[0., -0., 1.], [float('nan'), 0., float('inf')]], dtype=dtype)
    assert stored(w).tolist() == [[False, True, True], [True, False, True]]
    assert sparse_bytes(w) == 1 + 4*dtype.itemsize and sparse_bytes(w.T) == sparse_bytes(w)
    assert sparse_bytes(w, torch.float16) == 1 + 4*2
    assert sparse_bytes(torch.zeros(17, dtype=dtype)) == 3

def test_sizes(net):
    s, raw = sizes(net), save(dict(net.state_dict()))
    assert s['dense'] == len(raw) and s['gzip'] == len(gzip.compress(raw, 6))
    assert s['parameters'] == 431_080
    assert s['nonzeros'] == sum(int(p.count_nonzero()) for p in net.parameters())
    assert s['sparse'] == 4*431_080 - 4*400_000 + 400_000//8 + 4*200_000

def test_sizes_of_a_dense_network():
    with seeded(0): s = sizes(resnet18(width=.1))
    assert s['sparse'] <= s['dense']                       # nothing to gain: stays dense

def test_sizes_counts_a_tied_weight_once():
    assert sizes(tied(64))['sparse'] == 4*64*64

# the picture

def test_plot_layers(net):
    with torch.no_grad(): net.fc2.weight.zero_()
    line, empty = plot_layers(net, color='black', label='net').lines
    assert list(line.get_ydata()) == [1, 1, .5, 0] and list(empty.get_xdata()) == [3]

def test_plot_layers_with_exclusion(net):
    assert len(plot_layers(net, exclude='conv*').lines[0].get_ydata()) == 2

class Counts(nn.Module):
    "Remembers in an attribute and in a buffer how often it was called"
    def __init__(self):
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 2), 0
        self.register_buffer('also', torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        self.also += 1
        return self.fc(x)

@pytest.mark.parametrize('look', [macs, lambda net, x: feature_variance(net, [(x, x)])])
def test_a_network_that_remembers_forgets_what_it_was_measured_with(look):
    net, x = Counts(), torch.randn(8, 4)
    net(x)
    look(net, x)
    assert net.calls == 1 and net.also == 1 and net.training
