"The website: built once from the committed outputs, read as files, and read in a browser."
import html
import http.server
import json
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from .conftest import docs_script

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('[!.]*.ipynb') if '.ipynb_checkpoints' not in p.parts)

site = docs_script('site')
PAGES = {site.nbpath2html(p.relative_to(ROOT/'nbs')).with_suffix('').as_posix(): p for p in NBS}
NAMES = [*sorted(PAGES), 'reference']

def make(out, work, *args):
    "Build a site in a process of its own"
    cmd = [sys.executable, ROOT/'docs/site.py', out, '--work', work, *args]
    return subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True)

def without_tags(text): return html.unescape(re.sub(r'<[^>]*>', '', text))

def cells_of(path): return nbformat.read(path, as_version=4).cells

@pytest.fixture(scope='session')
def built(tmp_path_factory):
    d = tmp_path_factory.mktemp('site')
    res = make(d/'out', d/'work')
    assert res.returncode == 0, res.stderr[-3000:]
    return d/'out'

def new_cell(cell):
    "Markdown, or code as (source, output)"
    if isinstance(cell, str): return nbformat.v4.new_markdown_cell(cell)
    source, printed = cell
    outputs = [nbformat.v4.new_output('stream', text=printed)] if printed else []
    return nbformat.v4.new_code_cell(source, outputs=outputs)

def notebooks(folder, **pages):
    "A folder of small notebooks, {name: cells}"
    folder.mkdir(exist_ok=True)
    for name, cells in pages.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[new_cell(c) for c in cells]), folder/f'{name}.ipynb')
    return folder

# ---- as files

@pytest.mark.parametrize('name', PAGES)
def test_every_notebook_has_a_page_and_plain_text(built, name):
    assert (built/f'{name}.html').exists() and (built/f'{name}.html.md').read_text().startswith('# ')
    assert name == 'index' or f'/{name}.html.md)' in (built/'llms.txt').read_text()

def test_it_is_small(built): assert sum(p.stat().st_size for p in built.rglob('*')) < 25e6

def test_it_fetches_nothing(built): assert list(site.problems(built)) == []

def is_hidden(c):
    return c.cell_type == 'code' and re.search(r'^#\| *(hide|default_exp|export)\b(?!s)', c.source, re.M)

def telling_lines(sources):
    "Lines that no page would have by chance"
    lines = {line.strip() for source in sources for line in source.splitlines()}
    return {line for line in lines if len(line) > 25 and not re.match(r'("|#|@|def |class )', line)}

@pytest.mark.parametrize('name', PAGES)
def test_hidden_cells_are_not_there(built, name):
    cells = cells_of(PAGES[name])
    shown = '\n'.join(c.source for c in cells if not is_hidden(c))
    page, plain = without_tags((built/f'{name}.html').read_text()), (built/f'{name}.html.md').read_text()
    for line in telling_lines(c.source for c in cells if is_hidden(c)):
        if line not in shown: assert line not in page and line not in plain

def folds_of(page): return re.findall(r'<details class="[^"]*\bhide\b.*?</details>', page, re.S)

@pytest.mark.parametrize('name', PAGES)
def test_solutions_are_folded(built, name):
    cells = [c for c in cells_of(PAGES[name]) if '#| code-fold: true' in c.source]
    folds = [(fold, without_tags(fold)) for fold in folds_of((built/f'{name}.html').read_text())]
    assert len(folds) >= len(cells)
    for c in cells:
        summary, last = re.search(r'#\| code-summary: "(.*)"', c.source), c.source.splitlines()[-1].strip()
        title = f'>{summary[1]}<' if summary else ''
        assert any(title in fold and last in plain for fold, plain in folds), c.id

OPEN = re.compile(r'^(?:[%!]|#\| *(?:exports|code-fold: false))', re.M)           # shown as it is

@pytest.mark.parametrize('name', PAGES)
def test_assertions_stand_behind_a_click(built, name):
    "No line that asserts stands in the open, unless its cell defines something and shows nothing"
    page = (built/f'{name}.html').read_text()
    for fold in folds_of(page): page = page.replace(fold, '')
    open_lines = {line.strip() for line in without_tags(page).splitlines()}
    for c in cells_of(PAGES[name]):
        if c.cell_type != 'code' or is_hidden(c) or OPEN.search(c.source): continue
        if not c.outputs and re.search('^(?:def|class|@)', c.source, re.M): continue
        seen = {line for line in c.source.splitlines() if re.match(r'assert |test_\w+\(', line)}
        assert not open_lines & seen, c.id

@pytest.fixture
def keep_top(built):
    "The card of a function"
    page = (built/'masks.html').read_text()
    card = page[page.index('id="keep_top"'):]
    return card[:card.index('class="cell')]

def test_a_card_links_to_the_line_of_the_source(keep_top):
    line = re.search(r'prunelab/blob/main/prunelab/masks\.py#L(\d+)"', keep_top)[1]
    assert line == str(site.lines_of('masks')['keep_top'])

def test_a_card_has_signature_and_meanings(keep_top):
    words = ' '.join(html.unescape(re.sub('<[^>]*>', ' ', keep_top)).split())
    spaced = re.sub(r'([(),])', r' \1 ', words).replace('  ', ' ')
    assert 'keep_top ( scores , k )' in spaced
    assert 'k int How many to keep in total; ties go to the earlier name' in words
    assert 'returns dict {name: bool mask}' in words

@pytest.mark.parametrize('page', ['reference', 'allocation'])
def test_names_link(built, page):
    "In the reference, and in backticks on another page"
    assert 'href="masks.html#keep-top"' in (built/f'{page}.html').read_text()

def test_the_reference_is_complete(built):
    entry = r'html#[^"]*"[^>]*>(?:<span[^>]*>)?<code[^>]*><span class="pre">([\w.]+)</span>'
    listed = set(re.findall(entry, (built/'reference.html').read_text()))
    for path in (ROOT/'prunelab').rglob('[!_]*.py'):
        module = '.'.join(path.relative_to(ROOT/'prunelab').with_suffix('').parts)
        assert site.lines_of(module).keys() <= listed, module

def test_the_search_index_knows_the_chapters(built):
    index = re.search(r'Search\.setIndex\((.*)\)', (built/'searchindex.js').read_text(), re.S)[1]
    index = json.loads(index)
    found = index['titleterms']['dropprun']
    assert 'drop' in [index['docnames'][i] for i in ([found] if isinstance(found, int) else found)]

# ---- two small pages

SMALL = {
    'index': ['# front\n\n> A promise, with `code`.', 'to [the other](01_other.ipynb#what-goes-wrong-at-99)'],
    '01_other': [
        '# Other\n\n> Why?',
        '## What goes wrong at 99 %\n\n$$x^2$$ and $y$',
        ('#| hide\nsecret_cell = 1', ''),
        ('#| hide_input\nprint("shown", secret_input)', 'visible output'),
        ('#| code-fold: true\n#| code-summary: "Solution 1"\nanswer = 6*7', 'forty-two'),
        ('near = 2\nassert near < 3', ''),
        ('#| code-fold: false\nassert in_the_open', ''),
        ('value = 3\nassert beside_it(\n    value)\nvalue', 'the result'),
        ('def taught():\n    assert inside', ''),
        '| | a | b |\n|---|---|---|\n| row | 1 | 2 |',
        ('plain = 1', ''),
        '::: {.callout-note title="Mind"}\nthe gap\n:::',
        '::: {.callout-tip collapse="true"}\n## Hint\nlook *here*\n:::']}

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The folder of a site of two pages"
    d = tmp_path_factory.mktemp('small')
    res = make(d/'out', d/'work', '--nbs', notebooks(d/'nbs', **SMALL))
    assert res.returncode == 0, res.stderr
    return d/'out'

@pytest.fixture
def other(small): return (small/'other.html').read_text()

def test_hidden_parts_are_hidden(other): assert 'secret' not in other and 'visible output' in other

def test_a_link_to_a_section_leads_there(small):
    assert 'href="other.html#what-goes-wrong-at-99"' in (small/'index.html').read_text()

def test_a_solution_is_folded_with_its_result(other):
    fold = re.search(r'<details class="[^"]*\bhide\b[^>]*>(.*?)</details>', other, re.S)[1]
    assert 'Solution 1' in fold and 'answer' in fold and 'forty-two' in fold and 'plain' not in fold

def test_assertions_are_folded(other):
    solution, alone, beside = folds_of(other)
    assert '>Check<' in alone and 'near' in alone and '>Check<' in beside and 'beside_it' in beside
    in_the_open = without_tags(other.replace(alone, '').replace(beside, ''))
    assert 'near' not in in_the_open and 'beside_it' not in in_the_open and 'Check' not in in_the_open
    shown = 'assert in_the_open', 'value = 3\nvalue\n', 'the result', 'assert inside'
    assert all(text in in_the_open for text in shown)

def test_a_table_with_an_empty_corner_has_row_headers(other):
    table = re.search('<table.*?</table>', other, re.S)[0]
    assert re.search(r'<th scope="row"[^>]*><p>row</p></th>', table) and len(re.findall(r'<th\b', table)) == 3
    assert re.search(r'<tr[^>]*><td[^>]*></td>', table)

def test_callouts_are_boxes_or_folds(other):
    fold = r'<details class="fold"><summary>Hint</summary>\s*<p>look <em>here</em></p>\s*</details>'
    assert re.search(r'class="[^"]*\bnote\b', other) and re.search(fold, other) and ':::' not in other

def test_formulas_are_left_to_katex(other): assert '<div class="math display notranslate">x^2</div>' in other

def test_a_page_says_what_it_promises(other): assert 'og:description" content="Why?"' in other

def test_a_page_leads_to_colab(other):
    assert 'colab.research.google.com/github/prunelab/prunelab/blob/main/nbs/01_other.ipynb' in other

def test_broken_links_fail_the_build(tmp_path):
    broken = '[a](nowhere.ipynb) and [b](01_other.ipynb#no-such-anchor)'
    pages = {'index': ['# front\n\n> A promise.', broken], '01_other': ['# Other\n\n> Why?', '## Section']}
    res = make(tmp_path/'out', tmp_path/'work', '--nbs', notebooks(tmp_path/'nbs', **pages))
    assert res.returncode != 0 and 'nowhere.ipynb' in res.stderr and 'no-such-anchor' in res.stderr

TAGS = {
    '<a href="gone.html">': 'is not there', '<a href="#gone">': 'no such section',
    '<script src="https://cdn.example/x.js">': 'fetches', '<img src="//cdn.example/x.png">': 'fetches',
    '<link rel="stylesheet" href="https://fonts.example/x.css">': 'fetches',
    '<a href="https://example.org">': None, '<a href="#here">': None,
    '<link rel="canonical" href="https://example.org">': None}

@pytest.mark.parametrize('tag,said', TAGS.items())
def test_links_in_raw_html_are_checked_too(tmp_path, tag, said):
    (tmp_path/'index.html').write_text(f'<p id="here">{tag}</p>')
    found = list(site.problems(tmp_path))
    assert said in found[0] if said else not found

FOREIGN = ['see @fig-loss', '{{< include x >}}', '::: {.panel-tabset}\nx\n:::', '```{mermaid}\ngraph\n```',
           ('#| fig-cap: x\n1', '')]

@pytest.mark.parametrize('cell', FOREIGN)
def test_other_dialects_are_refused(tmp_path, cell):
    nbs = notebooks(tmp_path, index=['# front\n\n> A promise.', cell])
    with pytest.raises(ValueError, match='dialect|directives'): site.sources(nbs, tmp_path/'src')

@pytest.mark.parametrize('names', [('01_same', '02_same'), ('03_search',), ('reference',)])
def test_no_two_pages_share_a_name(tmp_path, names):
    pages = {name: ['# x\n\n> .'] for name in ('index', *names)}
    nbs = notebooks(tmp_path/'nbs', **pages)
    with pytest.raises(ValueError, match='would be called'): site.sources(nbs, tmp_path/'src')

# ---- in a browser

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def address(built):
    handler = partial(Quiet, directory=built)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()

@pytest.fixture(scope='session')
def reader(browser):
    context = browser.new_context(color_scheme='light')
    yield context
    context.close()

class Record:
    "What went wrong on a page, and what was asked for"
    def __init__(self, page):
        self.wrong, self.asked = [], []
        page.on('console', self.console)
        page.on('pageerror', lambda e: self.wrong.append(str(e)))
        page.on('requestfailed', lambda r: self.wrong.append(f'{r.url}: {r.failure}'))
        page.on('response', self.response)
        page.on('request', lambda r: self.asked.append(r.url))

    def console(self, message):
        if message.type == 'error': self.wrong.append(message.text)

    def response(self, r):
        if r.status >= 400: self.wrong.append(f'{r.url}: {r.status}')

@pytest.fixture
def tab(reader):
    "A page of the browser with its record"
    tab = reader.new_page()
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.record = Record(tab)
    yield tab
    tab.close()

# Formulas that are not set, dollars that are left, text that is too pale, what is too wide; {} if all is well
LOOK = (ROOT/'tests/look.js').read_text()

@pytest.mark.parametrize('name', NAMES)
def test_a_page_loads_without_asking_elsewhere(name, tab, address):
    tab.goto(f'{address}/{name}.html', wait_until='load')
    assert not tab.record.wrong and all(url.startswith((address, 'data:')) for url in tab.record.asked)

@pytest.mark.parametrize('name', NAMES)
def test_a_page_looks_well(name, tab, address):
    "In the light, and in the dark on a phone: formulas are set, nothing is too pale or too wide"
    tab.goto(f'{address}/{name}.html', wait_until='load')
    assert tab.evaluate(LOOK) == {}
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.set_viewport_size({'width': 390, 'height': 844})
    assert tab.evaluate(LOOK) == {} and not tab.record.wrong

# Contrast is not axe's here: LOOK reads it on every page, in a hundredth of the time
RULES = {'color-contrast': {'enabled': False}, 'label-content-name-mismatch': {'enabled': True}}
MINOR = ('empty-table-header', 'image-redundant-alt')         # minor ones that count, too

def accessibility(tab):
    "What axe calls moderate, serious or critical, and headers that say nothing: {rule: elements}"
    found = Axe().run(tab, options={'resultTypes': ['violations'], 'preload': False, 'rules': RULES})
    heard = [v for v in found.response['violations'] if v['impact'] != 'minor' or v['id'] in MINOR]
    return {v['id']: [n['html'][:120] for n in v['nodes'][:4]] for v in heard}

# Every kind of page: the front page, chapters with an explorable, wide formulas, cards; tutorial, lab page
# with tables, a reproduction, a guide, and pages that the site makes itself
KINDS = ['index', 'extreme', 'tails', 'masks', 'tutorials/write_your_own', 'lab/models', 'repro/drop_pruning',
         'guide/changelog', 'reference', 'search']

@pytest.mark.parametrize('name', KINDS)
def test_axe_finds_nothing(name, tab, address):
    "In the light at a desk, and in the dark on a phone"
    tab.goto(f'{address}/{name}.html', wait_until='load')
    assert accessibility(tab) == {}
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.set_viewport_size({'width': 390, 'height': 844})
    for _ in range(10):
        found = accessibility(tab)
        if not found: break
        tab.wait_for_timeout(300)                          # until the theme has looked anew at what scrolls
    assert found == {}

def test_axe_would_find_something(tab, address):
    "What stood on every page once is found when it is put back"
    tab.goto(f'{address}/masks.html', wait_until='load')
    tab.evaluate("document.querySelector('summary').ariaLabel = 'Toggle hidden content'")
    tab.evaluate("document.querySelector('thead th').textContent = ''")
    assert accessibility(tab).keys() == {'label-content-name-mismatch', 'empty-table-header'}

@pytest.mark.parametrize('scheme', ['http', 'file'])
def test_search(scheme, tab, address, built):
    tab.goto(f'{address}/index.html' if scheme == 'http' else (built/'index.html').as_uri())
    tab.keyboard.press('Control+k')
    tab.locator('dialog input[name=q]').fill('DropPruning')
    tab.keyboard.press('Enter')
    tab.wait_for_selector('#search-results li a')
    tab.wait_for_selector('#search-results li a[href*="drop.html"]')
    assert not tab.record.wrong

@pytest.mark.parametrize('name', ['index', 'masks', 'tutorials/first_prune'])
def test_pages_open_from_a_disk(name, tab, built):
    tab.goto((built/f'{name}.html').as_uri())
    assert tab.evaluate(LOOK) == {} and not tab.record.wrong

def test_the_sidebar_reaches_every_page(tab, address):
    tab.goto(f'{address}/index.html')
    links = tab.eval_on_selector_all('.bd-sidebar-primary a', 'es => es.map(e => e.pathname)')
    assert {f'/{n}.html' for n in NAMES} <= set(links)

def test_the_sidebar_opens_on_a_phone(tab, address):
    tab.goto(f'{address}/index.html')
    tab.set_viewport_size({'width': 390, 'height': 844})
    link = tab.locator('.bd-sidebar-primary a[href="masks.html"]')
    tab.wait_for_timeout(300)
    tab.locator('.bd-header-article button.primary-toggle').click()
    link.click()
    tab.wait_for_url('**/masks.html')
    assert not tab.record.wrong

@pytest.fixture
def dark_tab(browser):
    "A page for somebody whose system is dark"
    context = browser.new_context(viewport={'width': 1280, 'height': 900}, color_scheme='dark')
    yield context.new_page()
    context.close()

def theme(tab): return tab.evaluate('document.documentElement.dataset.theme')

def test_the_reader_chooses_light_or_dark(dark_tab, address):
    "The system's choice first, then the reader's, which is kept"
    dark_tab.goto(f'{address}/index.html')
    assert theme(dark_tab) == 'dark'
    dark_tab.locator('button.theme-switch-button:visible').click()
    dark_tab.locator('button.theme-change-button[data-mode=light]').click()
    dark_tab.goto(f'{address}/masks.html')
    assert theme(dark_tab) == 'light' and not dark_tab.evaluate(LOOK)
