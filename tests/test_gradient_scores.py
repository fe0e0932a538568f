"`prunelab.gradient_scores`: closed forms, finite differences, rounds, and no trace in the network"
import pickle
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from prunelab.allocation import global_, uniform
from prunelab.basin import perturb
from prunelab.callbacks import PruneCB
from prunelab.core import seeded, weights
from prunelab.gradient_scores import gradient, grasp, iterated, snip, synflow
from prunelab.masks import sparsity
from prunelab.scores import random_score, score_with

SCORES = {'snip': snip, 'grasp': grasp, 'synflow': synflow, 'iterated': iterated(synflow, global_, .8, 5)}

@pytest.fixture(autouse=True)
def exact():
    "The same sums in the same order, also on CUDA"
    flags = dict(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.backends.cudnn.flags(**flags): yield

class Net(nn.Module):
    "Convolution, BatchNorm, dropout, pooling, classifier"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(.5), nn.Linear(4*9, 3)
    def forward(self, x):
        x = F.max_pool2d(self.bn(self.conv(x)).relu(), 2)
        return self.fc(self.drop(x.flatten(1)))

@pytest.fixture
def net(device):
    with seeded(0), torch.device('cpu'):
        net = Net()
        net(torch.randn(16, 1, 8, 8))        # BatchNorm has seen something
    return net.to(device)

@pytest.fixture
def batch(device):
    with seeded(1), torch.device('cpu'): x, y = torch.randn(12, 1, 8, 8), torch.randint(3, (12,))
    return (x.to(device),), (y.to(device),)

def ask(score, ws, net, batch):
    return score_with(score, ws, model=lambda: net, batch=lambda: batch, loss_func=lambda: F.cross_entropy)

def close(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=1e-4, atol=1e-7) for n in a)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
def loss_of_each(out, y): return F.cross_entropy(out, y, reduction='none')

# no trace

@pytest.mark.parametrize('name', SCORES)
def test_scores_have_shapes_devices_and_no_graph(net, batch, name):
    ws = weights(net)
    with torch.no_grad(): scores = ask(SCORES[name], ws, net, batch)     # works inside no_grad, too
    for n, w in ws.items():
        s = scores[n]
        assert s.shape == w.shape and s.dtype == torch.float32 and s.device == w.device
        assert not s.requires_grad
        assert s.isfinite().all() and s.any()
    assert close(scores, ask(SCORES[name], ws, net, batch))

@pytest.mark.parametrize('name', SCORES)
def test_no_trace_in_the_network(net, batch, name):
    net.train()
    net.fc.eval()
    net.conv.weight.requires_grad_(False)                            # frozen layers are scored too
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    modes = {n: m.training for n, m in net.named_modules()}
    state, rng = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    ask(SCORES[name], weights(net), net, batch)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert same(dict(net.state_dict()), state) and torch.equal(rng, torch.get_rng_state())
    assert net.conv.weight.grad is None and not net.conv.weight.requires_grad
    assert (net.fc.weight.grad == 1).all()

def test_modes_come_back_after_an_error(net, batch):
    net.train()
    with pytest.raises(ZeroDivisionError): snip(weights(net), net, batch, lambda out, y: 1/0)
    assert all(m.training for m in net.modules())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('score', [snip, synflow])
def test_other_dtypes_give_float32(net, batch, dtype, score):
    (x,), y = batch
    scores = ask(score, weights(net.to(dtype)), net, ((x.to(dtype),), y))
    assert all(s.dtype == torch.float32 and s.isfinite().all() for s in scores.values())

@pytest.mark.parametrize('name', SCORES)
def test_autocast_is_off_inside(net, batch, name):
    plain = ask(SCORES[name], weights(net), net, batch)
    with torch.autocast(batch[0][0].device.type, torch.bfloat16):
        assert close(plain, ask(SCORES[name], weights(net), net, batch))

def test_gradient_is_backwards(net, batch):
    got = gradient(weights(net), net, batch, F.cross_entropy)
    net.eval()
    F.cross_entropy(net(*batch[0]), *batch[1]).backward()
    for n, w in weights(net).items(): assert torch.allclose(got[n], w.grad, atol=1e-6)

@pytest.mark.parametrize('name', SCORES)
def test_weights_from_a_dict(net, batch, name):
    "Scores of other weights than the model's own are those of a model that has them"
    ws = perturb(weights(net), .5, 3, 'mul')
    got = ask(SCORES[name], ws, net, batch)
    net.load_state_dict({**net.state_dict(), **ws})
    own = ask(SCORES[name], weights(net), net, batch)
    assert all(torch.allclose(s, got[n], atol=1e-6) for n, s in own.items())

# finite differences, in double precision

def in_double(net, batch):
    "(weights, batch) of the network in double precision"
    (x,), y = batch
    return {n: w.detach() for n, w in weights(net.double()).items()}, ((x.double(),), y)

def scaled(ws, n, i, by):
    "The weights with number i of layer n multiplied"
    w = ws[n].clone()
    w.view(-1)[i] *= by
    return {**ws, n: w}

def test_snip_predicts_a_small_step(net, batch):
    ws, b = in_double(net, batch)
    s = snip(ws, net, b, F.cross_entropy)['fc.weight'].view(-1)
    @torch.no_grad()
    def loss(ws): return F.cross_entropy(torch.func.functional_call(net.eval(), ws, b[0]), b[1][0])
    for i in range(0, 108, 7):
        up, down = loss(scaled(ws, 'fc.weight', i, 1 + 1e-4)), loss(scaled(ws, 'fc.weight', i, 1 - 1e-4))
        assert abs((up - down).abs()/2e-4 - s[i]) < 1e-6

def test_grasp_predicts_the_gradient_norm(net, batch):
    ws, b = in_double(net, batch)
    def norm2(ws): return sum((g**2).sum() for g in gradient(ws, net, b, F.cross_entropy).values()).item()
    for n, s in grasp(ws, net, b, F.cross_entropy).items():
        for i in range(0, s.numel(), 11):
            more, less = norm2(scaled(ws, n, i, 1 + 1e-5)), norm2(scaled(ws, n, i, 1 - 1e-5))
            assert abs((more - less)/4e-5 - s.view(-1)[i].item()) < 1e-5

def test_grasp_counts_given_weights_only(net, batch):
    part = grasp(weights(net, exclude='conv'), net, batch, F.cross_entropy)
    full = grasp(weights(net), net, batch, F.cross_entropy)
    assert list(part) == ['fc.weight'] and not torch.allclose(part['fc.weight'], full['fc.weight'])

# SynFlow

def sums(scores): return {n: s.double().sum().item() for n, s in scores.items()}

def test_synflow_is_conserved_and_blind(net, batch):
    s = synflow(weights(net), net, batch)
    assert all(abs(total - 1) < 1e-5 for total in sums(s).values())
    flipped = {n: -w.detach() for n, w in weights(net).items()}
    assert same(s, synflow(flipped, net, ((torch.full_like(batch[0][0], 7.),), ())))

def test_synflow_of_a_deep_network_is_finite():
    with seeded(0): net = nn.Sequential(*[nn.Linear(400, 400) for _ in range(60)])
    with torch.no_grad():
        for p in net.parameters(): p.mul_(10)                       # R is far beyond float32
    s = synflow(weights(net), net, ((torch.zeros(1, 400),), ()))
    assert all(abs(total - 1) < 1e-4 for total in sums(s).values())

def test_synflow_without_a_path_is_zero(net, batch):
    ws = {n: torch.zeros_like(w) if n == 'conv.weight' else w.detach() for n, w in weights(net).items()}
    assert all(not t.any() for t in synflow(ws, net, batch).values())

def test_synflow_in_a_residual_network():
    class Res(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        def forward(self, x): return self.c(x + self.b(x.relu()) + self.a(x))
    with seeded(0): net = Res()
    s = sums(synflow(weights(net), net, ((torch.zeros(1, 4),), ())))
    assert abs(s['c.weight'] - 1) < 1e-5 and 0 < s['a.weight'] + s['b.weight'] < 1

# tied weights

class Odd(nn.Module):
    "One weight used twice, one not at all"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
    def forward(self, x): return self.b(self.a(x))

@pytest.fixture
def odd():
    with seeded(0): return Odd(), ((torch.randn(5, 3),), (torch.randint(3, (5,)),))

@pytest.mark.parametrize('score', [snip, grasp, synflow])
def test_unused_weights_score_zero(odd, score):
    net, batch = odd
    s = ask(score, weights(net), net, batch)
    assert list(s) == ['a.weight', 'unused.weight'] and s['a.weight'].any() and not s['unused.weight'].any()

def test_tied_weights_count_both_uses(odd):
    net, batch = odd
    F.cross_entropy(net(*batch[0]), *batch[1]).backward()
    expected = (net.a.weight*net.a.weight.grad).abs()
    assert torch.allclose(snip(weights(net), net, batch, F.cross_entropy)['a.weight'], expected, atol=1e-6)

# rounds

@pytest.mark.parametrize('score', [snip, grasp, synflow, random_score])
@pytest.mark.parametrize('allocation', [global_, uniform])
def test_rounds_are_the_loop(net, batch, score, allocation):
    ws = weights(net)
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in ws.items()}
    for k in range(1, 8):
        s = ask(score, {n: w.detach()*masks[n] for n, w in ws.items()}, net, batch)
        masks = allocation({n: t.masked_fill(~masks[n], -torch.inf) for n, t in s.items()}, 1 - .1**(k/7))
    s = ask(iterated(score, allocation, .9, 7), ws, net, batch)
    assert all(t.isfinite().all() for t in s.values())
    assert same(allocation(s, .9), masks)

def test_rounds_rank_by_when_a_weight_left(net, batch):
    s = ask(iterated(grasp, global_, .9, 4), weights(net), net, batch)
    early, late = (global_(s, 1 - .1**(k/4)) for k in (1, 3))
    assert all(bool((early[n] | ~late[n]).all()) for n in early) and not same(early, late)
    assert same(early, global_(ask(grasp, weights(net), net, batch), 1 - .1**.25))

def test_one_round_is_the_score(net, batch):
    one_round = ask(iterated(synflow, global_, .9, 1), weights(net), net, batch)
    assert same(one_round, synflow(weights(net), net, batch))

def test_iterated_asks_for_what_the_score_asks_for(net, batch):
    def never(): raise AssertionError('nobody asked for this')
    score = iterated(synflow, global_, .5, 2)
    score_with(score, weights(net), model=lambda: net, batch=lambda: batch, loss_func=never, gen=never)

def test_iterated_can_be_pickled(net, batch):
    score = iterated(snip, global_, .5, 2)
    again = pickle.loads(pickle.dumps(score))
    assert same(ask(again, weights(net), net, batch), ask(score, weights(net), net, batch))

@pytest.mark.parametrize('name', SCORES)
def test_in_a_callback(new_learner, name):
    learn = new_learner()
    learn.prune(PruneCB(.8, score=SCORES[name]))
    assert abs(sparsity(weights(learn.model)) - .8) < 1e-6
    learn.fit(1)
    assert abs(sparsity(weights(learn.model)) - .8) < 1e-6

# refused

UNKNOWN = {'x': torch.ones(1)}
WRONG = {'unknown name, snip': (lambda net, b: snip(UNKNOWN, net, b, F.cross_entropy), 'no parameters'),
         'unknown name, synflow': (lambda net, b: synflow(UNKNOWN, net, b), 'no parameters'),
         'tensors, not tuples': (lambda net, b: grasp(weights(net), net, (b[0][0], b[1][0]), F.cross_entropy),
                                 'each a tuple'),
         'inputs alone': (lambda net, b: synflow(weights(net), net, b[0][0]), 'pair'),
         'loss of each': (lambda net, b: snip(weights(net), net, b, loss_of_each), 'one number'),
         'all': (lambda net, b: iterated(snip, global_, 1.), 'below 1'),
         'no round': (lambda net, b: iterated(snip, global_, .5, 0), 'at least 1')}

@pytest.mark.parametrize('case', WRONG)
def test_refused(net, batch, case):
    call, says = WRONG[case]
    with pytest.raises(ValueError, match=says): call(net, batch)

def test_a_small_product_is_not_nothing():
    "A weight and a gradient that a half can hold, and their product, which it can't"
    net = nn.Linear(4, 1, bias=False, dtype=torch.float16)
    with torch.no_grad(): net.weight.fill_(2**-10)
    x = torch.full((1, 4), 2**-10, dtype=torch.float16)
    found = snip(weights(net), net, ((x,), (x,)), lambda out, y: 2**-6*out.double().sum())
    assert found['weight'].tolist() == [[2**-26]*4]

class Recurrent(nn.Module):
    "Counts its calls, and writes down whether cuDNN was allowed"
    def __init__(self, seen):
        super().__init__()
        self.rnn, self.head, self.calls, self.see = nn.GRU(4, 4), nn.Linear(4, 2), 0, seen.append
    def forward(self, x):
        self.calls += 1
        self.see(torch.backends.cudnn.enabled)
        return self.head(self.rnn(x)[0][-1])

@pytest.mark.parametrize('score', [gradient, snip, grasp])
def test_recurrent_layers_are_asked_without_cudnn_and_forget_it(device, score):
    "cuDNN's recurrent layers have no backward pass in eval mode"
    seen = []
    with seeded(0): net = Recurrent(seen).to(device)
    x, y = torch.randn(3, 8, 4, device=device), torch.randint(2, (8,), device=device)
    score(weights(net), net, ((x,), (y,)), F.cross_entropy)
    assert seen and not any(seen) and torch.backends.cudnn.enabled
    assert net.calls == 0

def test_cudnn_s_other_settings_are_not_touched():
    "Also where they were made by the interface in which asking for the older one is an error"
    net, x = nn.GRU(4, 4), torch.randn(3, 8, 4)
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = 'ieee'
    try: found = snip(weights(net), net, ((x,), (x,)), lambda out, y: F.mse_loss(out[0], y))
    finally: torch.backends.fp32_precision = before
    assert all(s.any() for s in found.values())

class Shares(nn.Module):
    "Two layers that speak through a dict"
    def __init__(self):
        super().__init__()
        self.said = {}
        self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
        self.down.said = self.up.said = self.said
        self.heard = []
    def forward(self, x):
        self.down.said['skip'] = x
        self.heard.append(len(x))
        return self.up(self.down(x)) + self.up.said['skip']

def test_what_layers_share_stays_shared():
    net, x = Shares(), torch.randn(8, 4)
    heard, right = net.heard, net(x)
    for _ in range(2): snip(weights(net), net, ((2*x,), (x,)), F.mse_loss)
    assert net.heard is heard == [8] and net.said is net.down.said is net.up.said
    assert torch.equal(net.said['skip'], x) and torch.equal(net(x), right) and heard == [8, 8]
