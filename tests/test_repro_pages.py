"The pages of the reproductions at any state of the rows: none of today's, some, all, and rows that disagree."
import json
from functools import cache
from pathlib import Path
import numpy as np
import pytest
import torch
from prunelab.lab.answers import tally
from prunelab.lab.compare import Difference
from prunelab.lab.engine import experiments
from prunelab.lab.evidence import gather
from prunelab.lab.head_to_head import GRIDS, advice
from .conftest import run_page

ROOT = Path(__file__).resolve().parent.parent
REPRO = ROOT/'nbs/repro'
N = {'valid': 60, 'test': 120}                          # images: few, so that rows are quick to make

# Made-up rows: an arm is right about an image with a probability that depends on its name

def counted(seed, name, p=.8):
    "Tallies of both splits, the same for the same name and seed"
    rng = np.random.default_rng([seed, *name.encode()])
    right = {split: torch.from_numpy(rng.random(n) < p) for split, n in N.items()}
    return {split: tally(r) for split, r in right.items()}

def population(seed, name, p, draws):
    "What `record` says of a population"
    members = [counted(seed, f'{name} {i}', p) for i in range(draws)]
    counts = {split: [m[split]['right'] for m in members] for split in N}
    return {'n': N, 'counts': counts, 'median': {'draw': 0, 'test': members[0]['test']},
            'best': {'draw': 1, 'of': draws, 'test': members[1]['test']}}

def layers(names=('conv1.weight', 'fc1.weight', 'fc2.weight', 'fc3.weight')):
    return {n: [10, 100] for n in names}

def of_trained(e, seed, p):
    after = counted(seed, e.name, p(e))
    told = e.params['sparsity']
    p_told = told if isinstance(told, float) else .8
    return {'before': after, 'after': after, 'sparsity': p_told, 'kept': layers()}

def of_found(e, seed, p):
    kind = {n: [k, size, 'own', .05] for n, (k, size) in layers().items()}
    return {'sparsity': .8, 'layers': kind, 'before': counted(seed, e.name, p(e))}

def of_without_noise(e, seed, p):
    return {name: counted(seed, f'{e.name} {name}', p(e, name)) for name in e.params['pruners']}

def of_one_shot(e, seed, p):
    return {'sigma used': .01, 'no noise': counted(seed, f'{e.name} plain', p(e, 'no noise')),
            **population(seed, e.name, p(e), e.params['draws'])}

def of_decomposed(e, seed, p):
    arms = {arm: population(seed, f'{e.name} {arm}', p(e), e.params['draws']) for arm in e.params['arms']}
    return {'sigma used': .01, 'no noise': counted(seed, e.name, p(e, 'no noise')), **arms}

def of_variances(e, seed, p):
    ratios = {n: .5 for n in layers()}
    return {'sigma used': .01, 'dense': ratios, 'no noise': ratios, 'noise': ratios, 'noise to clean': ratios,
            **{name: ratios for name in e.params['rivals']}}

def of_sweep(e, seed, p):
    rng, shape = np.random.default_rng(seed), (len(e.params['sigmas']), e.params['draws'])
    return {'sigma used': e.params['sigmas'], 'n': N['test'], 'flow': rng.random(shape).tolist(),
            **{k: rng.integers(0, N['test'], shape).tolist() for k in ('noise only', 'pruned')}}

def of_fine_tune(e, seed, p):
    return {'sigma used': .01, 'curve': [1], **{k: counted(seed, f'{e.name} {k}', p(e))
                                               for k in ('before', 'last', 'best')}}

def of_searched(e, seed, p):
    columns = ('gamma', 'sigma', 'valid', 'valid_det', 'test', 'test_det')
    return {'n': N, 'trials': 5, 'front': {c: [1, 2] for c in columns}}

def of_tuned(e, seed, p):
    def first(kind, *rest): return rest[0][0] if kind == 'one of' else rest[0]
    chosen = {path: first(*spec) for path, spec in e.params['ranges'].items()}
    return {**of_trained(e, seed, p), 'chosen': chosen, 'trials': [{'values': chosen, 'right': 40}]}

def of_peer(e, seed, p): return {**of_trained(e, seed, p), 'versions': {'torch': '2', 'fasterai': '0.4'}}

def made_up(e, seed, p, dense='one network'):
    "A row; None for what no page reads"
    make = globals().get(f'of_{e.run.__name__}')
    if make is None: return None
    facts = {**counted(seed, 'dense', .95), 'sha256': f'{e.recipe.network} {dense} {seed}'}
    return {'identity': e.identity, 'seed': seed, 'result': make(e, seed, p), 'dense': facts, 'seconds': 60.}

def level(e, what=''): return .8

DECLARED = {e.name: e for e in experiments()}

@cache
def made_up_line(name, seed, p, dense):
    "The same as a line of a file, made once; None for what no page reads"
    row = made_up(DECLARED[name], seed, p, dense)
    return row and json.dumps(row)

def results(folder, wanted=lambda e, seed: True, p=level, dense=lambda e: 'one network'):
    "A folder with the rows of protocol 1 that we have, and made-up ones of protocol 2"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('stochastic', 'drop', 'extreme'):
        lines = (REPRO/f'results/{name}.jsonl').read_text().splitlines()
        earlier = [line for line in lines if 'identity' not in json.loads(line)]
        (folder/f'{name}.jsonl').write_text('\n'.join(earlier) + '\n')
    lines = {}
    for e in DECLARED.values():
        for seed in e.seeds:
            line = made_up_line(e.name, seed, p, dense(e)) if wanted(e, seed) else None
            if line: lines.setdefault(e.paper, []).append(line)
    for paper, text in lines.items():
        with open(folder/f'{paper}.jsonl', 'a') as f: f.write('\n'.join(text) + '\n')
    return folder

def run(page, folder):
    "What the page's cells define when they run with these rows"
    return run_page(page, "RESULTS = 'results'", f'RESULTS = {str(folder)!r}')

PAGES = sorted(REPRO.glob('[!.]*.ipynb'))

STATES = { # which units have a row
    'none': lambda e, seed: False,
    'some experiments': lambda e, seed: sum(e.name.encode()) % 2 == 0,
    'some seeds': lambda e, seed: seed < 1,
    'all': lambda e, seed: True}

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
@pytest.mark.parametrize('state', STATES)
def test_a_page_runs_at_any_state(page, state, tmp_path):
    run(page, results(tmp_path/'results', STATES[state]))

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_arms_from_different_dense_networks_are_not_compared(page, tmp_path):
    "The page runs, and says so"
    def machine(e): return f"machine {'dense' in e.name or 'LAMP' in e.name or 'global' in e.name}"
    page_of = run(page, results(tmp_path/'results', dense=machine))
    told = {'1': lambda: page_of['trained'],
            '2': lambda: page_of['claim_line']('', 'away and back', 'dense'),
            '3': lambda: page_of['accuracy_line']('', 'lenet5-mnist', 'LAMP'),
            '4': lambda: page_of['found_line']('lenet300-digits', 'LAMP')}[page.stem[0]]()
    assert 'more than one dense network' in told['rows']

# What a page says follows from the rows

def page_1(tmp_path, p): return run(PAGES[0], results(tmp_path/'results', p=p))

def noise_helps(e, what=''):
    "On ResNet-20: LAMP and no noise bad, noise good"
    return .95 if what == '' and '/noise' in e.name else .3

def test_the_conclusion_about_noise_and_lamp_follows_the_rows(tmp_path):
    told = page_1(tmp_path/'a', noise_helps)['titled']['noise, best of ten']
    assert told == 'noise helps at 60%, 70%, 80%, LAMP at none of 60%, 70%, 80%'
    swapped = page_1(tmp_path/'b', lambda e, what='': .95 if what == 'LAMP' else .3)
    swapped = swapped['titled']['noise, best of ten']
    assert swapped == 'LAMP helps at 60%, 70%, 80%, noise at none of 60%, 70%, 80%'
    nothing = page_1(tmp_path/'c', lambda e, what='': .5)['titled']['noise, best of ten']
    assert 'not measured' not in nothing and '60%, 70%, 80%, LAMP' not in nothing

def test_primaries_count_what_has_no_rows_yet(tmp_path):
    "One complete primary with a tiny p-value: Holm multiplies by all that were declared"
    only = {'stochastic/resnet20-cifar10/noise 0.1 at 70%'}
    page = run(PAGES[0], results(tmp_path/'results', lambda e, seed: e.name in only, noise_helps))
    net = 'resnet20-cifar10'
    assert set(page['known']) == {net} and len(page['PRIMARY']) == 10
    assert page['adjusted'][net] == pytest.approx(10*page['known'][net].p)

@pytest.mark.parametrize('mean, upper, said', [(.02, .14, 'is not shown'), (.02, .08, 'is shown')])
def test_no_loss_is_a_bound_and_not_a_mean(mean, upper, said, tmp_path):
    "A mean below the margin shows nothing while the bound is above it"
    page = run(PAGES[1], results(tmp_path/'results', STATES['none']))
    d = Difference(mean, mean - .1, upper + .02, mean - .05, upper, .05, .5, 5, 10_000)
    page['known_difference'] = lambda *args, **kwargs: (d, ([], []))       # what the page's function finds
    assert said in page['verdict']('away and back')

def test_worse_is_said_to_be_worse(tmp_path):
    def p(e, what=''): return .5 if 'away and back' in e.name or 'hybrid: ours' in e.name else .95
    page = run(PAGES[1], results(tmp_path/'drop', p=p))
    assert page['known']['lenet5-mnist'].low > 0 and 'worse than' in page['primary_told']('lenet5-mnist')
    page = run(PAGES[2], results(tmp_path/'extreme', p=p))
    assert page['known']['lenet5-mnist'].high < 0 and 'below LAMP' in page['primary_told']('lenet5-mnist')

DIGITS = 'lenet300-digits'

def side_by_side(tmp_path, good):
    "Page 4 with rows on digits, where experiments with `good` in their names are right more often"
    return run(PAGES[3], results(tmp_path/'results', wanted=lambda e, seed: DIGITS in e.name,
                                 p=lambda e, what='': .95 if good in e.name else .5))

def test_ours_win_and_lose_by_the_rows(tmp_path):
    ours = side_by_side(tmp_path/'ours', 'drop at')
    assert ours['winners'](DIGITS, .95)[0] == 'drop'
    assert 'drop at 95% is better than' in ours['primary_told'](DIGITS)
    assert 'against the best old rule: ahead at 80% (drop − ' in ours['verdict'](DIGITS)
    tuned = ours['tuned_verdict'](DIGITS, .95)
    assert ' drop (+' in tuned and 'stochastic (' not in tuned
    assert ours['winners']('lenet300-mnist', .95) is None
    assert 'not measured' in ours['verdict']('lenet300-mnist')
    old = side_by_side(tmp_path/'old', '/gradual magnitude at')
    assert old['winners'](DIGITS, .8)[1] == 'gradual magnitude'
    assert 'worse than' in old['primary_told'](DIGITS)
    assert 'behind at 80% (' in old['verdict'](DIGITS)
    assert 'none of ours beats' in old['tuned_verdict'](DIGITS, .98)

def test_losers_are_named(tmp_path):
    page = side_by_side(tmp_path, 'global magnitude at')
    assert page['losers'](DIGITS).count('80%') == len(page['OURS_ALL'])

def test_advice_is_the_plainest_arm_that_the_best_is_not_shown_to_beat(tmp_path):
    def told(folder, good):
        made = results(tmp_path/folder, wanted=lambda e, seed: DIGITS in e.name,
                       p=lambda e, what='': .95 if any(g in e.name for g in good) else .5)
        return advice(gather(GRIDS, made), DIGITS, .95)
    assert told('a', ['/drop at'])[:2] == ('drop', 'drop')
    assert told('b', ['/drop at', '/LAMP with noise at', '/LAMP at'])[0] == 'LAMP'
    arm, best, d = told('c', [''])
    assert arm == 'global magnitude' and d.low <= 0
