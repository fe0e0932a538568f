"What the site adds to Sphinx: anchors, mathematics, lines of code, page metadata, the way to Colab"
import html
import json
import re
from pathlib import Path
from docutils import nodes

def slug(title):
    "The anchor of a heading as nbdev and Quarto write it"
    words = re.sub(r'[^\w\s.-]', '', title.lower()).strip()
    return re.sub(r'\s+', '-', words).lstrip('0123456789.-')

LANGUAGES = 'i?python3?|default|sh|console|myst-ansi|none'
CODE = re.compile(rf'(<div class="(?:output [\w ]+ )?highlight-(?:{LANGUAGES})[^>]*>'
                  r'<div class="highlight"><pre>)(.*?)(</pre>)', re.S)
IS_OUTPUT, HAS_COLUMNS = re.compile(r'myst-ansi|none'), re.compile(r'\S {2,}\S')

def as_line(text):
    "One line as an element that knows its indent"
    plain = re.sub('<[^>]*>', '', text)
    indent = len(plain) - len(plain.lstrip(' '))
    return f'<span class="line" style="--i:{indent}">{text}\n</span>'

def by_line(m):
    "Code and output as one element per line: a long line is broken, and its rest stands deeper"
    head, code, end = m.groups()
    if IS_OUTPUT.search(head) and HAS_COLUMNS.search(code): return m[0]    # printed columns stay as they are
    # The highlighter closes its spans at the end of each line, so that a line can be cut out
    lines = code.removeprefix('<span></span>').removesuffix('\n').split('\n')
    return head + ''.join(map(as_line, lines)) + end

TABLE = re.compile(r'<table\b.*?</table>', re.S)
EMPTY_HEADER = re.compile(r'<th\b([^>]*)>(?:\s|<p>|</p>)*</th>')
FIRST_CELL = re.compile(r'(<tr\b[^>]*>\s*)<td\b([^>]*)>(.*?)</td>', re.S)

def with_headers(m):
    "A table without empty headers; where the corner was empty, what stands first in a row is its header"
    head, body, rows = m[0].partition('<tbody')
    full = EMPTY_HEADER.sub(r'<td\1></td>', head)
    if full != head: rows = FIRST_CELL.sub(r'\1<th scope="row"\2>\3</th>', rows)
    return full + body + rows

def accessible(body):
    "What a screen reader stumbles over: headers that say nothing, and folds called other than they look"
    return TABLE.sub(with_headers, body.replace('<summary aria-label="Toggle hidden content">', '<summary>'))

def colab_button(config, notebook):
    "The button that opens a page in Colab"
    repo, branch = (config.html_theme_options[f'repository_{k}'] for k in ('url', 'branch'))
    home = repo.replace('https://github.com', 'https://colab.research.google.com/github')
    return {'type': 'link', 'url': f'{home}/blob/{branch}/nbs/{notebook}', 'text': 'Open in Colab',
            'label': 'colab', 'tooltip': 'Run this page in your browser'}

def meta_tags(config, page, title, promise):
    "What a search engine or a messenger shows"
    title, promise = html.escape(re.sub('<[^>]*>', '', title)), html.escape(promise)
    card = {
        'og:title': title, 'og:description': promise, 'og:type': 'article',
        'og:site_name': config.html_title, 'og:url': f'{config.html_baseurl}{page}.html'}
    tags = [('name', 'description', promise)]
    tags += [('property', name, content) for name, content in card.items()]
    return ''.join(f'<meta {kind}="{name}" content="{content}" />\n' for kind, name, content in tags)

def page_context(app, page, template, context, doctree):
    "Complete what Sphinx knows about a page"
    if 'body' in context: context['body'] = accessible(CODE.sub(by_line, context['body']))
    known = app.prunelab_pages.get(page)
    if not known: return
    context['header_buttons'].insert(0, colab_button(app.config, known['nb']))
    context['metatags'] += meta_tags(app.config, page, context['title'], known['promise'])

def math(tag, kind):
    "A renderer that leaves a formula to KaTeX"
    def visit(self, node):
        start = self.starttag(node, tag, '', CLASS=f'math {kind} notranslate')
        self.body.append(f'{start}{self.encode(node.astext())}</{tag}>')
        raise nodes.SkipNode
    return visit, None

def setup(app):
    "Called by Sphinx"
    app.prunelab_pages = json.loads((Path(app.srcdir)/'pages.json').read_text())
    app.add_html_math_renderer('katex', math('span', 'inline'), math('div', 'display'))
    app.connect('html-page-context', page_context, priority=502)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
