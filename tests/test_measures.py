"What the reproduction of paper 1 counts, on a narrow ResNet-18 trained for a moment on digits."
import subprocess, sys
from pathlib import Path
import pytest, torch
from prunelab.lab import measures
from prunelab.basin import evaluate_population
from prunelab.core import weights
from prunelab.masks import apply_, global_, sparsity
from prunelab.lab.models import resnet18
from prunelab.lab.engine import experiments, read
from prunelab.scores import magnitude
from prunelab.stochastic import stochastic_prune
from prunelab.lab.training import Recipe, dense

ROOT = Path(__file__).parent.parent

@pytest.fixture(scope='module', params=['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here'))])
def net(tmp_path_factory, request):
    return dense(Recipe(resnet18, 'digits', epochs=2, width=.0625, valid=200, n_train=512, bs=64, size=8), cache=tmp_path_factory.mktemp('dense'), device=request.param)

def right(net, member, i):
    with torch.autocast('cuda', torch.bfloat16, enabled=net.learn.dls.device.type == 'cuda'): return round(evaluate_population(net.learn.model, [member], net.learn.dls[i].new(bs=500)).item()*len(net.learn.dls[i].dataset))

def test_one_shot_counts_what_the_chapter_does(net):
    r = measures.one_shot(net, 7, .8, .01, draws=2)
    ws = weights(net.learn.model, ('conv1', 'fc'))
    plain = apply_({n: w.detach().clone() for n, w in ws.items()}, global_(magnitude(ws), .8))
    assert r['det'] == {k: right(net, plain, i) for k, i in (('valid', 1), ('test', 2))}
    masks, noisy = stochastic_prune(ws, .8, .01, (7, 1))
    assert r['draws']['test'][1] == right(net, apply_(noisy, masks), 2)
    assert r['n'] == {'valid': 200, 'test': 360} and r['sigma used'] == .01

def test_sigma_in_units_of_the_threshold(net):
    ws = weights(net.learn.model, ('conv1', 'fc'))
    tau = torch.cat([w.detach().abs().flatten() for w in ws.values()]).sort(descending=True).values
    n = len(tau) - round(.8*len(tau))
    assert measures.one_shot(net, 0, .8, .5, draws=1, unit='tau')['sigma used'] == pytest.approx(.5*tau[n - 1].item())

def test_noise_everywhere_reaches_the_layers_that_stay_dense(net):
    here, there = (next(measures._draws(net, 3, 'GMP', .8, .05, [0], everywhere)) for everywhere in (False, True))
    ws = weights(net.learn.model)
    assert set(ws) - set(here) == {'conv1.weight', 'fc.weight'} and set(there) == set(ws)
    assert all(torch.equal(here[n], there[n]) for n in here)
    assert not torch.equal(there['fc.weight'], ws['fc.weight']) and there['fc.weight'].count_nonzero() == ws['fc.weight'].numel()

def test_the_first_images(net):
    few = measures.one_shot(net, 0, .5, .01, draws=1, images=50)
    assert few['n'] == {'valid': 50, 'test': 50} and max(few['det'].values()) <= 50
    ys = measures._plain(net, 2, images=100).dataset.y.tolist()       # mixed, although a test set may be sorted by class
    assert set(ys) == set(range(10)) and ys == measures._plain(net, 2, images=200).dataset.y.tolist()[:100]

def test_a_sorted_test_set_is_mixed(net, monkeypatch):
    ds = net.learn.dls[2].dataset
    monkeypatch.setattr(net.learn.dls[2], 'dataset', type(ds)(ds.x[ds.y.argsort()], ds.y.sort().values, ds.vocab))
    assert len(set(measures._plain(net, 2, images=60).dataset.y.tolist())) > 5

@pytest.mark.parametrize('pruner', measures.PRUNERS)
def test_every_pruner_keeps_the_number_that_was_asked(net, pruner):
    for sigma in (0, .02):
        m = next(measures._draws(net, 0, pruner, .8, sigma, [0]))
        n = sum(t.numel() for t in m.values())
        kept = sum(int(t.count_nonzero()) for t in m.values())
        assert kept == n - round(.8*n)

def test_inside_adds_up(net):
    r = measures.inside(net, 0, .8, .5, draws=2, batches=1, recalibrate=2, unit='tau')
    det, noisy, n = (sum(v[i] for v in r['kept'].values()) for i in range(3))
    assert det == noisy == n - round(.8*n)
    assert 0 < sum(r['born'].values()) < noisy
    assert len(r['recalibrated det']['test']) == 1 and len(r['recalibrated noisy']['test']) == len(r['shares without noise']['test']) == 2
    still = measures.inside(net, 0, .8, 0., draws=1, batches=1, recalibrate=2)
    assert sum(still['born'].values()) == 0 and still['variance']['det'] == still['variance']['noisy'] and still['recalibrated det'] == still['recalibrated noisy']

def test_recalibration_is_not_what_the_others_see(net):
    "Controls do not leak: the dense network and its statistics are as before"
    before = {k: v.clone() for k, v in net.learn.model.state_dict().items()}
    measures.inside(net, 0, .8, .1, draws=1, batches=1, recalibrate=2)
    measures.sweep(net, 0, .8, [.1], draws=1, flow=64)
    assert all(torch.equal(v, before[k]) for k, v in net.learn.model.state_dict().items())

def test_sweep_begins_with_the_dense_network(net):
    r = measures.sweep(net, 0, .8, [0, 1.], draws=2, flow=64, unit='tau')
    assert r['noise only'][0] == [net.facts['valid']]*2 and len(set(r['flow'][0])) == 1 and len(set(r['flow'][1])) == 2
    assert r['pruned'][0][0] == measures.one_shot(net, 0, .8, 0, draws=1)['det']['valid']

@pytest.mark.parametrize('arm', ['DP', 'SP'])
def test_fine_tuning_freezes_batchnorm_clips_and_stays_sparse(net, arm, monkeypatch):
    seen, grads = [], []
    monkeypatch.setattr(measures, '_right', lambda net, members, images=None, on=None: seen.append([{k: v.clone() for k, v in m.items()} for m in members()][0]) or {'test': [0]})
    clip = measures.Clip.before_step
    monkeypatch.setattr(measures.Clip, 'before_step', lambda self: (clip(self), grads.extend(p.grad.abs().max().item() for p in self.model.parameters() if p.grad is not None)))
    r = measures.fine_tune(net, 0, .8, .1, arm, epochs=3, lr=.05, n=128, clip=.01, best_of=2, unit='tau')
    before, last, best = seen
    dense = net.learn.model.state_dict()
    norm = [k for k in dense if 'bn' in k or 'downsample.1' in k]
    assert norm and all(torch.equal(last[k], dense[k]) for k in norm)
    ws = weights(net.learn.model, ('conv1', 'fc'))
    assert max(grads) <= .01 + 1e-6
    for m in seen: assert sparsity({n: m[n] for n in ws}) == pytest.approx(round(.8*(n := sum(w.numel() for w in ws.values())))/n, abs=1e-9)
    assert not torch.equal(last['fc.weight'], dense['fc.weight']) and len(r['curve']) == 3
    assert torch.equal(before['fc.weight'], dense['fc.weight'])
    accuracy = lambda m: right(net, m, 1)/200
    assert r['curve'][-1] == pytest.approx(accuracy(last), abs=.011) and max(r['curve']) == pytest.approx(accuracy(best), abs=.011)     # bf16 and other batches on CUDA

def test_misspelt_arguments_are_refused(net):
    with pytest.raises(ValueError, match='DP'): measures.fine_tune(net, 0, .8, .1, 'sp')
    with pytest.raises(ValueError, match='tau'): measures.one_shot(net, 0, .8, .1, unit='Tau')

def test_a_search_gives_a_front(net):
    r = measures.searched(net, 0, 'TPE', trials=2)['front']
    assert 1 <= len(r['test']) <= 2 and set(r) >= {'sigma', 'gamma', 'valid', 'test'}

def test_a_rehearsal_writes_nowhere_near_the_results():
    name = next(e.name for e in experiments() if not e.gpu)
    p = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'prunelab.lab.engine', '--tiny', '--only', name], capture_output=True, text=True, cwd=ROOT)
    assert p.returncode == 0, p.stdout + p.stderr
    folder = Path(p.stdout.strip().splitlines()[-1].removeprefix('rows: '))
    rows = [r for f in folder.glob('*.jsonl') for r in read(f)]
    assert [r['name'] for r in rows] == [name] and rows[0]['what']['recipe']['data'] == 'digits'
    assert not [r for f in (ROOT/'nbs/repro/results').glob('*.jsonl') for r in read(f) if r['what']['recipe']['data'] == 'digits']
