"The website: built once from the committed outputs, read as files, and read in a browser."
import html, http.server, importlib.util, json, os, re, shutil, subprocess, sys, threading
from functools import partial
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('[!.]*.ipynb') if '.ipynb_checkpoints' not in p.parts)
spec = importlib.util.spec_from_file_location('prunelab_site', ROOT/'docs/site.py')
site = importlib.util.module_from_spec(spec); spec.loader.exec_module(site)
PAGES = {site.nbpath2html(p.relative_to(ROOT/'nbs')).with_suffix('').as_posix(): p for p in NBS}
NAMES = sorted(PAGES) + ['reference']

def make(out, work, *args): return subprocess.run([sys.executable, ROOT/'docs/site.py', out, '--work', work, *args], cwd=ROOT, capture_output=True, text=True)
def text_of(page): return html.unescape(re.sub(r'<[^>]*>', '', page.read_text()))

@pytest.fixture(scope='session')
def built(tmp_path_factory):
    d = tmp_path_factory.mktemp('site')
    res = make(d/'out', d/'work')
    assert res.returncode == 0, res.stderr[-3000:]
    return d/'out'

def notebooks(folder, **pages):
    "A folder of small notebooks: markdown cells, or code cells as (source, output)"
    for name, cells in pages.items():
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(c) if isinstance(c, str) else nbformat.v4.new_code_cell(c[0], outputs=[nbformat.v4.new_output('stream', text=c[1])] if c[1] else []) for c in cells])
        folder.mkdir(exist_ok=True); nbformat.write(nb, folder/f'{name}.ipynb')
    return folder

# ---- as files

def test_every_notebook_has_a_page_and_plain_text(built):
    listed = (built/'llms.txt').read_text()
    for name in PAGES:
        assert (built/f'{name}.html').exists() and (built/f'{name}.html.md').read_text().startswith('# ')
        if name != 'index': assert f'/{name}.html.md)' in listed

def test_it_is_small_and_fetches_nothing(built):
    assert sum(p.stat().st_size for p in built.rglob('*')) < 25e6
    assert list(site.problems(built)) == []

def test_hidden_cells_are_not_there(built):
    for name, path in PAGES.items():
        cells = nbformat.read(path, as_version=4).cells
        hidden = [c for c in cells if c.cell_type == 'code' and re.search(r'^#\| *(hide|default_exp|export)\b(?!s)', c.source, re.M)]
        seen = '\n'.join(c.source for c in cells if c not in hidden)
        page, plain = text_of(built/f'{name}.html'), (built/f'{name}.html.md').read_text()
        for line in {x.strip() for c in hidden for x in c.source.splitlines() if len(x.strip()) > 25 and not re.match(r'\s*("|#|@|def |class )', x)}:
            if line not in seen: assert line not in page and line not in plain, f'{name}: {line}'

def test_solutions_are_folded(built):
    for name, path in PAGES.items():
        cells = [c for c in nbformat.read(path, as_version=4).cells if '#| code-fold: true' in c.source]
        page = (built/f'{name}.html').read_text()
        folds = re.findall(r'<details class="[^"]*\bhide\b.*?</details>', page, re.S)
        assert len(folds) == len(cells), name
        for c, fold in zip(cells, folds):
            said = re.search(r'#\| code-summary: "(.*)"', c.source)
            assert (said[1] if said else 'Code') in fold and c.source.splitlines()[-1].strip() in html.unescape(re.sub('<[^>]*>', '', fold)), name

def test_exported_functions_are_documented(built):
    page = (built/'masks.html').read_text()
    card = page[page.index('id="keep_top"'):]; card = card[:card.index('class="cell')]
    assert re.search(r'prunelab/blob/main/prunelab/masks\.py#L(\d+)"', card)[1] == str(site.lines_of('masks')['keep_top'])
    text = ' '.join(html.unescape(re.sub('<[^>]*>', ' ', card)).split())
    assert 'keep_top ( scores , k )' in re.sub(r'([(),])', r' \1 ', text).replace('  ', ' ') and 'k int How many to keep in total; ties go to the earlier name' in text and 'returns dict {name: bool mask}' in text
    link = 'href="masks.html#keep-top"'
    assert link in (built/'reference.html').read_text()
    assert link in (built/'allocation.html').read_text(), 'names in backticks link'

def test_the_reference_is_complete(built):
    listed = set(re.findall(r'html#[^"]*"[^>]*>(?:<span[^>]*>)?<code[^>]*><span class="pre">([\w.]+)</span>', (built/'reference.html').read_text()))
    for path in (ROOT/'prunelab').rglob('[!_]*.py'):
        module = ".".join(path.relative_to(ROOT/"prunelab").with_suffix("").parts)
        assert site.lines_of(module).keys() <= listed, module

def test_the_search_index_knows_the_chapters(built):
    index = json.loads(re.search(r'Search\.setIndex\((.*)\)', (built/'searchindex.js').read_text(), re.S)[1])
    docs, found = index['docnames'], index['titleterms']['dropprun']
    assert 'drop' in [docs[i] for i in ([found] if isinstance(found, int) else found)]

def test_a_page_as_written_is_a_page_as_shown(tmp_path):
    "Tags, folds, callouts, links and anchors on two small pages"
    nbs = notebooks(tmp_path/'nbs', index=['# front\n\n> A promise, with `code`.', 'to [the other](01_other.ipynb#what-goes-wrong-at-99)'],
        **{'01_other': ['# Other\n\n> Why?', '## What goes wrong at 99 %\n\n$$x^2$$ and $y$', ('#| hide\nsecret_cell = 1', ''), ('#| hide_input\nprint("shown", secret_input)', 'visible output'),
            ('#| code-fold: true\n#| code-summary: "Solution 1"\nanswer = 6*7', 'forty-two'), ('plain = 1', ''), '::: {.callout-note title="Mind"}\nthe gap\n:::', '::: {.callout-tip collapse="true"}\n## Hint\nlook *here*\n:::']})
    res = make(tmp_path/'out', tmp_path/'work', '--nbs', nbs)
    assert res.returncode == 0, res.stderr
    page = (tmp_path/'out/other.html').read_text()
    assert 'secret' not in page and 'visible output' in page and 'href="other.html#what-goes-wrong-at-99"' in (tmp_path/'out/index.html').read_text()
    fold = re.search(r'<details class="[^"]*\bhide\b[^>]*>(.*?)</details>', page, re.S)[1]
    assert 'Solution 1' in fold and 'answer' in fold and 'forty-two' in fold and 'plain' not in fold
    assert re.search(r'class="[^"]*\bnote\b', page) and re.search(r'<details class="fold"><summary>Hint</summary>\s*<p>look <em>here</em></p>\s*</details>', page) and ':::' not in page
    assert '<div class="math display notranslate">x^2</div>' in page and 'og:description" content="Why?"' in page
    assert 'colab.research.google.com/github/prunelab/prunelab/blob/main/nbs/01_other.ipynb' in page

def test_broken_links_fail_the_build(tmp_path):
    nbs = notebooks(tmp_path/'nbs', index=['# front\n\n> A promise.', '[a](nowhere.ipynb) and [b](01_other.ipynb#no-such-anchor)'], **{'01_other': ['# Other\n\n> Why?', '## Section']})
    res = make(tmp_path/'out', tmp_path/'work', '--nbs', nbs)
    assert res.returncode != 0 and 'nowhere.ipynb' in res.stderr and 'no-such-anchor' in res.stderr

@pytest.mark.parametrize('tag, said', [('<a href="gone.html">', 'is not there'), ('<a href="#gone">', 'no such section'), ('<script src="https://cdn.example/x.js">', 'fetches'), ('<img src="//cdn.example/x.png">', 'fetches'),
                                       ('<link rel="stylesheet" href="https://fonts.example/x.css">', 'fetches'), ('<a href="https://example.org">', None), ('<a href="#here">', None), ('<link rel="canonical" href="https://example.org">', None)])
def test_links_in_raw_html_are_checked_too(tmp_path, tag, said):
    (tmp_path/'index.html').write_text(f'<p id="here">{tag}</p>')
    found = list(site.problems(tmp_path))
    assert said in found[0] if said else not found

@pytest.mark.parametrize('cell', ['see @fig-loss', '{{< include x >}}', '::: {.panel-tabset}\nx\n:::', '```{mermaid}\ngraph\n```', ('#| fig-cap: x\n1', '')])
def test_other_dialects_are_refused(tmp_path, cell):
    nbs = notebooks(tmp_path, index=['# front\n\n> A promise.', cell])
    with pytest.raises(ValueError, match='dialect|directives'): site.sources(nbs, tmp_path/'src')

def test_no_two_pages_share_a_name(tmp_path):
    for names in (('01_same', '02_same'), ('03_search',), ('reference',)):
        shutil.rmtree(tmp_path/'nbs', ignore_errors=True)
        with pytest.raises(ValueError, match='would be called'): site.sources(notebooks(tmp_path/'nbs', index=['# front\n\n> .'], **{n: ['# x\n\n> .'] for n in names}), tmp_path/'src')

# ---- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
OPTIONS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def address(built):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=built)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()

@pytest.fixture(scope='session')
def browser():
    if not CHROMIUM:
        said = 'no Chromium is installed (Debian: apt-get install chromium)'
        pytest.fail(said) if os.environ.get('PRUNELAB_NEEDS_BROWSER') == '1' else pytest.skip(said)
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield b
        b.close()

@pytest.fixture(scope='session')
def reader(browser):
    context = browser.new_context(color_scheme='light')
    yield context
    context.close()

@pytest.fixture
def tab(reader):
    "A page of the browser that remembers what went wrong, and what was asked for"
    tab = reader.new_page()
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.wrong, tab.asked = [], []
    tab.on('console', lambda m: tab.wrong.append(m.text) if m.type == 'error' else None)
    tab.on('pageerror', lambda e: tab.wrong.append(str(e)))
    tab.on('requestfailed', lambda r: tab.wrong.append(f'{r.url}: {r.failure}'))
    tab.on('response', lambda r: tab.wrong.append(f'{r.url}: {r.status}') if r.status >= 400 else None)
    tab.on('request', lambda r: tab.asked.append(r.url))
    yield tab
    tab.close()

LOOK = '''() => {
  const main = document.querySelector('article'), seen = e => e.getClientRects().length > 0, found = {math: [], dollar: [], wide: [], pale: []};
  for (const e of document.querySelectorAll('.math')) if (!e.querySelector('.katex') || e.querySelector('.katex-error')) found.math.push(e.textContent.slice(0, 40));
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number), lum = c => rgb(c).slice(0, 3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0);
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c } return 'rgb(255, 255, 255)' };
  const walk = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement;
    if (!n.data.trim() || !seen(e) || e.closest('.katex, script, style')) continue;
    if (n.data.includes('$') && !e.closest('pre, code')) found.dollar.push(n.data.trim().slice(0, 60));
    const a = lum(getComputedStyle(e).color), b = lum(ground(e)), ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
    if (ratio < 4.5 && !e.closest('.headerlink')) found.pale.push(`${ratio.toFixed(1)} ${n.data.trim().slice(0, 40)}`);
  }
  const scrolls = e => { for (; e && e !== document.body; e = e.parentElement) if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true };
  for (const e of main.querySelectorAll('table, img, pre, .math.display, p, h1, h2, h3')) if (seen(e) && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement) && !scrolls(e)) found.wide.push(e.outerHTML.slice(0, 80));
  if (document.documentElement.scrollWidth > innerWidth + 1) found.wide.push(`the page: ${document.documentElement.scrollWidth}`);
  for (const i of main.querySelectorAll('img')) { if (!i.complete || !i.naturalWidth) found.wide.push(`no picture: ${i.src}`); else if (i.getBoundingClientRect().right > innerWidth + 1) found.wide.push(`figure: ${i.src}`) }
  return Object.fromEntries(Object.entries(found).filter(([, v]) => v.length).map(([k, v]) => [k, [v.length, ...v.slice(0, 4)]]));
}'''

@pytest.mark.parametrize('name', NAMES)
def test_a_page_in_the_browser(name, tab, address):
    "Loads without an error or a request elsewhere; formulas are set; nothing is too pale or too wide, in the light, in the dark and on a phone"
    tab.goto(f'{address}/{name}.html', wait_until='load')
    assert not tab.wrong and all(u.startswith((address, 'data:')) for u in tab.asked), tab.wrong or tab.asked
    assert tab.evaluate(LOOK) == {}
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    tab.set_viewport_size({'width': 390, 'height': 844})
    assert tab.evaluate(LOOK) == {}
    assert not tab.wrong

@pytest.mark.parametrize('scheme', ['http', 'file'])
def test_search(scheme, tab, address, built):
    tab.goto(address + '/index.html' if scheme == 'http' else (built/'index.html').as_uri())
    tab.keyboard.press('Control+k')
    tab.locator('dialog input[name=q]').fill('DropPruning')
    tab.keyboard.press('Enter')
    tab.wait_for_selector('#search-results li a')
    tab.wait_for_selector('#search-results li a[href*="drop.html"]')
    assert not tab.wrong

def test_pages_open_from_a_disk(tab, built):
    for name in ('index', 'masks', 'tutorials/first_prune'):
        tab.goto((built/f'{name}.html').as_uri())
        assert tab.evaluate(LOOK) == {} and not tab.wrong

def test_the_sidebar_reaches_every_page(tab, address):
    tab.goto(f'{address}/index.html')
    links = tab.eval_on_selector_all('.bd-sidebar-primary a', 'es => es.map(e => e.pathname)')
    assert {f'/{n}.html' for n in NAMES} <= set(links)
    tab.set_viewport_size({'width': 390, 'height': 844})
    link = tab.locator('.bd-sidebar-primary a[href="masks.html"]')
    tab.wait_for_timeout(300)
    tab.locator('.bd-header-article button.primary-toggle').click()
    link.click()
    tab.wait_for_url('**/masks.html')
    assert not tab.wrong

def test_the_reader_chooses_light_or_dark(browser, address):
    "The system's choice first, then the reader's, which is kept"
    context = browser.new_context(viewport={'width': 1280, 'height': 900}, color_scheme='dark')
    tab = context.new_page()
    tab.goto(f'{address}/index.html')
    theme = lambda: tab.evaluate('document.documentElement.dataset.theme')
    assert theme() == 'dark'
    tab.locator('button.theme-switch-button:visible').click()
    tab.locator('button.theme-change-button[data-mode=light]').click()
    tab.goto(f'{address}/masks.html')
    assert theme() == 'light' and not tab.evaluate(LOOK)
    context.close()
