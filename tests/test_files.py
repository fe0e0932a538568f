"""Files that are damaged, foreign or made to do harm: refused by name, or read as they were written.

Few examples here, a hundred thousand in `make soak`."""
import json
import os
import pickle
import re
from pathlib import Path
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn
from prunelab.checkpoint import check_sum, load_sparse, save_sparse
from prunelab.core import seeded, weights
from prunelab.lab import experiment, images, models, training
from prunelab.resume import read_state, write_state
from .examples import examples

pytestmark = pytest.mark.filterwarnings('ignore')

def network(seed=0):
    "A small one, of which most is 0"
    with seeded(seed):
        net = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.Linear(20, 4))
        with torch.no_grad():
            for w in weights(net).values(): w *= torch.rand_like(w).ge(.9)
    return net

# How each kind of file is written, and how it is read; what is read has to be plain data

def write_sparse(path): save_sparse(network(), path)
def read_into_a_model(path): return load_sparse(path, network(1)).state_dict()

def write_packed(path):
    with seeded(0): x = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    parts = {f'x_{p}': x.clone() for p in ('train', 'test')}
    labels = {f'y_{p}': torch.arange(5) % 2 for p in ('train', 'test')}
    about = {'format': 1, 'name': 'digits', 'size': 8, 'vocab': ['0', '1'], 'mean': [.5], 'std': [.25]}
    images._write(path, {**parts, **labels}, about)
def read_packed(path): return images._load('digits', 8, path)

def write_rows(path):
    path.unlink(missing_ok=True)
    for i in range(3): experiment.append(path, {'name': f'row {i}', 'value': i/7, 'list': [i, None, True]})

def write_dense(path): training.write(path, {'model': network().state_dict(), 'epoch': 3, 'seconds': 1.5})
def read_dense(path): return training.read(path, 'cpu')

def write_kept(path):
    for f in (path, path.with_suffix('.previous.safetensors')): f.unlink(missing_ok=True)
    state = {'model': network().state_dict(), 'numbers': list(range(300)), 'nested': [{'a': (1, 2.5)}]}
    write_state(path, state)

def write_public(path): save_file(network().state_dict(), path)

READERS = {'sparse': (write_sparse, load_sparse), 'sparse, into a model': (write_sparse, read_into_a_model),
           'packed images': (write_packed, read_packed), 'rows': (write_rows, experiment.read),
           'dense network': (write_dense, read_dense), 'kept training': (write_kept, read_state),
           'public weights': (write_public, models._read_weights)}
CHECKED = [k for k in READERS if k not in ('rows', 'public weights')]       # these have a check sum
def name(kind): return 'file.pth' if kind == 'dense network' else 'file.safetensors'

def plain(x):
    "What was read as text that tells any two values apart"
    if isinstance(x, torch.Tensor): return check_sum({'': x.detach().cpu()})
    if isinstance(x, dict): return {str(k): plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, (list, tuple)) else repr(x)

def tensors(x):
    "All tensors in what was read"
    if isinstance(x, torch.Tensor): return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]

@pytest.fixture(scope='module')
def valid(tmp_path_factory):
    "{kind: (bytes of a file that is as it should be, what is read from it)}"
    folder, found = tmp_path_factory.mktemp('valid'), {}
    for kind, (write, read) in READERS.items():
        path = folder/name(kind)
        write(path)
        found[kind] = path.read_bytes(), plain(read(path))
    return found

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('bad')

def attempt(kind, folder, data):
    "What is read from these bytes; None if they are refused as they should be"
    path = folder/name(kind)
    path.write_bytes(data)
    try: found = READERS[kind][1](path)
    except ValueError as e:
        assert str(path) in str(e)
        return
    size = sum(t.numel()*t.element_size() for t in tensors(found))
    assert size <= 64*len(data) + 4096           # a bit may stand for a number of eight bytes, and never more
    return found

# any bytes

def headers():
    "Bytes that begin as a safetensors file does"
    known = ['dtype', 'shape', 'data_offsets', 'format', 'packed', 'check']
    values = st.one_of(st.integers(-2, 2**70), st.text(max_size=9), st.lists(st.integers(-1, 2**65)))
    about = st.dictionaries(st.sampled_from(known), values)
    entries = st.dictionaries(st.sampled_from(['__metadata__', 'a', 'a::bits', 'x_train']), about)
    def file(entries, rest):
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, 'little') + text + rest
    return st.builds(file, entries, st.binary(max_size=60))

def pickles(): return st.builds(pickle.dumps, st.recursive(st.integers() | st.text() | st.none(), st.lists))

@pytest.mark.parametrize('kind', READERS)
@examples(30)
@given(data=st.one_of(st.binary(max_size=300), headers(), pickles()))
def test_any_bytes(folder, kind, data):
    found = attempt(kind, folder, data)
    assert found is None or kind in ('rows', 'public weights')

# a file that has been damaged

@st.composite
def damages(draw):
    "A function that damages bytes: flips some, cuts some off or out, doubles some, writes over some"
    where = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3))
    how = draw(st.sampled_from(['flip', 'flip a bit', 'cut off', 'cut out', 'double', 'zeros']))
    what, length = draw(st.integers(1, 255)), draw(st.integers(1, 40))
    def damage(data):
        for at in (int(w*len(data)) for w in where):
            if not data: break
            at = min(at, len(data) - 1)
            new = {'flip': data[at:at + 1].translate(bytes(b ^ what for b in range(256))),
                   'flip a bit': bytes([data[at] ^ (1 << what % 8)]), 'cut off': None, 'cut out': b'',
                   'double': data[at:at + length]*2, 'zeros': bytes(length)}[how]
            if new is None: data = data[:at]
            else: data = data[:at] + new + data[at + (1 if 'flip' in how else length):]
        return data
    return damage

@pytest.mark.parametrize('kind', READERS)
@examples(40)
@given(damage=damages())
def test_a_damaged_file_is_refused_or_read_as_it_was(valid, folder, kind, damage):
    data, whole = valid[kind]
    found = attempt(kind, folder, damage(data))
    if found is not None and kind in CHECKED: assert plain(found) == whole
    if kind == 'rows': assert found is None or all(isinstance(row, dict) for row in found)

@pytest.mark.parametrize('kind', CHECKED)
def test_no_flipped_bit_passes(valid, folder, kind):
    "One bit in each of many bytes, spread over the file"
    data, whole = valid[kind]
    for i in range(0, len(data), max(1, len(data)//120)):
        found = attempt(kind, folder, data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1:])
        assert found is None or plain(found) == whole, i

@pytest.mark.parametrize('kind', READERS)
def test_a_file_of_another_kind_is_refused(valid, folder, kind):
    writer = READERS[kind][0]
    for other, (write, _) in READERS.items():
        if write is writer or kind == 'public weights': continue        # which takes any tensors
        assert attempt(kind, folder, valid[other][0]) is None, other

# nothing is run

class Trap:
    "Makes a folder when it's unpickled"
    def __init__(self, folder): self.folder = folder
    def __reduce__(self): return os.mkdir, (self.folder,)

@pytest.mark.parametrize('container', ['pickle', 'torch'])
@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_nothing_is_run(tmp_path, kind, container, suffix):
    trap, file = Trap(str(tmp_path/'sprung')), tmp_path/f'file{suffix}'
    if container == 'pickle': file.write_bytes(pickle.dumps(trap))
    else: torch.save({'model': trap}, file)
    try: assert READERS[kind][1](file) == [] and kind == 'rows'         # half a line at the end is no row
    except ValueError as e: assert str(file) in str(e)
    assert not (tmp_path/'sprung').exists()

def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(str(tmp_path/'sprung'))))
    assert (tmp_path/'sprung').exists()

ROOT = Path(__file__).resolve().parent.parent

MODULES = [f.relative_to(ROOT).as_posix() for f in sorted((ROOT/'prunelab').rglob('*.py'))]
RUNS_CODE = re.compile(r'pickle\.loads?\(|allow_pickle=True|weights_only=False|(?<![.\w])(eval|exec)\(')

@pytest.mark.parametrize('module', MODULES)
def test_no_module_unpickles(module):
    text = (ROOT/module).read_text()
    assert not RUNS_CODE.search(text)
    assert all('weights_only=True' in line for line in text.splitlines() if 'torch.load(' in line)
