"`prunelab.evaluate`: exact counts for many versions of one network, and no trace in it"
import gc
import weakref
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.torch_core import TensorCategory, TensorImage
from torch import nn
from torch.nn import functional as F
from prunelab.basin import perturb, population
from prunelab.core import seeded, weights
from prunelab.evaluate import correct, evaluate_population, labels_right

class Net(nn.Module):
    "A convolution, a normalisation with buffers, dropout and a classifier"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5)
        self.fc = nn.Linear(4*36, 3)

    def forward(self, x): return self.fc(self.drop(self.bn(self.conv(x)).relu().flatten(1)))

def new_net():
    with seeded(0): return Net()

def batches():
    "Three batches of 4, 4 and 3"
    with seeded(1): return [(torch.randn(n, 1, 8, 8), torch.randint(3, (n,))) for n in (4, 4, 3)]

@pytest.fixture
def net(): return new_net()

@pytest.fixture
def dl(): return batches()

def count(net, member, dl):
    "How many are right when the member's weights are written into a copy"
    other = new_net()
    other.load_state_dict({**net.state_dict(), **member})
    other.eval()
    with torch.no_grad(): return sum(int((other(x).argmax(1) == y).sum()) for x, y in dl)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def first_score(out, y): return out[:, 0]
def broken(out, y): return 1/0
def loss(out, y): return F.cross_entropy(out, y, reduction='none')

# What is counted

def test_correct_is_the_largest_score():
    out = torch.tensor([[3., 1., 0.], [0., 2., 1.], [1., 0., 2.]])
    assert correct(out, torch.tensor([0, 1, 0])).tolist() == [True, True, False]

@pytest.mark.parametrize('chunk', [1, 2, 3, 8])
def test_accuracy_is_an_exact_count(net, dl, chunk):
    members = list(population(weights(net), .3, 5))
    acc = evaluate_population(net, members, dl, chunk=chunk)
    assert acc.dtype == torch.float64 and acc.device.type == 'cpu'
    assert acc.tolist() == [count(net, m, dl)/11 for m in members]
    assert len(set(acc.tolist())) > 1 and len(members) == 5          # a list is not emptied

def test_a_metric_per_example(net, dl):
    net.eval()
    want = sum(F.cross_entropy(net(x), y, reduction='sum').item() for x, y in dl)/11
    assert abs(evaluate_population(net, [{}], dl, metric=loss).item() - want) < 1e-6

def test_what_a_member_lacks_is_the_models(net, dl):
    member = perturb(weights(net, exclude='fc'), .5, 0)
    assert list(member) == ['conv.weight']
    assert round(evaluate_population(net, [member], dl).item()*11) == count(net, member, dl)

def test_members_may_carry_buffers(net, dl):
    mean = {'bn.running_mean': net.bn.running_mean + 2}
    a, b = evaluate_population(net, [{}, mean], dl, metric=first_score).tolist()
    assert a != b and bool((net.bn.running_mean == 0).all())

def test_tied_weights_move_together():
    with seeded(0): net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    member, x = {'0.weight': torch.eye(3)}, torch.tensor([[1., 2., 3.]])
    def distance(out, y): return (out - x).abs().sum(1)
    assert evaluate_population(net, [member], [(x, torch.tensor([0]))], metric=distance).item() == 0

def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
        def forward(self, a, b): return self.fc(a + b)
    dl = [(torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4, dtype=torch.long))]
    assert evaluate_population(Two(), [{}], dl).shape == (1,)

def test_fastai_loader(net, dl):
    items = [(TensorImage(x), TensorCategory(y)) for xs, ys in dl for x, y in zip(xs, ys)]
    dls = DataLoaders.from_dsets(items, items, bs=4, num_workers=0, device='cpu')
    members = list(population(weights(net), .3, 4))
    def metric(out, y):
        assert type(out) is torch.Tensor and type(y) is torch.Tensor and not out.requires_grad
        return out.argmax(1) == y
    acc = evaluate_population(net, members, dls.valid, metric, chunk=3)
    assert acc.tolist() == [count(net, m, dl)/11 for m in members]

def test_no_members(net, dl): assert evaluate_population(net, [], dl).shape == (0,)

# No trace

@pytest.mark.parametrize('fails', [False, True])
def test_network_stays_as_it_is(net, dl, fails):
    net.train()
    net.bn.eval()                                                    # frozen in a training network
    modes = {n: m.training for n, m in net.named_modules()}
    state = {n: t.clone() for n, t in net.state_dict().items()}
    ids = {n: id(p) for n, p in net.named_parameters()}
    members = population(weights(net), .3, 3)
    if fails:
        with pytest.raises(ZeroDivisionError): evaluate_population(net, members, dl, metric=broken)
    else: evaluate_population(net, members, dl)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert same(dict(net.state_dict()), state) and {n: id(p) for n, p in net.named_parameters()} == ids
    assert all(p.requires_grad and p.grad is None for p in net.parameters())

def test_dropout_and_batch_statistics_are_off(net, dl):
    found = evaluate_population(net, [{}]*6, dl, metric=first_score, chunk=1)
    assert len(set(found.tolist())) == 1

def test_members_may_use_the_network_while_they_are_made(net, dl):
    "A score such as SNIP needs gradients and the network's own mode"
    seen = []
    def members():
        for m in population(weights(net), .1, 3):
            seen.append((net.training, torch.is_grad_enabled()))
            yield m
    net.train()
    evaluate_population(net, members(), dl, chunk=2)
    assert seen == [(True, True)]*3

# Chunks

class Member(dict):
    "A plain dict takes no weak reference"

def watched(members, refs, alive):
    "The members; `alive` gets how many of them are alive when one is made"
    for m in members:
        m = Member(m)
        refs.append(weakref.ref(m))
        alive.append(sum(r() is not None for r in refs))
        yield m
        del m

def test_never_more_than_chunk_members_alive(net, dl):
    alive = []
    gc.disable()
    try: evaluate_population(net, watched(population(weights(net), .1, 7), [], alive), dl, chunk=3)
    finally: gc.enable()
    assert max(alive) == 3

class Counting(list):
    "Batches that know how often they were read"
    passes = 0
    def __iter__(self):
        self.passes += 1
        return super().__iter__()

def test_one_pass_serves_a_chunk(net, dl):
    counted = Counting(dl)
    evaluate_population(net, population(weights(net), .1, 7), counted, chunk=3)
    assert counted.passes == 3

# Refused

REFUSED = {
    'a name without a place': (dict(members=[{'head.weight': torch.ones(1)}]), 'head.weight'),
    'one dict': (dict(members={'fc.weight': torch.ones(1)}), 'pass a list'),
    'no chunk': (dict(chunk=0), 'at least 1'),
    'a mean': (dict(metric=F.cross_entropy), "reduction='none'"),
    'no data': (dict(dl=[]), 'is the validation set empty'),
    'a dict': (dict(dl=[({'x': torch.zeros(2)}, torch.zeros(2))]), 'a dict where a tensor is wanted')}

@pytest.mark.parametrize('what', REFUSED)
def test_evaluation_refuses(net, dl, what):
    changed, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        evaluate_population(net, **{'members': [{}], 'dl': dl, **changed})

def test_a_used_up_loader_is_an_error(net, dl):
    assert len(evaluate_population(net, [{}, {}], iter(dl), chunk=2)) == 2      # one pass is enough for two
    with pytest.raises(ValueError, match='a generator does not'):
        evaluate_population(net, [{}, {}], iter(dl), chunk=1)

def test_mixed_precision_is_off(net, dl):
    "Inside of a fit with `to_fp16` a member is judged as outside of it"
    def loss(out, y): return F.cross_entropy(out, y, reduction='none')
    alone = evaluate_population(net, [{}], dl, loss)
    with torch.autocast('cpu', torch.bfloat16): inside = evaluate_population(net, [{}], dl, loss)
    assert torch.equal(alone, inside)

@pytest.mark.parametrize('metric', [correct, labels_right])
def test_what_is_no_number_is_never_right(metric):
    "The largest of NaN is the first one, and NaN is not above a threshold: both would be right for zeros"
    out, y = torch.full((4, 3), float('nan')), torch.zeros(4, dtype=torch.long)
    if metric is labels_right: y = torch.zeros(4, 3)
    assert metric(out, y).sum() == 0 and metric(torch.zeros(4, 3), y).sum() == 4
