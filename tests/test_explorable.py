"Figures with a slider: what they refuse; in a browser by keyboard, without scripts, in the dark"
import functools
import http.server
import threading
import matplotlib.pyplot as plt
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbconvert import HTMLExporter
from prunelab.plotting import explorable
from .test_project import execute, printed
from .test_site import LOOK, Quiet, make

LABELS = ['4', '9 & more', '25 <b>']

def bars(n):
    "A figure of `n` bars"
    fig, ax = plt.subplots(figsize=(4, 2), dpi=72)
    ax.bar(range(n), range(1, n + 1))
    ax.set(ylim=(0, 5))
    return fig

def slider(**given):
    known = dict(label='block size b', alt=['one bar', 'two "bars"', 'three'], start=1)
    return explorable([bars(n) for n in (1, 2, 3)], LABELS, **known | given)

def circles(n):
    "SVG texts"
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="{}"/></svg>'
    return [svg.format(r) for r in range(n)]

def page(*shown):
    "A notebook with one cell for each object, as Jupyter stores it"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# front\n\n> A promise.')])
    for x in shown:
        data = {'text/html': x._repr_html_(), 'text/plain': repr(x)}
        out = nbformat.v4.new_output('execute_result', data=data, execution_count=1)
        nb.cells.append(nbformat.v4.new_code_cell('slider()', outputs=[out]))
    return nb

# ---- as text

def test_the_same_pictures_are_the_same_page():
    open_before = plt.get_fignums()
    assert slider().html == slider().html and plt.get_fignums() == open_before

def test_nothing_is_fetched_and_nothing_has_a_name():
    text = slider().html
    assert 'http' not in text and 'id="' not in text and '<script' not in text

@pytest.mark.parametrize('given, said', [
    (dict(limit=5000), 'at most 5,000 are allowed: take fewer'),
    (dict(start=3), '0 to 2'),
    (dict(start=-1), '0 to 2'),
    (dict(alt=['one']), '3 pictures, 3 labels and 1 texts'),
    (dict(alt=''), 'in words'),
    (dict(label=' '), 'in words')])
def test_what_is_refused(given, said):
    with pytest.raises(ValueError, match=said): slider(**given)

@pytest.mark.parametrize('pictures, said', [
    ([b'x', b'y'], 'figures, or SVG texts, got .*bytes'),
    (circles(1), 'at least two'),
    ([bars, bars], 'function')])
def test_pictures_that_are_none(pictures, said):
    with pytest.raises(ValueError, match=said): explorable(pictures, range(len(pictures)), 'b', 'x')

def test_pictures_of_two_sizes():
    two = [bars(1), plt.figure(figsize=(1, 1))]
    with pytest.raises(ValueError, match='one size'): explorable(two, 'ab', 'b', 'x')
    plt.close('all')

def test_numbers_in_frames_are_not_printed_numbers():
    shown = page(explorable(circles(3), ['.731', '.852', '.964'], 'b', 'at .437', start=1))
    del shown.cells[1].outputs[0].data['text/plain']
    shown.cells[1].source = ''
    assert set(printed(shown)) == {.852}                        # the label that is to be seen

def test_its_bytes_do_not_count_against_the_page():
    assert execute.weight(page(slider())) < 100 < len(slider().html)

# ---- in a browser

@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "A site of one page with two equal sliders and a third, and the same page as Jupyter exports it"
    d = tmp_path_factory.mktemp('explorable')
    (d/'nbs').mkdir()
    nb = page(slider(), slider(), explorable(circles(4), 'abcd', 'radius', 'a circle', start=0))
    nbformat.write(nb, d/'nbs/index.ipynb')
    res = make(d/'out', d/'work', '--nbs', d/'nbs')
    assert res.returncode == 0, res.stderr
    (d/'out/favicon.ico').touch()                           # every browser asks for it
    (d/'out/jupyter.html').write_text(HTMLExporter(template_name='basic').from_notebook_node(nb)[0])
    handler = functools.partial(Quiet, directory=d/'out')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()

@pytest.fixture
def opened(browser):
    "Opens a page in a context of its own"
    contexts = []
    def open(url, **options):
        contexts.append(browser.new_context(viewport={'width': 1280, 'height': 900}, **options))
        tab = contexts[-1].new_page()
        tab.wrong, tab.asked = [], []
        tab.on('console', lambda m: tab.wrong.append(m.text) if m.type == 'error' else None)
        tab.on('pageerror', lambda e: tab.wrong.append(str(e)))
        tab.on('request', lambda r: tab.asked.append(r.url))
        tab.goto(url)
        return tab
    yield open
    for c in contexts: c.close()

def state(figure):
    "What a reader sees and what a screen reader says"
    img = figure.locator('img')
    said = figure.locator('input[type=range]').get_attribute('aria-valuetext')
    return figure.locator('output').inner_text(), said, img.get_attribute('alt'), img.get_attribute('src')

@pytest.mark.parametrize('name', ['index', 'jupyter'])
def test_by_keyboard(opened, address, name):
    tab = opened(f'{address}/{name}.html')
    first, second, third = tab.locator('figure.explorable').all()
    before = state(first)
    assert before[:3] == (LABELS[1], LABELS[1], 'two "bars"')
    tab.get_by_role('slider', name='block size b').first.focus()
    tab.keyboard.press('ArrowRight')
    after = state(first)
    assert after[:3] == (LABELS[2], LABELS[2], 'three') and after[3] != before[3]
    assert state(second) == before, 'the other slider stays'
    tab.keyboard.press('Home')
    assert state(first)[:3] == (LABELS[0], LABELS[0], 'one bar')
    tab.get_by_role('slider', name='radius').focus()
    tab.keyboard.press('End')
    assert state(third)[0] == 'd' and third.locator('img').evaluate('e => e.complete && e.naturalWidth > 0')
    assert not tab.wrong

def test_it_asks_for_nothing(opened, address):
    tab = opened(f'{address}/jupyter.html')
    tab.get_by_role('slider').first.focus()
    for _ in range(2): tab.keyboard.press('ArrowLeft')
    assert [u for u in tab.asked if not u.startswith('data:')] == [f'{address}/jupyter.html']

@pytest.mark.parametrize('name', ['index', 'jupyter'])
def test_a_still_picture_without_scripts(opened, address, name):
    tab = opened(f'{address}/{name}.html', java_script_enabled=False)
    figure = tab.locator('figure.explorable').first
    assert figure.locator('img').is_visible() and not figure.locator('input').is_visible()
    assert figure.locator('img').count() == 1 and figure.locator('img').get_attribute('alt') == 'two "bars"'

@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_it_is_readable(opened, address, scheme, width):
    "Words against their ground, and nothing wider than a phone"
    tab = opened(f'{address}/index.html', color_scheme=scheme)
    tab.set_viewport_size({'width': width, 'height': 844})
    tab.wait_for_timeout(300)
    assert not tab.evaluate(LOOK)

def test_it_stands_on_the_page_s_own_ground_in_the_dark(opened, address):
    tab = opened(f'{address}/index.html', color_scheme='dark')
    box = tab.locator('.text_html:has(figure.explorable)').first
    assert box.evaluate('e => getComputedStyle(e).backgroundColor') == 'rgba(0, 0, 0, 0)'
    assert 'invert' in box.locator('img').evaluate('e => getComputedStyle(e).filter')

def test_axe_finds_nothing(opened, address):
    tab = opened(f'{address}/index.html')
    found = Axe().run(tab, context='figure.explorable').response['violations']
    assert not found, [v['id'] for v in found]
