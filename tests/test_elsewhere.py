"Simulated machines change what another machine may change, and nothing else; what fails there is reported."
import json, os, subprocess, sys, time
from pathlib import Path
import nbformat, pytest, torch
import tests.elsewhere.__main__
from tests.elsewhere import table
from tests.elsewhere.__main__ import environment, every, once, results, run_all, threads
from tests.elsewhere.machine.another_machine import change_weight_, round_otherwise_
from tests.elsewhere.training import training_pages

ROOT = Path(__file__).resolve().parent.parent

def page(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), path)
    return path

def test_a_change_is_small_and_a_function_of_value_and_machine():
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    first, again, other = w.clone(), w.clone(), w.clone()
    change_weight_(first, 1)
    change_weight_(again, 1)
    change_weight_(other, 2)
    noise = torch.stack([first, other]).double()/w - 1
    assert torch.equal(first, again) and torch.corrcoef(noise)[0, 1].abs() < .02
    assert noise.std(1).tolist() == pytest.approx([1e-6]*2, rel=.02) and noise.mean(1).abs().max() < 2e-8
    part = w[10:20].clone()
    change_weight_(part, 1)
    assert torch.equal(part, first[10:20])      # wherever the number stands

@pytest.mark.parametrize('dtype,unit', [(torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_a_rounded_sum_changes_in_its_last_bits(dtype, unit):
    x = torch.rand(100_000, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 1
    first, again, other = x.clone(), x.clone(), x.clone()
    round_otherwise_(first, 1)
    round_otherwise_(again, 1)
    round_otherwise_(other, 2)
    steps = torch.stack([first - x, other - x])/unit
    assert torch.equal(first, again)
    assert abs(torch.corrcoef(steps)[0, 1] - .5) < .02    # they share the bits that go, not those that come
    # two draws among 32 differ by sqrt((32² - 1)/6)
    assert steps.std(1).tolist() == pytest.approx([13.06]*2, rel=.02) and steps.mean(1).abs().max() < .2

def test_an_exact_sum_stays():
    x = torch.arange(-1000, 1000)/8
    y = x.clone()
    round_otherwise_(y, 1)
    assert torch.equal(x, y)

@pytest.mark.parametrize('dtype', [torch.int64, torch.float16, torch.bfloat16])
def test_what_has_no_such_bits_stays(dtype):
    w = torch.ones(9, dtype=dtype)
    change_weight_(w, 1)
    assert torch.equal(w, torch.ones(9, dtype=dtype))

PROBE = """
import json, sys, torch, safetensors.torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(27, 4))

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

first, second, x = net(), net(), torch.rand(2, 1, 5, 5)
state = first.state_dict()
torch.save(state, 'new.pt')
safetensors.torch.save_file(state, 'new.safetensors')
given = nn.Linear(300, 8, bias=False)
with torch.no_grad(): given.weight.copy_(torch.linspace(.1, .3, 2400).view(8, 300))
print(json.dumps({
    'equal': [same(state, second.state_dict()), torch.equal(first(x), second(x)),
              same(state, torch.load('new.pt')), same(state, safetensors.torch.load_file('new.safetensors'))],
    'drawn': state['0.weight'].tolist(), 'computed': given(torch.linspace(.2, .7, 300)).tolist(),
    'loaded': torch.load('old.pt')['w'].double().tolist(), 'counted': torch.load('old.pt')['n'].item(),
    'input': x.sum().item(),
    'threads': torch.get_num_threads(), 'vectors': torch.backends.cpu.get_cpu_capability()}))
"""

def probe(machine, folder):
    "What the probe sees on simulated machine number `machine`; None is this one"
    env = environment(machine, time.time() - 60)
    command = [sys.executable, '-c', PROBE]
    res = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    return json.loads(res.stdout)

def test_equal_stays_equal_and_the_rest_differs(tmp_path):
    torch.save({'w': torch.tensor([.1, .2]), 'n': torch.tensor(3)}, tmp_path/'old.pt')
    os.utime(tmp_path/'old.pt', (1, 1))
    seen = [probe(machine, tmp_path) for machine in (None, 1, 2, 3)]
    assert all(s['equal'] == [True]*4 for s in seen)
    for key in ('drawn', 'computed', 'loaded'): assert len({str(s[key]) for s in seen}) == 4, key
    for key in ('counted', 'input'): assert len({s[key] for s in seen}) == 1, key    # no float, no weight
    assert [s['threads'] for s in seen[1:]] == [1, 2, 1] == [threads(k) for k in (1, 2, 3)]
    assert seen[3]['vectors'] == 'DEFAULT'

def test_a_machine_that_cannot_be_simulated_is_an_error():
    "Rather than a page that runs as if nothing were to be simulated"
    env = {**environment(1, time.time()), 'ELSEWHERE_MACHINE': 'one'}
    res = subprocess.run([sys.executable, '-c', 'print("ran")'], env=env, capture_output=True, text=True)
    assert res.returncode and not res.stdout and 'could not be simulated' in res.stderr

def elsewhere(*args):
    command = [sys.executable, '-m', 'tests.elsewhere', *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

START = """import torch
from torch import nn
from fastcore.test import test_eq
torch.manual_seed(0)
weight = nn.Linear(4, 3).weight.data
torch.manual_seed(0)"""

def rows_of(tmp_path):
    "Two pages that are there and one that isn't, with gaps and a failure"
    for name in 'ab': page(tmp_path/f'{name}.ipynb', '1')
    a, b, gone = (str(tmp_path/f'{name}.ipynb') for name in ('a', 'b', 'gone'))
    said = 'assert x → AssertionError: a | b'
    return {a: ('2.14.1', {1: None, 2: said, 3: None}), b: ('2.15.0', {1: None}), gone: ('2.10.0', {1: None})}

def test_pages_that_fail_are_named_and_the_table_is_written(tmp_path):
    """A page that knows its weights holds here and fails elsewhere; one that draws them twice holds

    Rows of other pages stay."""
    known, drawn = 'torch.empty(3, 4).uniform_(-.5, .5)', 'nn.Linear(4, 3).weight.data'
    fragile = page(tmp_path/'fragile.ipynb', START, f'test_eq(weight, {known})')
    sound = page(tmp_path/'sound.ipynb', START, f'test_eq(weight, {drawn})')
    [(_, _, failure, _)] = results({None: [fragile]}, 600)
    assert failure is None    # on this machine
    others = rows_of(tmp_path)
    *there, _ = others
    table.write(tmp_path/'table.md', {**others, str(sound): ('2.10.0', {1: None, 3: None})})
    res = elsewhere(f'{fragile} {sound}', '--machines', 2, '--table-file', tmp_path/'table.md')
    written = (tmp_path/'table.md').read_text()
    assert res.returncode == 1, res.stderr
    assert f'machine 1: {fragile}: test_eq(weight, torch.empty(3, 4)' in res.stdout
    assert '2 of 4 runs hold' in res.stdout and 'AssertionError' in written
    version = torch.__version__.partition('+')[0]
    for text in (res.stdout, written):
        assert f'| {fragile} | {version} | **fails** | **fails** |' in text
        assert f'| {sound} | {version} | holds | holds |' in text
    found = table.read(tmp_path/'table.md')
    assert {name: found[name] for name in there} == {name: others[name] for name in there}
    assert found[str(sound)] == (version, {1: None, 2: None})      # nothing of other machines

def test_a_table_is_read_as_it_was_written(tmp_path):
    rows = rows_of(tmp_path)
    assert table.parse(table.text(rows)) == rows
    assert '4 of 5 runs hold' in table.text(rows)
    table.write(tmp_path/'table.md', rows)
    *there, gone = rows
    assert table.read(tmp_path/'table.md') == {name: rows[name] for name in there}      # without the last
    assert table.read(tmp_path/'none.md') == {}

def test_a_killed_run_keeps_what_it_had(capsys, monkeypatch):
    "Results are said and kept one by one"
    pages, kept = [ROOT/'first.ipynb', ROOT/'second.ipynb'], []
    ended = ((page, machine, None, 1.) for machine in (1, 2) for page in pages)
    monkeypatch.setattr(tests.elsewhere.__main__, 'results', lambda plan, limit: ended)
    def keep(found):
        kept.append({name: dict(row) for name, (_, row) in found.items()})
        if len(kept) == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_all(every(pages, 2), 600, keep)
    assert kept == [{'first.ipynb': {1: None}}, {'first.ipynb': {1: None}, 'second.ipynb': {1: None}}]
    assert capsys.readouterr().out.count('machine 1: ') == 2

def test_each_page_once():
    "`make test` runs no page twice, and each of the machines has pages of its own"
    pages, training = [*'abcdefg'], [*'bcdfg']
    plan = once(pages, 3, training)
    assert plan == {None: ['a', 'e'], 1: ['b', 'f'], 2: ['c', 'g'], 3: ['d']}

def test_each_page_once_on_this_machine_or_another(tmp_path):
    "Weights that are known hold here only; a page without training is not sent elsewhere"
    known = page(tmp_path/'known.ipynb', START, 'test_eq(weight, torch.empty(3, 4).uniform_(-.5, .5))')
    fits = page(tmp_path/'fits.ipynb', 'def fit(learn): learn.fit(1)', 'import os',
                'assert "ELSEWHERE_MACHINE" in os.environ')
    res = elsewhere(f'{known} {fits}', '--each-once')
    assert res.returncode == 0 and '2 of 2 runs hold' in res.stdout, res.stdout
    assert f'this machine: {known}: holds' in res.stdout and f'machine 1: {fits}: holds' in res.stdout

@pytest.mark.parametrize('file', sorted(p.name for p in (ROOT/'tests/elsewhere').glob('table*.md')))
def test_in_the_committed_tables_every_run_holds(file):
    rows = table.read(ROOT/'tests/elsewhere'/file)
    assert rows and not any(failure for _, found in rows.values() for failure in found.values())

def test_a_page_that_is_not_there_is_an_error():
    res = elsewhere('nbs/no_such_page.ipynb')
    assert res.returncode == 1 and 'no such page' in res.stderr

def test_a_page_that_never_ends_fails(tmp_path):
    endless = page(tmp_path/'endless.ipynb', 'import time\nwhile True: time.sleep(1)')
    [(_, _, failure, _)] = results({1: [endless]}, limit=3)
    assert failure == 'TimeoutError: not done after 3 seconds'

def test_training_pages_are_found_by_what_they_do(tmp_path):
    module = tmp_path/'lab.py'
    module.write_text("""def train(x): x.fit(1)
def arm(x): return train(x)
def dense(x): return arm(x)
def look(x): return x.plot()""")
    cells = {'direct': ['learn.fit_one_cycle(3)', 'assert acc > .9'],
             'through': ['from lab import arm\na = [arm(x) for x in range(3)]', 'test_eq(a, [1, 1, 1])'],
             'handed_on': ['from lab import arm\nlist(map(arm, seeds))', '%matplotlib inline', 'assert True'],
             'own': ['def again(x):\n    for _ in range(3): x.opt.step()', 'assert again(2)'],
             'silent': ['learn.fit(1)'],
             'looks': ['from lab import look\nassert look(1)'],
             'same_name': ['dense = make()\nassert dense.weight.sum() == 3']}
    pages = [page(tmp_path/f'{name}.ipynb', *sources) for name, sources in cells.items()]
    assert [p.stem for p in training_pages(pages, [module])] == ['direct', 'through', 'handed_on', 'own']

def test_every_page_that_fits_and_asserts_is_among_them():
    pages = sorted((ROOT/'nbs').rglob('[!.]*.ipynb'))
    found = training_pages(pages, sorted((ROOT/'prunelab').rglob('*.py')))
    fit = [p for p in pages if '.fit_one_cycle(' in p.read_text() and 'assert ' in p.read_text()]
    assert fit and set(fit) <= set(found) < set(pages)
