"What prunelab.checkpoint promises beyond its page: exact round trips, refusals, atomic writes"
import copy
import json
import os
import random
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from prunelab import checkpoint
from prunelab.checkpoint import SparseLinear, check_sum, load_sparse, pack, save_sparse, to_sparse_cpu, unpack
from prunelab.core import seeded, weights
from prunelab.lab.models import lenet300, lenet5
from prunelab.report import sizes

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

def bits_of(t): return t.contiguous().view(INTEGERS[t.element_size()])
def same(a, b): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits_of(a), bits_of(b))
def same_state(a, b): return sorted(a) == sorted(b) and all(same(a[n], b[n]) for n in a)

def small(p=.9, seed=0):
    "Conv, BatchNorm, Linear; a share `p` of the weights is 0"
    with seeded(seed):
        net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7))
        with torch.no_grad():
            for w in weights(net).values(): w *= torch.rand_like(w).ge(p)
    return net.eval()

@pytest.fixture
def file(tmp_path): return save_sparse(small(), tmp_path/'net.safetensors')

def header_size(data): return 8 + int.from_bytes(data[:8], 'little')

def rewrite(path, edit=None, tensors=None):
    "Change the metadata by `edit(meta, packed)` or the tensors by `tensors(dict)`, and the check sum"
    data = path.read_bytes()
    meta = json.loads(data[8:header_size(data)])['__metadata__']
    text, packed, contents = meta['packed'], json.loads(meta['packed']), load(data)
    if edit: edit(meta, packed)
    if tensors: tensors(contents)
    if meta.get('packed') == text: meta['packed'] = json.dumps(packed)
    meta['check'] = check_sum(contents, *(meta[k] for k in ('packed', 'tied') if k in meta))
    path.write_bytes(save(contents, meta))

def refused(path, match, model=None):
    "The file is refused by name and reason, and the model is as it was"
    net = model or small(0, seed=9)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=match) as e: load_sparse(path, net)
    assert str(path) in str(e.value)
    assert same_state(before, net.state_dict())

# round trips

@pytest.mark.parametrize('seed', range(40))
def test_pack_round_trip(seed):
    rnd = random.Random(seed)
    shape = [rnd.randint(1, 9) for _ in range(rnd.randint(1, 4))]
    density, dtype = rnd.choice([0, .01, .3, .5, .99, 1]), rnd.choice(FLOATS)
    with seeded(seed): w = torch.where(torch.rand(shape) < density, torch.randn(shape), 0.).to(dtype)
    if seed % 3 == 0: w = w.T if w.ndim == 2 else w.transpose(0, -1)          # not contiguous
    bits, values = pack(w)
    assert len(bits) == -(-w.numel()//8) and len(values) == int(w.count_nonzero())
    assert same(unpack(bits, values, list(w.shape), dtype), w)

@pytest.mark.parametrize('dtype', FLOATS)
def test_special_values_keep_every_bit(dtype):
    limits, inf = torch.finfo(dtype), float('inf')
    special = [0., -0., inf, -inf, float('nan'), limits.tiny, limits.smallest_normal/2, 0., 0.]
    w = torch.tensor(special, dtype=dtype)
    w.view(INTEGERS[w.element_size()])[4] += 3                                # a NaN with a payload
    assert same(unpack(*pack(w), [9], dtype), w)

@pytest.mark.parametrize('p', [0, .1, .5, .9, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_model_round_trip(tmp_path, p, dtype):
    net, fresh = small(p).to(dtype), small(0, seed=5).to(dtype)
    path = save_sparse(net, str(tmp_path/'net.safetensors'))
    assert same_state(load_sparse(path), net.state_dict())
    assert load_sparse(path, fresh) is fresh and same_state(fresh.state_dict(), net.state_dict())

@pytest.mark.parametrize('p', [0, .5, .95, 1])
def test_size_is_the_arithmetic_of_report(tmp_path, p):
    data = save_sparse(small(p), tmp_path/'x').read_bytes()
    assert len(data) - header_size(data) == sizes(small(p))['sparse']

def tied(seed):
    "Two layers that share a sparse weight"
    with seeded(seed): net = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40))
    net[2].weight = net[0].weight
    with torch.no_grad(): net[0].weight[1:] = 0
    return net

def test_tied_weight_is_written_once(tmp_path):
    net, fresh = tied(0), tied(1)
    load_sparse(save_sparse(net, tmp_path/'x'), fresh)
    assert same_state(fresh.state_dict(), net.state_dict()) and fresh[2].weight is fresh[0].weight
    entries = load((tmp_path/'x').read_bytes())
    assert sum(n.startswith(('0.weight', '2.weight')) for n in entries) == 2       # bits and values, once

class Odd(nn.Module):
    "Buffers of all kinds, and one that is a view of a parameter"
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(9, 9)
        self.register_buffer('kept', torch.arange(3))
        self.register_buffer('lost', torch.ones(2), persistent=False)
        self.register_buffer('flag', torch.tensor(True))
        self.register_buffer('none', torch.zeros(0, 4))
        self.register_buffer('view', self.l.weight.data[0])           # shares storage, is another tensor

def test_buffers_and_odd_modules(tmp_path):
    net = Odd()
    state = load_sparse(save_sparse(net, tmp_path/'x'))
    def numbers(state): return {n: t.byte() if t.dtype == torch.bool else t for n, t in state.items()}
    assert same_state(numbers(state), numbers(net.state_dict())) and 'lost' not in state

def test_a_parameter_that_is_a_view_of_another_is_refused(tmp_path):
    net = Odd()
    net.row = nn.Parameter(net.l.weight.data[0])
    with pytest.raises(ValueError, match="'row' and 'l.weight' are two parameters in the same memory"):
        save_sparse(net, tmp_path/'x')
    assert not list(tmp_path.iterdir())

def test_channels_last(tmp_path):
    net = small().to(memory_format=torch.channels_last)
    assert same_state(load_sparse(save_sparse(net, tmp_path/'x')), net.state_dict())

def test_extra_state_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self): return {'a': 1}
    with pytest.raises(ValueError, match='_extra_state.*only tensors'): save_sparse(Extra(2, 2), tmp_path/'x')
    assert not list(tmp_path.iterdir())

# rounding

def test_fp16_comes_back_in_the_models_dtype(tmp_path):
    net, fresh = small(), small(0, seed=3)
    load_sparse(save_sparse(net, tmp_path/'x', torch.float16), fresh)
    for n, t in net.state_dict().items():
        expected = t.half().float() if n in weights(net) else t
        assert same(fresh.state_dict()[n], expected), n

def test_fp16_and_models_of_other_dtypes(tmp_path):
    net = small()
    path = save_sparse(net, tmp_path/'x', torch.float16)
    assert load_sparse(path)['4.weight'].dtype == torch.float32
    assert load_sparse(path, small(0).double())[4].weight.dtype == torch.float64
    assert same(load_sparse(path, small(0).half())[4].weight.data, net[4].weight.data.half())

def test_fp16_never_touches_half_models(tmp_path):
    net = small().bfloat16()
    with torch.no_grad(): net[4].weight[0, 0] = 1e30
    assert same_state(load_sparse(save_sparse(net, tmp_path/'x', torch.float16)), net.state_dict())

def test_out_of_range_names_the_weight_and_keeps_the_old_file(tmp_path):
    net = small()
    old = save_sparse(net, tmp_path/'x').read_bytes()
    with torch.no_grad(): net[4].weight[0, 0] = -7e4
    with pytest.raises(ValueError, match=r'4\.weight: -70000 is out of the range'):
        save_sparse(net, tmp_path/'x', torch.float16)
    assert (tmp_path/'x').read_bytes() == old and os.listdir(tmp_path) == ['x']
    save_sparse(net, tmp_path/'x', torch.bfloat16)                       # its range is that of float32

def test_other_dtypes_are_refused(tmp_path):
    with pytest.raises(ValueError, match='dtype must be'): save_sparse(small(), tmp_path/'x', torch.int8)

# damaged and foreign files

@pytest.mark.parametrize('cut', [0, 1, 7, 8, 9, 100, .3, .5, .9, -1])
def test_truncated(file, cut):
    data = file.read_bytes()
    file.write_bytes(data[:int(cut*len(data)) if isinstance(cut, float) else cut])
    refused(file, 'damaged')

REPLACED = {'appended': lambda data: data + b'0', 'replaced': lambda data: b'\xff'*len(data),
            'a header of exabytes': lambda data: (2**62).to_bytes(8, 'little') + data[8:]}

@pytest.mark.parametrize('how', REPLACED)
def test_bytes_appended_or_replaced(file, how):
    file.write_bytes(REPLACED[how](file.read_bytes()))
    refused(file, 'damaged')

def test_every_header_byte_flipped_is_refused_or_harmless(file):
    data = file.read_bytes()
    for i in range(0, header_size(data), 7):
        file.write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1:])
        net = small(0, seed=9)
        before = copy.deepcopy(net.state_dict())
        try: load_sparse(file, net)
        except ValueError: assert same_state(net.state_dict(), before)

METADATA = {
    'another format': (lambda m, p: m.update(format='other'), "format is 'other'"),
    'no format': (lambda m, p: m.pop('format'), 'format is None'),
    'another version': (lambda m, p: m.update(version='1'), "version '1'"),
    'no version': (lambda m, p: m.pop('version'), 'version'),
    'nothing packed': (lambda m, p: m.pop('packed'), 'packed'),
    'packed is a list': (lambda m, p: m.update(packed='[1, 2]'), 'damaged'),
    'packed nests without end': (lambda m, p: m.update(packed='['*100_000), 'damaged'),
    'tied and stored': (lambda m, p: m.update(tied='{"4.bias": "0.bias"}'), '4.bias: stored twice'),
    'tied to nothing': (lambda m, p: m.update(tied='{"new": "nothing"}'), 'nothing'),
    'a new name': (lambda m, p: m.update(tied='{"new": "4.bias"}'), r"are not in it \['new'\]"),
    'a dtype that is a function': (lambda m, p: p['4.weight'].update(dtype='load'), "dtype 'load'"),
    'a dtype of whole numbers': (lambda m, p: p['4.weight'].update(dtype='int32'), "dtype 'int32'"),
    'a dtype that is a number': (lambda m, p: p['4.weight'].update(dtype=3), 'damaged'),
    'no shape': (lambda m, p: p['4.weight'].pop('shape'), 'shape'),
    'packed and plain': (lambda m, p: p.update({'4.bias': p['4.weight']}), '4.bias: stored twice'),
    'packed without bits': (lambda m, p: p.update({'x': p['4.weight']}), 'x::bits'),
    'bits without a weight': (lambda m, p: p.pop('4.weight'), 'made by another model')}

@pytest.mark.parametrize('which', ['no', 'another'])
def test_a_file_without_its_check_sum_is_refused(file, which):
    data = file.read_bytes()
    end = header_size(data)
    meta, entries = json.loads(data[8:end])['__metadata__'], load(data)
    check = {} if which == 'no' else {'check': '123'}
    file.write_bytes(save(entries, {**{k: v for k, v in meta.items() if k != 'check'}, **check}))
    refused(file, 'check')

def test_a_flipped_value_is_refused(file):
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(file, 'check sum is wrong')

def test_numbers_that_the_model_cannot_hold_are_refused(tmp_path):
    net, fresh = small(), small(0, seed=2).half()
    with torch.no_grad(): net[4].bias[0] = 70_000.
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match='4.bias has numbers out of the range of torch.float16'):
        load_sparse(save_sparse(net, tmp_path/'x'), fresh)
    assert same_state(before, fresh.state_dict())
    with torch.no_grad(): net[4].bias[0] = torch.inf            # which half precision has, too
    assert load_sparse(save_sparse(net, tmp_path/'x'), fresh)[4].bias[0] == torch.inf

@pytest.mark.parametrize('case', METADATA)
def test_tampered_metadata(file, case):
    edit, match = METADATA[case]
    rewrite(file, edit)
    refused(file, match)

NO_SHAPES = [[-7, -45], [7, -45], [0], [0, 2**62, 2**62], [], None, 'abc', [7., 45.], [True, 315], [[7, 45]],
             {}]
WRONG_SHAPES = [[2**63, 2], [2**40, 2**40], [7, 46], [7, 44], [315, 1, 2]]

def with_shape(file, shape): rewrite(file, lambda m, p: p['4.weight'].update(shape=shape))

@pytest.mark.parametrize('shape', NO_SHAPES, ids=str)
def test_shapes_that_are_none(file, shape):
    with_shape(file, shape)
    refused(file, '4.weight: shape .* is not a list of positive whole numbers')

@pytest.mark.parametrize('shape', WRONG_SHAPES, ids=str)
def test_shapes_that_the_bits_do_not_fill(file, shape):
    with_shape(file, shape)
    refused(file, r'4.weight: shape .* needs \d+ bytes of bitmask, there are 40')

@pytest.mark.parametrize('shape', [315, True], ids=str)
def test_shapes_that_are_numbers(file, shape):
    with_shape(file, shape)
    refused(file, 'damaged')

BITS, VALUES = '4.weight::bits', '4.weight::values'
LAST_BIT = torch.tensor([0]*39 + [128], dtype=torch.uint8)
def one_bit_beyond(t):
    t.update({BITS: t[BITS] | LAST_BIT, VALUES: torch.cat([t[VALUES], torch.ones(1)])})

TENSORS = {
    'a byte less': (lambda t: t.update({BITS: t[BITS][:-1]}), '4.weight: shape .* needs 40 bytes'),
    'twice the bits': (lambda t: t.update({BITS: torch.cat([t[BITS]]*2)}), 'needs 40 bytes'),
    'signed bits': (lambda t: t.update({BITS: t[BITS].view(torch.int8)}), 'int8'),
    'other bits': (lambda t: t.update({BITS: t[BITS] ^ 1}), 'bitmask marks'),
    'a bit beyond the end': (one_bit_beyond, '1 of them beyond the end'),
    'a value less': (lambda t: t.update({VALUES: t[VALUES][1:]}), 'bitmask marks'),
    'values in two dimensions': (lambda t: t.update({VALUES: t[VALUES][None]}), 'bitmask marks'),
    'no values': (lambda t: t.pop(VALUES), '4.weight::values'),
    'a tensor less': (lambda t: t.pop('4.bias'), r"missing \['4.bias'\]"),
    'a stranger': (lambda t: t.update(stranger=torch.ones(2)), r"not in it \['stranger'\]"),
    'another shape': (lambda t: t.update({'4.bias': torch.ones(8)}), r'4.bias is \(8,\)'),
    'another kind of number': (lambda t: t.update({'1.num_batches_tracked': torch.tensor(1.5)}),
                               'num_batches_tracked is .* torch.float32')}

@pytest.mark.parametrize('case', TENSORS)
def test_tampered_tensors(file, case):
    change, match = TENSORS[case]
    rewrite(file, tensors=change)
    refused(file, match)

def test_another_architecture(file):
    refused(file, 'made by another model', lenet5())

def test_another_width(file):
    wide = small()
    wide[4] = nn.Linear(45, 8)
    refused(file, r'4.weight is \(7, 45\)', wide)

def test_other_formats(tmp_path):
    (tmp_path/'plain').write_bytes(save({'a': torch.ones(1)}))
    refused(tmp_path/'plain', 'not written by save_sparse')
    torch.save(small().state_dict(), tmp_path/'torch')
    refused(tmp_path/'torch', 'not a sparse file')
    with pytest.raises(FileNotFoundError): load_sparse(tmp_path/'nothing')

# atomic writes

@pytest.mark.parametrize('name', ['fsync', 'replace'])
@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_failure_during_the_write(tmp_path, monkeypatch, name, error):
    path = save_sparse(small(), tmp_path/'x')
    old = path.read_bytes()
    def fail(*args): raise error
    monkeypatch.setattr(checkpoint.os, name, fail)
    with pytest.raises(type(error)): save_sparse(small(.2, seed=1), path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ['x']
    with pytest.raises(type(error)): save_sparse(small(), tmp_path/'new')
    assert os.listdir(tmp_path) == ['x']

def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path, monkeypatch):
    path, seen = save_sparse(small(), tmp_path/'x'), []
    old, replace = path.read_bytes(), os.replace
    def look(part, final):
        new = load(open(part, 'rb').read())
        seen.append((path.read_bytes() == old, len(new) > 0, os.path.dirname(part) == str(tmp_path)))
        replace(part, final)
    monkeypatch.setattr(checkpoint.os, 'replace', look)
    save_sparse(small(.2, seed=1), path)
    assert seen == [(True, True, True)] and path.read_bytes() != old

def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError): save_sparse(small(), tmp_path/'no'/'x')

def test_another_default_device_changes_nothing(tmp_path):
    net, fresh = small(), small(0, seed=2)
    csr, x = to_sparse_cpu(net, at=.5), torch.ones(2, 1, 5, 5)
    with torch.device('meta'):
        load_sparse(save_sparse(net, tmp_path/'x'), fresh)
        y = csr(x)
    assert same_state(net.state_dict(), fresh.state_dict())
    torch.testing.assert_close(y, net(x).detach(), check_layout=False)

# CSR

@pytest.mark.parametrize('p', [0, .5, .9, 1])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(13,), (5, 13), (2, 3, 13), (0, 13)])
def test_sparse_linear_agrees(p, bias, shape):
    with seeded(1):
        layer, x = nn.Linear(13, 7, bias=bias).double(), torch.randn(shape).double()
        with torch.no_grad(): layer.weight *= torch.rand_like(layer.weight).ge(p)
    y = to_sparse_cpu(layer, at=0)(x)
    torch.testing.assert_close(y, layer(x).detach())
    assert not y.requires_grad

@pytest.fixture
def half_sparse():
    "LeNet-300-100 with an almost empty first layer"
    with seeded(0): net = lenet300()
    with torch.no_grad(): net.fc1.weight[:290] = 0
    return net

def test_only_what_is_sparse_is_converted(half_sparse):
    fast = to_sparse_cpu(half_sparse)
    assert [type(m) for m in (fast.fc1, fast.fc2, fast.fc3)] == [SparseLinear, nn.Linear, nn.Linear]
    assert type(half_sparse.fc1) is nn.Linear and half_sparse.training and not fast.training

def test_the_copy_shares_no_storage(half_sparse):
    before, fast = copy.deepcopy(half_sparse.state_dict()), to_sparse_cpu(half_sparse)
    with torch.no_grad():
        fast.fc2.weight.zero_()
        fast.fc1.bias.zero_()
    assert same_state(before, half_sparse.state_dict())

def test_a_converted_network_can_be_converted_again(half_sparse):
    fast, x = to_sparse_cpu(half_sparse), torch.randn(3, 1, 28, 28)
    with torch.no_grad(): fast.fc2.weight.zero_()
    torch.testing.assert_close(to_sparse_cpu(fast, at=.5)(x), fast(x))

def test_a_shared_module_stays_shared():
    shared = nn.Linear(6, 6)
    with torch.no_grad(): shared.weight[1:] = 0
    fast = to_sparse_cpu(nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared))))
    assert isinstance(fast['a'], SparseLinear) and fast['b'][0] is fast['a']

@pytest.mark.parametrize('grad', [True, False])     # False: torch's fused layer, which reads linear1.weight
def test_attention(grad):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        for p in weights(layer).values(): p[1:] = 0
    fast, x = to_sparse_cpu(layer), torch.randn(1, 5, 8)
    assert type(fast.self_attn.out_proj) is type(layer.self_attn.out_proj)
    with torch.set_grad_enabled(grad): torch.testing.assert_close(fast(x), layer(x))
    assert torch.equal(fast.linear1.weight, layer.linear1.weight.detach())

def test_to_sparse_cpu_can_be_saved(tmp_path):
    fast = to_sparse_cpu(small(.95), at=.5)
    torch.save(fast, tmp_path/'fast.pt')
    again, x = torch.load(tmp_path/'fast.pt', weights_only=False), torch.randn(2, 1, 5, 5)
    assert torch.equal(again(x), fast(x)) and torch.equal(copy.deepcopy(fast)(x), fast(x))

REFUSED = {'too dense': (lambda: small(0), 'none of 1 nn.Linear is at least 80% zeros'),
           'no linear layer': (lambda: nn.Conv2d(1, 1, 3), 'none of 0'),
           'on meta': (lambda: small().to('meta'), 'on meta: sparse layers need'),
           'bfloat16': (lambda: small().bfloat16(), 'bfloat16 on cpu: sparse layers need')}

@pytest.mark.parametrize('case', REFUSED)
def test_to_sparse_cpu_refuses(case):
    make, match = REFUSED[case]
    with pytest.raises(ValueError, match=match): to_sparse_cpu(make())

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda(tmp_path):
    net, fresh = small().cuda(), small(0, seed=4).cuda()
    load_sparse(save_sparse(net, tmp_path/'x', torch.float16), fresh)
    assert fresh[4].weight.is_cuda and torch.equal(fresh[4].weight, net[4].weight.half().float())
    with pytest.raises(ValueError, match='on cuda'): to_sparse_cpu(net)

@pytest.mark.parametrize('at', [.7, .8, .9, .95])
def test_exactly_as_many_zeros_are_enough(at):
    layer = nn.Linear(100, 100)
    with torch.no_grad(): layer.weight[:round(100*at)] = 0
    assert isinstance(to_sparse_cpu(layer, at=at), SparseLinear)
    with torch.no_grad(): layer.weight[0, 0] = 1
    with pytest.raises(ValueError, match='none of 1'): to_sparse_cpu(layer, at=at)
