"""The website from the notebooks' committed outputs: `python docs/site.py [OUT]` (default: _docs).

No cell is run. A page goes through nbdev's processors and ours (`Cards`, `Tags`), then from Quarto's dialect
to MyST (`Page.translate`). Sphinx makes HTML of it (conf.py, sphinx_pages.py), and `problems` follows every
link."""
import argparse
import ast
import html
import io
import json
import os
import re
import shutil
import sys
import tokenize
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from fastcore.nbio import mk_cell
from nbdev.config import nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import (add_links, clean_magics, filter_stream_, hide_, hide_line, rm_export,
                              rm_header_dash, strip_ansi)
from nbdev.showdoc import showdoc_nm

ROOT = Path(__file__).resolve().parent.parent

def settings():
    "What settings.ini says"
    ini = ConfigParser()
    ini.read(ROOT/'settings.ini')
    return ini['DEFAULT']

CFG = settings()
REPO, LIB = f"{CFG['git_url']}/blob/{CFG['branch']}", CFG['lib_path']
URL = f"https://{CFG['user']}.github.io/{CFG['repo']}"          # where nbdev says that the site is
PARTS = {   # sections of the main pages in the sidebar, by the number of their first page
    0: 'The workbench', 10: 'Paper 1: noise, then pruning', 20: 'Paper 2: drop away, drop back',
    30: 'Paper 3: extreme values', 40: 'Searching and measuring'}
FOLDERS = {   # the other sections, in the sidebar's order; folders that are not named here follow
    'tutorials': 'Tutorials', '': None, 'repro': 'Reproductions', 'lab': 'The lab', 'guide': 'Guide'}
DIRECTIVES = {
    'default_exp', 'export', 'exports', 'exporti', 'hide', 'hide_line', 'hide_input', 'hide_output',
    'filter_stream', 'eval', 'echo', 'output', 'code-fold', 'code-summary', 'fig-alt'}

# ---- what is exported: read, not imported

def comments(src):
    "{line: comment} of some code"
    tokens = tokenize.generate_tokens(io.StringIO(src).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}

def text_of(node, src):
    "The code of a part, '' if there is no such part"
    return '' if node is None else ast.get_source_segment(src, node)

def parameters(args):
    "(parameter, default, stars) in the order of the signature"
    pos = args.posonlyargs + args.args
    defaults = [None]*(len(pos) - len(args.defaults)) + args.defaults
    rows = [(p, d, '') for p, d in zip(pos, defaults)]
    if args.vararg: rows.append((args.vararg, None, '*'))
    rows += [(p, d, '') for p, d in zip(args.kwonlyargs, args.kw_defaults)]
    if args.kwarg: rows.append((args.kwarg, None, '**'))
    return rows

def fields(node, src):
    "Rows (name, type, default, meaning) of a dataclass's fields"
    said = comments(src)
    return [(f.target.id, text_of(f.annotation, src), text_of(f.value, src), said.get(f.lineno, ''))
            for f in node.body if isinstance(f, ast.AnnAssign)]

def meanings(
    node, # A function, or a class without `__init__`
    src, # The cell it stands in
) -> list: # Rows (name, type, default, meaning); the last one may be 'return'
    "Parameters and result, or a dataclass's fields, with the comments beside them"
    if isinstance(node, ast.ClassDef): return fields(node, src)
    rows = parameters(node.args)
    owner = {p.lineno: p.arg for p, *_ in rows}         # of several in one line, the last
    if node.returns: owner[node.returns.lineno] = 'return'
    first = node.body[0].lineno
    said = {owner[n]: s for n, s in comments(src).items() if n in owner and n < first}
    res = [(stars + p.arg, text_of(p.annotation, src), text_of(d, src), said.get(p.arg, ''))
           for p, d, stars in rows if p.arg not in ('self', 'cls')]
    if node.returns: res.append(('return', text_of(node.returns, src), '', said.get('return', '')))
    return res

def is_property(node):
    "Is it used without brackets?"
    decorators = [ast.unparse(d) for d in node.decorator_list]
    return any('as_prop' in d or d == 'property' for d in decorators)

def signature(name, node, rows):
    "How it is called, as one line of Python"
    args = ', '.join(n + (f'={d}' if d else '') for n, _, d, _ in rows if n != 'return')
    if isinstance(node, ast.ClassDef): return f'class {name}' + (f'({args})' if args else '')
    if is_property(node): return name
    result = next((f' -> {t}' for n, t, *_ in rows if n == 'return'), '')
    return f'{name}({args}){result}'

def cell_text(s, own=()):
    "Text beside code: names link unless they are parameters, and nothing else is markup"
    def mark(m):
        found = m[0]
        if found in '|*<': return f'\\{found}'
        linked = found if found.strip('`') in own else NbdevLookup().linkify(found)
        return linked.replace('|', '\\|')
    return re.sub(r'`[^`]*`|[|*<]', mark, s)

def as_code(s):
    "Code in a cell of a table"
    bar = s.replace('|', '\\|')
    return f'`{bar}`' if s else ''

def parameter_table(rows, own):
    "Lines of a table of parameters; a column that would be empty is left out"
    used = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
    heads = ['parameter', 'type', 'default', 'meaning']
    lines = ['| ' + ' | '.join(heads[i] for i in used) + ' |', '|' + '---|'*len(used)]
    for row in rows:
        cells = [as_code(s) for s in row[:3]] + [cell_text(row[3], own)]
        if row[0] == 'return': cells[0] = '*returns*'
        lines.append('| ' + ' | '.join(cells[i] for i in used) + ' |')
    return lines

def init_of(node):
    "What has the parameters: a class's `__init__`, or the definition itself"
    if not isinstance(node, ast.ClassDef): return node
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == '__init__'), node)

def card(
    name, # As nbdev spells it, such as `PruneCB.propose`
    node, # Its definition
    src, # The cell that has the definition
    level, # Of the heading
    line, # `file.py#L12`
):
    "Heading, signature, meaning and table of one exported definition, as MyST"
    rows = meanings(init_of(node), src)
    own = {r[0].lstrip('*') for r in rows} | {name}
    out = [f'{"#"*level} `{name}`', '', '::::{container} doc', f'[source]({REPO}/{LIB}/{line})', '',
           '```python', signature(name, node, rows), '```', '',
           cell_text(ast.get_docstring(node) or '', own), '']
    if any(r[3] for r in rows): out += parameter_table(rows, own)
    return '\n'.join([*out, '::::'])

def definitions(src):
    "(name as nbdev spells it, node) of what is public in `src`; of added methods, the documented ones"
    for node in ast.parse(src).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        if node.name.startswith('_'): continue
        names = showdoc_nm(node)
        for name in names if isinstance(names, list) else [names]:
            if '.' not in name or ast.get_docstring(node): yield name, node

def lines_of(module):
    "{name: line} of the exported file"
    path = ROOT/LIB/f'{module.replace(".", "/")}.py'
    if not path.exists(): return {}
    return {name: min([d.lineno for d in node.decorator_list] + [node.lineno])
            for name, node in definitions(path.read_text())}

class Cards(Processor):
    "A card before the first cell that defines it, for all that a page exports"
    def begin(self):
        exps = [c.directives_['default_exp'] for c in self.nb.cells if 'default_exp' in c.directives_]
        self.nb.names, self.nb.module = {}, exps[0] if exps else None
        self.lines = lines_of(self.nb.module) if self.nb.module else {}
        cells, level = [], 2
        for c in self.nb.cells:
            if c.cell_type == 'markdown' and re.search('^## ', c.source, re.M): level = 3
            if self.shows_exports(c): cells += self.cards(c, level)
            cells.append(c)
        self.nb.cells = cells

    def shows_exports(self, c):
        "Does this cell export, and can a reader see it or its card?"
        if c.cell_type != 'code' or 'hide' in c.directives_: return False
        return bool(c.directives_.keys() & {'export', 'exports'})

    def cards(self, c, level):
        "Cards of what a cell defines"
        file = f'{self.nb.module.replace(".", "/")}.py'
        for name, node in definitions(c.source):
            self.nb.names[name] = (ast.get_docstring(node) or '').split('\n')[0]
            text = card(name, node, c.source, level, f'{file}#L{self.lines.get(name, 1)}')
            yield mk_cell(text, 'markdown', own_=True)

# ---- cell directives

IMAGE_TEXT = re.compile(r'<text[^>]*>([^<]+)</text>')

FIGURE = re.compile(r'\bplt\.|\baxs?\b')
CHECK, DEFINES = re.compile(r'^\s*(?:assert\b|test_\w+\()', re.M), re.compile(r'^(?:def|class|@)', re.M)

def kind_of(c):
    "What a reader may skip at first: 'Check' or 'Code of the figure'; None for what reads on"
    images = [o for o in c.get('outputs', []) if any(k.startswith('image/') for k in o.get('data', {}))]
    if images and FIGURE.search(c.source): return 'Code of the figure'
    shows_nothing = not c.get('outputs') and not DEFINES.search(c.source)
    return 'Check' if shows_nothing and CHECK.search(c.source) else None

def fold(c):
    "(tag, title) of a cell that is folded: its directives say so, or its kind; None if it isn't"
    d, kind = c.directives_, kind_of(c)
    if d.keys() & {'export', 'exports', 'hide_input', 'echo'}: return None
    wish = d.get('code-fold', 'false' if kind is None else 'true')            # nbdev reads «true» as ''
    if wish in ('false', 'show'): return None
    title = d.get('code-summary', kind or 'Code').strip('"\'')
    # Quarto folds the source alone; the result of a solution would tell it
    return ('hide-cell' if title.lower().startswith('solution') else 'hide-input'), title

def is_check(node):
    "Does this statement assert, and nothing else?"
    if isinstance(node, (ast.For, ast.With)): return all(map(is_check, node.body))
    called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return isinstance(node, ast.Assert) or getattr(called, 'id', '').startswith('test_')

def parted(source):
    "(what a cell does, what it checks), both as code"
    try: body = ast.parse(source).body
    except SyntaxError: return source, ''                                     # a magic
    checks = {i for n in body if is_check(n) for i in range(n.lineno, n.end_lineno + 1)}
    lines = list(enumerate(source.splitlines(), 1))
    asserts = '\n'.join(line for i, line in lines if i in checks)
    return '\n'.join(line for i, line in lines if i not in checks).strip('\n'), asserts

AS_IT_IS = {'hide', 'default_exp', 'export', 'exports', 'hide_input', 'echo', 'code-fold'}

class Checks(Processor):
    "What a cell asserts, beside what it shows, goes into a cell of its own behind it, to be folded there"
    def begin(self):
        cells = []
        for c in self.nb.cells:
            cells.append(c)
            if not self.shows(c): continue
            does, asserts = parted(c.source)
            if not (does and asserts): continue
            c.source = does
            cells.append(mk_cell(asserts, 'code', outputs=[]))
        self.nb.cells = cells

    def shows(self, c):
        "Does a reader see this cell's code and its result?"
        if c.cell_type != 'code' or not c.get('outputs') or kind_of(c): return False
        return not c.directives_.keys() & AS_IT_IS

def image_look(c):
    "Alternative text and class of a cell's figure; None if it has none"
    svgs = [''.join(o.get('data', {}).get('image/svg+xml', '')) for o in c.get('outputs', [])]
    figure = next(filter(None, svgs), None)
    if not figure: return None
    texts = [html.unescape(t) for t in IMAGE_TEXT.findall(figure)]
    alt = c.directives_.get('fig-alt', '').strip('"\'') or max(texts, key=len, default='figure')
    is_picture = '<image' in figure and 'xtick' not in figure             # pictures have no axes
    return {'alt': alt, 'classes': 'picture' if is_picture else 'lines'}

class Tags(Processor):
    "Cell directives as tags that myst-nb knows"
    def cell(self, c):
        d = c.directives_
        unknown = d.keys() - DIRECTIVES
        if unknown:
            raise ValueError(f'{unknown} are not directives of this site; it knows {sorted(DIRECTIVES)}')
        if c.cell_type != 'code': return
        tags, look, folded, image = [], {}, fold(c), image_look(c)
        if 'hide_input' in d or d.get('echo') == 'false': tags.append('remove-input')
        if 'hide_output' in d or d.get('output') == 'false': tags.append('remove-output')
        if folded:
            tags.append(folded[0])
            look.update(code_prompt_show=folded[1], code_prompt_hide=folded[1])
        if 'exports' in d: tags.append('exported')
        if image: look['image'] = image
        c.metadata = {'tags': tags, **({'mystnb': look} if look else {})}

# ---- Quarto's dialect -> MyST

FENCE = re.compile(r'(^ {0,3}(?:```|~~~).*?^ {0,3}(?:```|~~~)\s*?$)', re.M | re.S)
LINK = re.compile(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)')
CALLOUT = re.compile(r'^::: *\{\.callout-(\w+)([^}]*)\} *\n(.*?)^::: *$', re.M | re.S)
FOREIGN = re.compile(r'\{\{<|^::: *\{(?!\.callout-)|^```\{(?!=html)|\]\(@|(?<![\w`])@(?:fig|tbl|sec|eq)-',
                     re.M)

def callout(m):
    "A callout as an admonition, or as a fold"
    kind, attrs, body = m.groups()
    titles = [re.search('title="([^"]*)"', attrs), re.match(r'\s*#+ +(.*)\n', body)]
    title = next((t[1] for t in titles if t), kind.capitalize())
    body = re.sub(r'^\s*#+ +.*\n', '', body, count=1)
    if 'collapse' in attrs:
        return f'<details class="fold"><summary>{title}</summary>\n\n{body.strip()}\n\n</details>'
    return f':::{{admonition}} {title}\n:class: {kind}\n{body}:::'

def without_links(heading):
    "A heading is no link"
    return re.sub(r'\[(`[^`]*`)\]\([^)]*\)', r'\1', heading[0])

PROCESSORS = [strip_ansi, hide_line, filter_stream_, rm_header_dash, Checks, Tags, clean_magics, hide_,
              add_links, Cards, rm_export]

class Page:
    "One notebook on its way"
    def __init__(self, path, nbs):
        self.rel, self.path = path.relative_to(nbs), path
        self.name = nbpath2html(self.rel).with_suffix('').as_posix()
        p = NBProcessor(path, procs=PROCESSORS, rm_directives=True)
        p.process()
        self.nb = p.nb
        first = next(c.source for c in self.nb.cells if c.cell_type == 'markdown')
        self.title = re.search('^# (.*)', first, re.M)[1]
        promise = ' '.join(line.lstrip('> ') for line in first.splitlines() if line.startswith('>'))
        self.promise = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', promise)
        self.number = int((re.match(r'\d+', path.name) or [0])[0])
        self.short = self.short_title()
        self.sees = {n.lower() for n in self.nb.names}

    def short_title(self):
        "What the sidebar says: the module, or the title where there is none"
        module, parts = self.nb.module, self.rel.parts
        if not module or parts[0] == 'repro' or len(parts) >= 3: return self.title.replace('`', '')
        return module.rpartition('.')[2].replace('_', ' ').capitalize()

    def to(self, page):
        "The way from this page to another"
        return os.path.relpath(f'{page.name}.ipynb', Path(self.name).parent)

    def link(self, m, pages):
        "A link to a notebook or to a name of ours, as a link to the page"
        text, target = m.groups()
        page, _, anchor = target.partition('#')
        if target.startswith(URL):                                              # nbdev found a name
            found = pages.get(page[len(URL) + 1:].removesuffix('.html'))
            return f'[{text}]({self.to(found)}#{anchor})' if found and anchor in found.sees else text
        of_clone = os.path.normpath(Path('nbs')/self.rel.parent/page).replace(os.sep, '/')
        if of_clone.startswith('tests/'): return f'[{text}]({REPO}/{of_clone})'
        if not page.endswith('.ipynb'): return m[0]
        wanted = os.path.normpath(self.rel.parent/page).replace(os.sep, '/')
        found = next((p for p in pages.values() if p.rel.as_posix() == wanted), None)
        if not found: return m[0]                                               # Sphinx will complain
        return f'[{text}]({self.to(found)}{"#" + anchor if anchor else ""})'

    def translate_text(self, text, pages):
        "Callouts, links and headings of a piece of markdown without fences"
        text = LINK.sub(lambda m: self.link(m, pages), CALLOUT.sub(callout, text))
        return re.sub(r'^#+ .*', without_links, text, flags=re.M)

    def translate(self, pages):
        "Text from Quarto's dialect to MyST"
        for c in self.nb.cells:
            if c.cell_type != 'markdown': continue
            if hasattr(c, 'own_'):                                              # a card is MyST already
                c.source = self.translate_text(c.source, pages)
                continue
            unknown = FOREIGN.search(c.source)
            if unknown:
                raise ValueError(f'{self.rel}: {unknown[0]!r} is not plain nbdev dialect: neither this site '
                                 'nor every other renderer knows it')
            parts = FENCE.split(c.source)                                       # text, fence, text, …
            parts[::2] = [self.translate_text(text, pages) for text in parts[::2]]
            c.source = ''.join(parts)

    def markdown(self):
        "The page as plain text, for those who read without a browser"
        out = []
        for c in self.nb.cells:
            if c.cell_type == 'markdown': out.append(plain_text(c.source))
            elif 'remove-input' not in c.metadata.get('tags', ()): out.append(f'```python\n{c.source}\n```')
            out += plain_outputs(c)
        return '\n\n'.join(out) + '\n'

def plain_text(source):
    "Markdown with links to the plain pages, and without fences of MyST"
    return re.sub(r'^:::+.*\n?', '', re.sub(r'\.ipynb(?=[)#])', '.html.md', source), flags=re.M)

def plain_outputs(c):
    "Outputs of a cell, a figure by its alternative text"
    alt = c.metadata.get('mystnb', {}).get('image', {}).get('alt')
    for o in c.get('outputs', []):
        text = ''.join(o.get('text', '') or o.get('data', {}).get('text/plain', ''))
        if alt: yield f'*Figure: {alt}*'
        elif text.strip(): yield f'```\n{text.rstrip()}\n```'

# ---- pages of the site itself

def folder_of(page): return page.rel.parent.as_posix().strip('.')

def place(page):
    "Where a page stands in the sidebar"
    known, folder = list(FOLDERS), folder_of(page)
    return known.index(folder) if folder in known else len(known), page.rel.as_posix()

def caption_of(page):
    "The section of a page in the sidebar"
    folder = folder_of(page)
    caption = FOLDERS.get(folder, folder.capitalize())
    return caption or PARTS[max(first for first in PARTS if first <= page.number)]

def groups(pages):
    "[(caption, pages)] of the sidebar"
    res = {}
    for p in sorted(pages.values(), key=place):
        if p.name != 'index': res.setdefault(caption_of(p), []).append(p)
    return list(res.items())

def toctree(
    caption,
    entries, # (title, page's name)
):
    "A section of the sidebar"
    lines = [f'{title} <{name}>' for title, name in entries]
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *lines, '```', ''])

def sidebar(pages):
    "All of its sections"
    trees = [toctree(caption, [(p.short, p.name) for p in ps]) for caption, ps in groups(pages)]
    return '\n'.join([*trees, toctree('Reference', [('Every name', 'reference')])])

def reference(pages):
    "Every public name by module, with a link to its section"
    promise = '> All that prunelab exports, module by module. Each name leads to the section that derives it.'
    out = ['# Every name', '', promise, '']
    for page in (p for _, ps in groups(pages) for p in ps if p.nb.names):
        out += [f'## `{LIB}.{page.nb.module}`', '', f'[{page.title}]({page.name}.ipynb)', '',
                '| name | what it does |', '|---|---|']
        for name, doc in page.nb.names.items():
            where = f'{page.name}.ipynb#{name.lower()}'
            out.append(f'| [`{name}`]({where}) | {cell_text(doc)} |')
        out.append('')
    return '\n'.join(out)

def llms(pages):
    "Titles and promises with links to plain text (llmstxt.org)"
    out = [f"# {CFG['title']}", '', f"> {CFG['description']}", '']
    for caption, ps in groups(pages):
        entries = [f'- [{p.title}]({URL}/{p.name}.html.md): {p.promise}' for p in ps]
        out += [f'## {caption}', '', *entries, '']
    return '\n'.join(out)

# ---- the build

KERNEL = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'},
          'language_info': {'name': 'python'}}

def notebook(page):
    "A translated page as a notebook that Sphinx reads"
    cells = []
    for c in page.nb.cells:
        cell = {k: v for k, v in c.items() if not k.endswith('_')}              # without nbdev's own remarks
        if c.cell_type == 'code': cell.update(outputs=c.get('outputs', []), execution_count=None)
        cell.setdefault('metadata', {})
        cells.append(cell)
    return {'cells': cells, 'metadata': KERNEL, 'nbformat': 4, 'nbformat_minor': 5}

def is_page(path):
    "Is it neither hidden nor private, nor in such a folder?"
    return not any(part.startswith(('.', '_')) for part in path.parts)

def read_pages(nbs):
    "{name: page} of a folder of notebooks"
    pages = [Page(p, nbs) for p in sorted(nbs.rglob('*.ipynb')) if is_page(p.relative_to(nbs))]
    often = Counter(p.name for p in pages)
    twice = [n for n, k in often.items() if k > 1 or n in ('search', 'genindex', 'reference')]
    if twice: raise ValueError(f'two pages, or one and a page of the site itself, would be called {twice}')
    return {p.name: p for p in pages}

def sources(nbs, src):
    "Write what Sphinx reads; the pages by name"
    shutil.rmtree(src, ignore_errors=True)
    pages = read_pages(nbs)
    for p in pages.values():
        p.translate(pages)
        if p.name == 'index': p.nb.cells.append(mk_cell(sidebar(pages), 'markdown', own_=True))
        (src/p.name).parent.mkdir(parents=True, exist_ok=True)
        (src/f'{p.name}.ipynb').write_text(json.dumps(notebook(p)))
    (src/'reference.md').write_text(reference(pages))
    about = {p.name: {'nb': p.rel.as_posix(), 'promise': re.sub('[`*$]', '', p.promise)}
             for p in pages.values()}
    (src/'pages.json').write_text(json.dumps(about))
    return pages

TAG = re.compile(r'<(script|link|img|iframe|source|video|audio|a|object|embed)\b([^>]*)>', re.I)
ATTR = re.compile(r'\b(src|href|data|rel)="([^"]*)"')
COMMENT = re.compile(r'<!--.*?-->', re.S)
ANCHOR = re.compile(r'\b(?:id|name)="([^"]+)"')
FETCHED_BY_CSS = re.compile(r'url\(["\']?((?:https?:)?//[^"\')]+)')

def addresses(page_text):
    "(tag, address, rel) of everything that a page names"
    for tag, attrs in TAG.findall(COMMENT.sub('', page_text)):
        found = dict(ATTR.findall(attrs))
        for k in ('src', 'href', 'data'):
            if k in found: yield tag.lower(), html.unescape(found[k]), found.get('rel')

def what_is_wrong(page, tag, url, rel, anchors):
    "What is wrong with one address on a page; None if nothing is"
    u = urlsplit(url)
    if u.scheme or u.netloc:
        harmless = tag == 'a' or u.scheme == 'data' or rel in ('canonical', 'license')
        return None if harmless else f'fetches {url}'
    file = (page.parent/unquote(u.path)).resolve() if u.path else page
    if file.is_dir(): file = file/'index.html'
    if not file.is_file(): return f'{url} is not there'
    section = unquote(u.fragment)
    if section and section not in anchors.get(file, {section}): return f'{url} has no such section'
    return None

def problems(out):
    "What is wrong with the links of a built site: targets that are not there, things fetched from elsewhere"
    texts = {p: p.read_text() for p in out.rglob('*.html')}
    anchors = {p: set(ANCHOR.findall(text)) for p, text in texts.items()}
    for page, text in texts.items():
        for tag, url, rel in addresses(text):
            wrong = what_is_wrong(page, tag, url, rel, anchors)
            if wrong: yield f'{page.relative_to(out)}: {wrong}'
    for css in out.rglob('*.css'):
        for url in FETCHED_BY_CSS.findall(css.read_text()): yield f'{css.relative_to(out)}: fetches {url}'

def sphinx(src, made, doctrees):
    "Run Sphinx; its exit status, not 0 also after a warning"
    from sphinx.cmd.build import main
    shutil.rmtree(made, ignore_errors=True)
    folders = ['-d', doctrees, '-c', ROOT/'docs', src, made]
    return main(['-q', '-W', '--keep-going', *map(str, folders)])

def tidy(made):
    "Remove what the theme leaves and no page needs"
    for folder in ('_sources', '_static/locales'): shutil.rmtree(made/folder, ignore_errors=True)
    maps, macros = made.rglob('*.map'), (made/'_static').glob('*macros.html')
    left = [*maps, *macros, made/'objects.inv', made/'.buildinfo']
    for path in left: path.unlink(missing_ok=True)

def build(
    out, # Folder for the site; it changes only if all went well
    nbs=ROOT/'nbs', # Folder of notebooks
    work=ROOT/'_proc', # Folder for what is made on the way
) -> int: # Exit status
    "Build the site"
    out, work = Path(out), Path(work)
    src, made = work/'site', work/'html'
    pages = sources(Path(nbs), src)
    status = sphinx(src, made, work/'doctrees')
    if status: return status
    for p in pages.values(): (made/f'{p.name}.html.md').write_text(p.markdown())
    (made/'llms.txt').write_text(llms(pages))
    (made/'.nojekyll').touch()
    tidy(made)
    bad = list(problems(made))
    for line in bad: print(line, file=sys.stderr)
    if bad: return 1
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(made, out)
    return 0

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('out', nargs='?', default=ROOT/'_docs')
    ap.add_argument('--nbs', default=ROOT/'nbs')
    ap.add_argument('--work', default=ROOT/'_proc')
    args = ap.parse_args()
    sys.exit(build(args.out, args.nbs, args.work))
