"Rows of the benchmarks: what a row says, which a run replaces, and the page that reads them at any state."
import ast
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from prunelab.core import generator
from prunelab.masks import keep_top
from .bench import __main__ as bench
from .bench import common
from .bench.by_sample import keep_by_sample
from .conftest import run_page

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT/'nbs/lab/70_performance.ipynb'
FIELDS = {'bench', 'name', 'what', 'unit', 'ours', 'peer', 'of', 'ratio', 'low', 'high', 'n', 'n peer',
          'target', 'machine', 'load', 'commit', 'finished'}
MACHINE = {'processor', 'cores', 'threads', 'gpu', 'torch', 'python'}

# A row

def test_the_ratio_is_that_of_the_fastest_rounds():
    r = common.row('a', 'x', [2., 4.], [1., 1.5])
    assert (r['ours'], r['peer'], r['ratio']) == (2, 1, 2)
    assert (r['low'], r['high'], r['n']) == (2, pytest.approx(8/3), 2)

def test_the_fastest_rate_is_the_largest():
    r = common.row('a', 'x', [100., 120.], [60., 50.], 'peer/ours', unit='images/s')
    assert (r['ours'], r['peer'], r['ratio']) == (120, 60, .5)

@pytest.mark.parametrize('of', common.RATIOS)
def test_the_ratio_lies_among_those_of_the_rounds(of):
    gen = generator(0, 'cpu')
    for _ in range(50):
        ours, peer = (torch.rand(2, 5, generator=gen, device='cpu') + .1).tolist()
        r = common.row('a', 'x', ours, peer, of)
        assert r['low'] <= r['ratio'] <= r['high']

def test_what_was_measured_once_stands_beside_every_round():
    r = common.row('a', 'x', [1., 2., 4.], 8., 'peer/ours')
    assert (r['ratio'], r['low'], r['high'], r['n'], r['n peer']) == (8, 2, 8, 3, 1)

def test_rounds_come_in_pairs():
    with pytest.raises(ValueError, match='3 rounds of ours and 2 of the other'):
        common.row('a', 'x', [1., 2., 3.], [1., 2.])

def test_contestants_take_turns_after_one_round_that_warms_up():
    said = []
    times = common.in_turns(3, a=lambda: said.append('a'), b=lambda: said.append('b'))
    assert said == [*'abababab'] and [len(t) for t in times.values()] == [3, 3]

def test_a_row_is_printed_with_its_spread():
    told = common.line(common.row('a', 'select', [2., 4.], [1., 1.5], target='at most 3'))
    parts = ('select', 'ours', 'other', 'ratio    2.00', '[2.00, 2.67]', 'n  2', 'target at most 3')
    assert all(part in told for part in parts)

# The file of rows

def made_up(name, ratio=2.):
    "As a benchmark writes it"
    return {**common.row(name, f'about {name}', [ratio, ratio + 1], 1.), 'threads': 2}

@pytest.fixture
def measure(monkeypatch, tmp_path):
    "Runs the command with made-up benchmarks; gives the status and the rows"
    file = tmp_path/'rows.jsonl'
    def run(found, *names):
        monkeypatch.setattr(bench, 'measured', found.get)
        return bench.main([*names, '--rows', str(file)]), bench.read(file)
    return run

def named(rows): return [(r['bench'], r['name'], r['ratio']) for r in rows]

def test_rows_of_what_ran_are_replaced_and_others_stay(measure):
    everything = {name: [made_up('a'), made_up('b')] for name in bench.NAMES}
    _, rows = measure(everything)
    assert len(rows) == 2*len(bench.NAMES) and [r['bench'] for r in rows[::2]] == bench.NAMES
    code, rows = measure({'loader': [made_up('c', 7.)]}, 'loader')
    of_loader = [r for r in named(rows) if r[0] == 'loader']
    assert code == 0 and of_loader == [('loader', 'c', 7)] and len(rows) == 2*len(bench.NAMES) - 1
    assert [*dict.fromkeys(r['bench'] for r in rows)] == bench.NAMES

def test_what_failed_keeps_its_rows_and_is_named(measure, capsys):
    measure({'loader': [made_up('a')], 'masks': [made_up('a')]}, 'loader', 'masks')
    code, rows = measure({'masks': [made_up('b', 3.)]}, 'loader', 'masks')
    assert code == 1 and named(rows) == [('masks', 'b', 3), ('loader', 'a', 2)]
    assert "['loader']" in capsys.readouterr().out

def test_an_unknown_benchmark_is_refused_with_the_choices(measure, capsys):
    with pytest.raises(SystemExit): measure({}, 'mask')
    assert 'mask' in capsys.readouterr().err

def check(r):
    "Is this a row as pages read it?"
    assert set(r) == FIELDS and set(r['machine']) == MACHINE and set(r['commit']) == {'sha', 'clean'}
    assert r['bench'] in bench.NAMES and r['of'] in common.RATIOS
    assert r['low'] <= r['ratio'] <= r['high'] and r['n'] >= 1
    about = json.dumps([r['machine'], r['commit'], r['what']])
    assert platform.node() not in about or len(platform.node()) < 4
    assert not re.search(r'/(?:root|home|tmp|Users|work)\b', about), about

def test_a_row_has_its_machine_and_no_host_or_path(measure):
    _, rows = measure({'masks': [made_up('a')]}, 'masks')
    check(rows[0])
    assert rows[0]['machine']['threads'] == 2 and rows[0]['machine']['cores'] >= 1

def test_a_benchmark_writes_its_rows_where_it_is_told(monkeypatch, tmp_path, capsys):
    file = tmp_path/'rows'
    monkeypatch.setattr(sys, 'argv', ['bench_x', str(file)])
    common.main(lambda: iter([common.row('a', 'x', 2., 1.)]))
    (r,) = bench.read(file)
    assert r['ratio'] == 2 and r['threads'] == torch.get_num_threads() and 'ratio' in capsys.readouterr().out

@pytest.mark.parametrize('name', bench.NAMES)
def test_every_benchmark_can_be_asked_for_its_rows(name):
    tree = ast.parse((ROOT/f'tests/bench/bench_{name}.py').read_text())
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert {'main', 'row'} <= called

def test_the_imports_are_measured_in_processes_of_their_own(monkeypatch, tmp_path):
    "A whole benchmark, with imports that take no time"
    script = ('import sys\nfrom tests.bench import bench_imports as b, common\n'
              'common.main(lambda: [b.against("json", "ast", 2)])')
    file = tmp_path/'rows'
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, '-c', script, str(file)], check=True, env=env, capture_output=True)
    (r,) = bench.read(file)
    assert r['name'] == 'json' and r['n'] == 2 and r['of'] == 'ours - peer'

def test_committed_rows_can_be_trusted():
    "If there are rows: as pages read them, once each, and of a commit that has the files of then"
    rows = bench.read(bench.ROWS)
    for r in rows:
        check(r)
        assert r['commit']['clean'], f'{r["bench"]} was measured with changed files'
    assert len({(r['bench'], r['name']) for r in rows}) == len(rows)

# The selection that was not taken

@pytest.mark.parametrize('kind', ['different', 'rounded', 'pruned', 'constant'])
def test_a_bracket_from_a_sample_gives_the_same_masks(kind):
    gen = generator(1, 'cpu')
    scores = {'a': torch.rand(70, 100, generator=gen, device='cpu'),
              'b': torch.rand((1 << 18) + 5, generator=gen, device='cpu')}
    change = {'different': lambda s: s, 'rounded': lambda s: (8*s).round(), 'pruned': lambda s: s*(s > .9),
              'constant': torch.ones_like}[kind]
    scores = {n: change(s) for n, s in scores.items()}
    for k in (1, 1000, 100_000, 268_000):
        ours, other = keep_top(scores, k), keep_by_sample(scores, k)
        assert all(torch.equal(m, other[n]) for n, m in ours.items())

# The page

PLACE = "ROWS = Path('../../tests/bench/rows.jsonl')"
ASKED = {
    'masks': ['torch', 'floor', 'sample', 'lamp', 'lamp floor', 'lamp score', 'memory', 'memory share'],
    'callback': ['held cpu', 'gradual cpu'],
    'loader': ['augmented', 'augmented floor', 'plain', 'plain floor'],
    'population': ['loader', 'single', 'floor', 'packed', 'packed both'],
    'train': ['files', 'resnet18', 'resnet20', 'resnet56', 'vgg16', 'lenet5', 'limit'],
    'drop': [f'{what} {i}' for what in ('moves', 'floor', 'propose', 'propose floor') for i in (2, 8, 16)],
    'tails': ['scipy', 'floor', 'weights', 'cdf', 'agreement'], 'imports': ['masks', 'callbacks', 'all']}

def write_rows(file, ratio, wanted=lambda key: True):
    "Made-up rows of a whole bench"
    machine = bench.about()
    rows = []
    for name, keys in ASKED.items():
        new = [made_up(key, ratio(f'{name}/{key}')) for key in keys if wanted(f'{name}/{key}')]
        rows = bench.replaced(rows, name, new, machine)
    bench.write(file, rows)
    return rows

def run(file):
    "What the page's cells define when they run with these rows"
    return run_page(PAGE, PLACE, f'ROWS = Path({str(file)!r})')

def ratio_of(key): return 12. if key == 'masks/floor' else 1.5

def test_the_page_without_rows_names_the_command(tmp_path, capsys):
    page = run(tmp_path/'none')
    said = capsys.readouterr().out
    assert page['parts']() == {} and 'No part is measured yet: python -m tests.bench' in said
    for name in ASKED: assert f'not measured yet: python -m tests.bench {name}' in said
    assert 'times as long as' not in said

def test_the_page_with_some_rows_shows_these(tmp_path, capsys):
    write_rows(tmp_path/'rows', ratio_of, lambda key: key.startswith('masks') and key != 'masks/torch')
    page = run(tmp_path/'rows')
    said = capsys.readouterr().out
    assert [*page['parts']()] == ['selection', 'LAMP']
    assert 'not measured yet: python -m tests.bench train' in said
    assert 'LAMP takes 1.5 times' in said and 'Selection takes' not in said     # one of two rows is missing

def test_the_page_with_all_rows_says_which_part_is_farthest(tmp_path, capsys):
    rows = write_rows(tmp_path/'rows', ratio_of)
    page = run(tmp_path/'rows')
    said, found = capsys.readouterr().out, page['parts']()
    assert 'not measured yet' not in said and 'Selection takes 12 times' in said
    assert len(found) == 10 and next(iter(found)) == 'selection'
    told = '8 of 10 parts take less than twice as long as their limit; selection, the farthest, takes 12 '
    assert page['title'](found).startswith(told)
    assert set(page['rows']) == {f"{r['bench']}/{r['name']}" for r in rows}
    page['rows']['tails/floor'] = {**page['rows']['tails/floor'], 'ratio': 30.}        # another is farther
    assert 'tail fits, the farthest, takes 30 times' in page['title'](page['parts']())

def test_the_page_asks_for_rows_that_the_benchmarks_give():
    "Each name stands in the source of its benchmark, as a whole or up to the part that is computed"
    for name, keys in ASKED.items():
        source = (ROOT/f'tests/bench/bench_{name}.py').read_text()
        for key in keys:
            first = re.escape(key.split()[0])
            assert re.search(rf"['.]{first}\b", source), key
