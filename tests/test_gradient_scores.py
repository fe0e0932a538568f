"`prunelab.gradient_scores`: closed forms, finite differences, rounds, and no trace in the network"
import pickle
import pytest, torch
from torch import nn
from torch.nn import functional as F
from prunelab.gradient_scores import gradient, grasp, iterated, snip, synflow
from prunelab.basin import perturb
from prunelab.callbacks import PruneCB
from prunelab.core import seeded, weights
from prunelab.allocation import global_, uniform
from prunelab.masks import sparsity
from prunelab.scores import random_score, score_with

SCORES = {'snip': snip, 'grasp': grasp, 'synflow': synflow, 'iterated': iterated(synflow, global_, .8, 5)}

@pytest.fixture(autouse=True)
def exact():
    "The same sums in the same order, also on CUDA"
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False): yield

class Net(nn.Module):
    "Convolution, BatchNorm, dropout, pooling, classifier"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Linear(4*9, 3)
    def forward(self, x): return self.fc(self.drop(F.max_pool2d(self.bn(self.conv(x)).relu(), 2).flatten(1)))

@pytest.fixture
def net(device):
    with seeded(0), torch.device('cpu'):
        net = Net()
        net(torch.randn(16, 1, 8, 8))        # BatchNorm has seen something
    return net.to(device)

@pytest.fixture
def batch(device):
    with seeded(1): return (torch.randn(12, 1, 8, 8, device='cpu').to(device),), (torch.randint(3, (12,), device='cpu').to(device),)

def ask(score, ws, net, batch): return score_with(score, ws, model=lambda: net, batch=lambda: batch, loss_func=lambda: F.cross_entropy)
def close(a, b): return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], rtol=1e-4, atol=1e-7) for n in a)
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

@pytest.mark.parametrize('name', SCORES)
def test_no_trace(net, batch, name):
    net.train(); net.fc.eval()
    net.conv.weight.requires_grad_(False)                            # frozen layers are scored too
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    modes, state = {n: m.training for n, m in net.named_modules()}, {n: t.clone() for n, t in net.state_dict().items()}
    rng = torch.get_rng_state()
    ws = weights(net)
    with torch.no_grad(): s = ask(SCORES[name], ws, net, batch)     # works inside no_grad, too
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert same(dict(net.state_dict()), state) and torch.equal(rng, torch.get_rng_state())
    assert net.conv.weight.grad is None and not net.conv.weight.requires_grad and bool((net.fc.weight.grad == 1).all())
    for n, w in ws.items():
        assert s[n].shape == w.shape and s[n].dtype == torch.float32 and s[n].device == w.device and not s[n].requires_grad
        assert bool(s[n].isfinite().all()) and bool(s[n].any())
    assert close(s, ask(SCORES[name], ws, net, batch))

def test_modes_come_back_after_an_error(net, batch):
    net.train()
    with pytest.raises(ZeroDivisionError): snip(weights(net), net, batch, lambda out, y: 1/0)
    assert all(m.training for m in net.modules())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_float32(net, batch, dtype):
    net, (x,) = net.to(dtype), batch[0]
    for score in (snip, synflow): assert all(s.dtype == torch.float32 and s.isfinite().all() for s in ask(score, weights(net), net, ((x.to(dtype),), batch[1])).values())

def test_autocast_is_off_inside(net, batch):
    plain = {k: ask(s, weights(net), net, batch) for k, s in SCORES.items()}
    with torch.autocast(batch[0][0].device.type, torch.bfloat16):
        for k, s in SCORES.items(): assert close(plain[k], ask(s, weights(net), net, batch))

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
    assert all(torch.allclose(s, got[n], atol=1e-6) for n, s in ask(SCORES[name], weights(net), net, batch).items())

def test_snip_predicts_a_small_step(net, batch):
    net.double()
    ws, b = {n: w.detach() for n, w in weights(net).items()}, ((batch[0][0].double(),), batch[1])
    s = snip(ws, net, b, F.cross_entropy)
    loss = lambda w: F.cross_entropy(torch.func.functional_call(net.eval(), {'fc.weight': w}, b[0]), b[1][0])
    for i in range(0, 108, 7):
        w = ws['fc.weight']
        up, down = w.clone(), w.clone()
        up.view(-1)[i] *= 1 + 1e-4; down.view(-1)[i] *= 1 - 1e-4
        with torch.no_grad(): assert abs((loss(up) - loss(down)).abs()/2e-4 - s['fc.weight'].view(-1)[i]) < 1e-6

def test_grasp_predicts_the_gradient_norm(net, batch):
    net.double()
    ws, b = {n: w.detach() for n, w in weights(net).items()}, ((batch[0][0].double(),), batch[1])
    norm2 = lambda ws: sum((g**2).sum() for g in gradient(ws, net, b, F.cross_entropy).values()).item()
    def less(n, i, h):
        w = ws[n].clone(); w.view(-1)[i] *= 1 - h
        return {**ws, n: w}
    for n, s in grasp(ws, net, b, F.cross_entropy).items():
        for i in range(0, s.numel(), 11):
            assert abs((norm2(less(n, i, 1e-5)) - norm2(less(n, i, -1e-5)))/-4e-5 - s.view(-1)[i].item()) < 1e-5

def test_grasp_counts_given_weights_only(net, batch):
    part, ws = grasp(weights(net, exclude='conv'), net, batch, F.cross_entropy), weights(net)
    assert list(part) == ['fc.weight'] and not torch.allclose(part['fc.weight'], grasp(ws, net, batch, F.cross_entropy)['fc.weight'])

def test_synflow_is_conserved_and_blind(net, batch):
    s = synflow(weights(net), net, batch)
    assert all(abs(t.double().sum().item() - 1) < 1e-5 for t in s.values())
    flipped = {n: -w.detach() for n, w in weights(net).items()}
    assert same(s, synflow(flipped, net, ((torch.full_like(batch[0][0], 7.),), ())))

def test_synflow_of_a_deep_network_is_finite():
    with seeded(0): net = nn.Sequential(*[nn.Linear(400, 400) for _ in range(60)])
    with torch.no_grad():
        for p in net.parameters(): p.mul_(10)                       # R is far beyond float32
    s = synflow(weights(net), net, ((torch.zeros(1, 400),), ()))
    assert all(abs(t.double().sum().item() - 1) < 1e-4 for t in s.values())

def test_synflow_without_a_path_is_zero(net, batch):
    ws = {n: torch.zeros_like(w) if n == 'conv.weight' else w.detach() for n, w in weights(net).items()}
    assert all(not t.any() for t in synflow(ws, net, batch).values())

def test_synflow_in_a_residual_network():
    class Res(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        def forward(self, x): return self.c(x + self.b(x.relu()) + self.a(x))
    with seeded(0): net = Res()
    s = {n: t.double().sum().item() for n, t in synflow(weights(net), net, ((torch.zeros(1, 4),), ())).items()}
    assert abs(s['c.weight'] - 1) < 1e-5 and 0 < s['a.weight'] + s['b.weight'] < 1

def test_tied_and_unused_weights():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
        def forward(self, x): return self.b(self.a(x))
    with seeded(0): net, b = Odd(), ((torch.randn(5, 3),), (torch.randint(3, (5,)),))
    for score in (snip, grasp, synflow):
        s = ask(score, weights(net), net, b)
        assert list(s) == ['a.weight', 'unused.weight'] and s['a.weight'].any() and not s['unused.weight'].any()
    F.cross_entropy(net(*b[0]), *b[1]).backward()
    assert torch.allclose(snip(weights(net), net, b, F.cross_entropy)['a.weight'], (net.a.weight*net.a.weight.grad).abs(), atol=1e-6)

@pytest.mark.parametrize('score', [snip, grasp, synflow, random_score])
@pytest.mark.parametrize('allocation', [global_, uniform])
def test_rounds_are_the_loop(net, batch, score, allocation):
    ws, masks = weights(net), {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(net).items()}
    for k in range(1, 8):
        s = ask(score, {n: w.detach()*masks[n] for n, w in ws.items()}, net, batch)
        masks = allocation({n: t.masked_fill(~masks[n], -torch.inf) for n, t in s.items()}, 1 - .1**(k/7))
    s = ask(iterated(score, allocation, .9, 7), ws, net, batch)
    assert all(t.isfinite().all() for t in s.values())
    assert same(allocation(s, .9), masks)

def test_rounds_rank_by_when_a_weight_left(net, batch):
    early, late = [global_(ask(iterated(grasp, global_, .9, 4), weights(net), net, batch), 1 - .1**(k/4)) for k in (1, 3)]
    assert all(bool((early[n] | ~late[n]).all()) for n in early) and not same(early, late)
    assert same(early, global_(ask(grasp, weights(net), net, batch), 1 - .1**.25))

def test_one_round_is_the_score(net, batch):
    assert same(ask(iterated(synflow, global_, .9, 1), weights(net), net, batch), synflow(weights(net), net, batch))

def test_iterated_asks_for_what_the_score_asks_for(net, batch):
    score_with(iterated(synflow, global_, .5, 2), weights(net), model=lambda: net, batch=lambda: batch, loss_func=lambda: 1/0, gen=lambda: 1/0)
    f = pickle.loads(pickle.dumps(iterated(snip, global_, .5, 2)))
    assert same(ask(f, weights(net), net, batch), ask(iterated(snip, global_, .5, 2), weights(net), net, batch))

@pytest.mark.parametrize('name', SCORES)
def test_in_a_callback(new_learner, name):
    learn = new_learner()
    learn.prune(PruneCB(.8, score=SCORES[name]))
    assert abs(sparsity(weights(learn.model)) - .8) < 1e-6
    learn.fit(1)
    assert abs(sparsity(weights(learn.model)) - .8) < 1e-6

@pytest.mark.parametrize('call, says', [
    (lambda net, b: snip({'x': torch.ones(1)}, net, b, F.cross_entropy), 'no parameters'),
    (lambda net, b: synflow({'x': torch.ones(1)}, net, b), 'no parameters'),
    (lambda net, b: grasp(weights(net), net, (b[0][0], b[1][0]), F.cross_entropy), 'each a tuple'),
    (lambda net, b: synflow(weights(net), net, b[0][0]), 'pair'),
    (lambda net, b: snip(weights(net), net, b, lambda out, y: F.cross_entropy(out, y, reduction='none')), 'one number'),
    (lambda net, b: iterated(snip, global_, 1.), 'below 1'), (lambda net, b: iterated(snip, global_, .5, 0), 'at least 1')])
def test_refused(net, batch, call, says):
    with pytest.raises(ValueError, match=says): call(net, batch)
