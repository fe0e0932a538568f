"The website from the notebooks' committed outputs, no cell is run: `python docs/site.py [OUT]` (default: _docs)."
import argparse, ast, html, io, json, os, re, shutil, sys, tokenize
from bisect import bisect
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from fastcore.nbio import mk_cell
from nbdev.config import nbpath2html
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor, Processor
from nbdev.processors import add_links, clean_magics, filter_stream_, hide_, hide_line, rm_export, rm_header_dash, strip_ansi
from nbdev.showdoc import showdoc_nm

ROOT = Path(__file__).resolve().parent.parent
CFG  = (c := ConfigParser()).read(ROOT/'settings.ini') and c['DEFAULT']
REPO, LIB = f"{CFG['git_url']}/blob/{CFG['branch']}", CFG['lib_path']
URL  = f"https://{CFG['user']}.github.io/{CFG['repo']}"                        # where nbdev says that the site is
PARTS = {0: 'The workbench', 10: 'Paper 1: noise, then pruning', 20: 'Paper 2: drop away, drop back', 30: 'Paper 3: extreme values', 40: 'Searching and measuring'}
FOLDERS = {'tutorials': 'Tutorials', '': None, 'repro': 'Reproductions', 'lab': 'The lab', 'guide': 'Guide'}     # in the sidebar's order; others follow
FENCE = re.compile(r'(^ {0,3}(?:```|~~~).*?^ {0,3}(?:```|~~~)\s*?$)', re.M | re.S)
DIRECTIVES = {'default_exp', 'export', 'exports', 'exporti', 'hide', 'hide_line', 'hide_input', 'hide_output', 'filter_stream', 'eval', 'echo', 'output', 'code-fold', 'code-summary', 'fig-alt'}
IMAGE, CALLOUT = re.compile(r'<text[^>]*>([^<]+)</text>'), re.compile(r'^::: *\{\.callout-(\w+)([^}]*)\} *\n(.*?)^::: *$', re.M | re.S)

# ---- what is exported: read, not imported

def meanings(node, src):
    "Rows (name, type, default, meaning) of a function's parameters and its result, or of a dataclass's fields; meanings are the comments beside them"
    said = {t.start[0]: t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type == tokenize.COMMENT}
    text = lambda n: ast.get_source_segment(src, n) if n is not None else ''
    if isinstance(node, ast.ClassDef): return [(f.target.id, text(f.annotation), text(f.value), said.get(f.lineno, '')) for f in node.body if isinstance(f, ast.AnnAssign)]
    a = node.args
    pos = a.posonlyargs + a.args
    rows = list(zip(pos, [None]*(len(pos) - len(a.defaults)) + a.defaults)) + ([(a.vararg, None)] if a.vararg else []) + list(zip(a.kwonlyargs, a.kw_defaults)) + ([(a.kwarg, None)] if a.kwarg else [])
    star = {id(a.vararg): '*', id(a.kwarg): '**'}
    owner = {p.lineno: p.arg for p, _ in rows} | ({node.returns.lineno: 'return'} if node.returns else {})      # of several in one line, the last
    said = {owner[n]: s for n, s in said.items() if n in owner and n < node.body[0].lineno}
    res = [(star.get(id(p), '') + p.arg, text(p.annotation), text(d), said.get(p.arg, '')) for p, d in rows if p.arg not in ('self', 'cls')]
    return res + ([('return', text(node.returns), '', said.get('return', ''))] if node.returns else [])

def signature(name, node, rows):
    "How it is called, as one line of Python"
    args = ', '.join(n + (f'={d}' if d else '') for n, _, d, _ in rows if n != 'return')
    if isinstance(node, ast.ClassDef): return f'class {name}' + (f'({args})' if args else '')
    if any('as_prop' in ast.unparse(d) or ast.unparse(d) == 'property' for d in node.decorator_list): return name
    return f'{name}({args})' + next((f' -> {t}' for n, t, *_ in rows if n == 'return'), '')

def cell_text(s, own=()):
    "Text beside code: names link unless they are parameters, and nothing else is markup"
    def mark(m):
        if m[0] in '|*<': return '\\' + m[0]
        return (m[0] if m[0].strip('`') in own else NbdevLookup().linkify(m[0])).replace('|', '\\|')
    return re.sub(r'`[^`]*`|[|*<]', mark, s)

def card(name, node, src, level, line):
    "Heading, signature, meaning and table of one exported definition, as MyST"
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == '__init__'), node) if isinstance(node, ast.ClassDef) else node
    rows = meanings(init, src)
    own = {r[0].lstrip('*') for r in rows} | {name}
    out = [f'{"#"*level} `{name}`', '', '::::{container} doc', f'[source]({REPO}/{LIB}/{line})', '', '```python', signature(name, node, rows), '```', '', cell_text(ast.get_docstring(node) or '', own), '']
    if any(r[3] for r in rows):
        cols = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
        code = lambda s: f'`{s.replace("|", chr(92) + "|")}`' if s else ''
        out += ['| ' + ' | '.join(('parameter', 'type', 'default', 'meaning')[i] for i in cols) + ' |', '|' + '---|'*len(cols)]
        out += ['| ' + ' | '.join(('*returns*' if r[0] == 'return' else code(r[i])) if i == 0 else code(r[i]) if i < 3 else cell_text(r[3], own) for i in cols) + ' |' for r in rows]
    return '\n'.join(out + ['::::'])

def definitions(src):
    "(name as nbdev spells it, node) of every public function and class in `src`, and of the documented methods that are added to a class"
    for node in ast.parse(src).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            for name in (names if isinstance(names := showdoc_nm(node), list) else [names]):
                if '.' not in name or ast.get_docstring(node): yield name, node

def lines_of(module):
    "{name: line} of the exported file"
    path = ROOT/LIB/f'{module.replace(".", "/")}.py'
    return {n: min([d.lineno for d in node.decorator_list] + [node.lineno]) for n, node in definitions(path.read_text())} if path.exists() else {}

class Cards(Processor):
    "A card before the first cell that defines it, for all that a page exports"
    def begin(self):
        cells, seen = [], False
        self.nb.names, self.nb.module = {}, next((c.directives_['default_exp'] for c in self.nb.cells if 'default_exp' in c.directives_), None)
        lines = lines_of(self.nb.module) if self.nb.module else {}
        for c in self.nb.cells:
            seen = seen or c.cell_type == 'markdown' and bool(re.search('^## ', c.source, re.M))
            if c.cell_type == 'code' and c.directives_.keys() & {'export', 'exports'} and 'hide' not in c.directives_:
                for name, node in definitions(c.source):
                    self.nb.names[name] = (ast.get_docstring(node) or '').split('\n')[0]
                    cells.append(mk_cell(card(name, node, c.source, 3 if seen else 2, f'{self.nb.module.replace(".", "/")}.py#L{lines.get(name, 1)}'), 'markdown', own_=True))
            cells.append(c)
        self.nb.cells = cells

class Tags(Processor):
    "Cell directives as tags that myst-nb knows"
    def cell(self, c):
        d = c.directives_
        if unknown := d.keys() - DIRECTIVES: raise ValueError(f'{unknown} are not directives of this site; it knows {sorted(DIRECTIVES)}')
        if c.cell_type != 'code': return
        tags, look = [], {}
        if 'hide_input' in d or d.get('echo') == 'false': tags.append('remove-input')
        if 'hide_output' in d or d.get('output') == 'false': tags.append('remove-output')
        if d.get('code-fold', 'false') not in ('false', 'show'):        # nbdev reads «true» as ''
            name = d.get('code-summary', 'Code').strip('"\'')
            tags.append('hide-cell' if name.lower().startswith('solution') else 'hide-input')     # Quarto folds the source alone; a solution's result would tell it
            look |= dict(code_prompt_show=name, code_prompt_hide=name)
        if 'exports' in d: tags.append('exported')
        if figure := next((s for o in c.get('outputs', []) if (s := ''.join(o.get('data', {}).get('image/svg+xml', '')))), None):
            texts = [html.unescape(t) for t in IMAGE.findall(figure)]
            alt = d.get('fig-alt', '').strip('"\'') or max(texts, key=len, default='figure')
            look['image'] = dict(alt=alt, classes='picture' if '<image' in figure and 'xtick' not in figure else 'lines')     # pictures have no axes
        c.metadata = dict(tags=tags, **({'mystnb': look} if look else {}))

# ---- Quarto's dialect -> MyST

def callout(m):
    kind, attrs, body = m.groups()
    title = (re.search('title="([^"]*)"', attrs) or re.match(r'\s*#+ +(.*)\n', body) or [0, kind.capitalize()])[1]
    body = re.sub(r'^\s*#+ +.*\n', '', body, count=1)
    if 'collapse' in attrs: return f'<details class="fold"><summary>{title}</summary>\n\n{body.strip()}\n\n</details>'
    return f':::{{admonition}} {title}\n:class: {kind}\n{body}:::'

class Page:
    "One notebook on its way"
    def __init__(self, path, nbs):
        self.rel, self.path = path.relative_to(nbs), path
        self.name = nbpath2html(self.rel).with_suffix('').as_posix()
        p = NBProcessor(path, procs=[strip_ansi, hide_line, filter_stream_, rm_header_dash, Tags, clean_magics, hide_, add_links, Cards, rm_export], rm_directives=True)
        p.process()
        self.nb = p.nb
        first = next(c.source for c in self.nb.cells if c.cell_type == 'markdown')
        self.title = re.search('^# (.*)', first, re.M)[1]
        self.promise = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(line.lstrip('> ') for line in first.splitlines() if line.startswith('>')))
        self.number = int((re.match(r'\d+', path.name) or [0])[0])
        self.short = self.nb.module.rpartition('.')[2].replace('_', ' ').capitalize() if self.nb.module and self.rel.parts[0] != 'repro' and len(self.rel.parts) < 3 else self.title.replace('`', '')
        self.sees = {n.lower() for n in self.nb.names}

    def link(self, m, pages):
        "A link to a notebook or to a name of ours, as a link to the page"
        text, target = m[1], m[2]
        page, _, anchor = target.partition('#')
        if target.startswith(URL):                                              # nbdev found a name
            page = pages.get(page[len(URL) + 1:].removesuffix('.html'))
            return f'[{text}]({self.to(page)}#{anchor})' if page and anchor in page.sees else text
        if not page.endswith('.ipynb'): return m[0]
        page = {p.rel.as_posix(): p for p in pages.values()}.get(os.path.normpath(self.rel.parent/page).replace(os.sep, '/'))
        return f'[{text}]({self.to(page)}{"#" + anchor if anchor else ""})' if page else m[0]      # unknown: Sphinx will complain

    def to(self, page): return os.path.relpath(f'{page.name}.ipynb', Path(self.name).parent)

    def translate(self, pages):
        for c in self.nb.cells:
            if c.cell_type != 'markdown': continue
            if unknown := re.search(r'\{\{<|^::: *\{(?!\.callout-)|^```\{(?!=html)|\]\(@|(?<![\w`])@(?:fig|tbl|sec|eq)-', c.source, re.M) if not hasattr(c, 'own_') else None:
                raise ValueError(f'{self.rel}: {unknown[0]!r} is not plain nbdev dialect: neither this site nor every other renderer knows it')
            parts = FENCE.split(c.source) if not hasattr(c, 'own_') else [c.source]
            for i in range(0, len(parts), 2): parts[i] = re.sub(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)', lambda m: self.link(m, pages), CALLOUT.sub(callout, parts[i]))
            for i in range(0, len(parts), 2): parts[i] = re.sub(r'^#+ .*', lambda m: re.sub(r'\[(`[^`]*`)\]\([^)]*\)', r'\1', m[0]), parts[i], flags=re.M)     # a heading is no link
            c.source = ''.join(parts)

    def markdown(self):
        "The page as plain text, for those who read without a browser"
        out = []
        for c in self.nb.cells:
            if c.cell_type == 'markdown': out.append(re.sub(r'^:::+.*\n?', '', re.sub(r'\.ipynb(?=[)#])', '.html.md', c.source), flags=re.M))
            elif 'remove-input' not in c.metadata.get('tags', ()): out.append(f'```python\n{c.source}\n```')
            for o in c.get('outputs', []):
                data = o.get('data', {})
                text = ''.join(o.get('text', '') or data.get('text/plain', ''))
                if alt := c.metadata.get('mystnb', {}).get('image', {}).get('alt'): out.append(f'*Figure: {alt}*')
                elif text.strip(): out.append(f'```\n{text.rstrip()}\n```')
        return '\n\n'.join(out) + '\n'

def groups(pages):
    "[(caption, pages)] of the sidebar"
    res = {}
    known = list(FOLDERS)
    for p in sorted(pages.values(), key=lambda p: (known.index(f) if (f := p.rel.parent.as_posix().strip('.')) in known else len(known), p.rel.as_posix())):
        folder = p.rel.parent.as_posix().strip('.')
        if p.name != 'index': res.setdefault(FOLDERS.get(folder, folder.capitalize()) or list(PARTS.values())[bisect(list(PARTS), p.number) - 1], []).append(p)
    return list(res.items())

def toctree(caption, entries): return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *(f'{title} <{name}>' for title, name in entries), '```', ''])

def reference(pages):
    "Every public name by module, with a link to its section"
    out = ['# Every name', '', '> All that prunelab exports, module by module. Each name leads to the section that derives it.', '']
    for p in (p for _, ps in groups(pages) for p in ps if p.nb.names):
        out += [f'## `{LIB}.{p.nb.module}`', '', f'[{p.title}]({p.name}.ipynb)', '', '| name | what it does |', '|---|---|']
        out += [f'| [`{n}`]({p.name}.ipynb#{n.lower()}) | {cell_text(doc)} |' for n, doc in p.nb.names.items()] + ['']
    return '\n'.join(out)

def llms(pages):
    "Titles and promises with links to plain text (llmstxt.org)"
    out = [f"# {CFG['title']}", '', f"> {CFG['description']}", '']
    entry = lambda p: f'- [{p.title}]({URL}/{p.name}.html.md): {p.promise}'
    for caption, ps in groups(pages): out += [f'## {caption}', '', *map(entry, ps), '']
    return '\n'.join(out)

# ---- the build

def sources(nbs, src):
    "Write what Sphinx reads; the pages by name"
    shutil.rmtree(src, ignore_errors=True)
    paths = sorted(p for p in nbs.rglob('*.ipynb') if not any(part.startswith(('.', '_')) for part in p.relative_to(nbs).parts))
    pages = [Page(p, nbs) for p in paths]
    if twice := [n for n, k in Counter(p.name for p in pages).items() if k > 1 or n in ('search', 'genindex', 'reference')]: raise ValueError(f'two pages, or one and a page of the site itself, would be called {twice}')
    pages = {p.name: p for p in pages}
    for p in pages.values():
        p.translate(pages)
        nb = p.nb
        if p.name == 'index':
            trees = [toctree(cap, [(q.short, q.name) for q in ps]) for cap, ps in groups(pages)] + [toctree('Reference', [('Every name', 'reference')])]
            nb.cells.append(mk_cell('\n'.join(trees), 'markdown', own_=True))
        (src/p.name).parent.mkdir(parents=True, exist_ok=True)
        cells = [{k: v for k, v in c.items() if not k.endswith('_')} | ({'outputs': c.get('outputs', []), 'execution_count': None} if c.cell_type == 'code' else {}) for c in nb.cells]
        for c in cells: c.setdefault('metadata', {})
        (src/f'{p.name}.ipynb').write_text(json.dumps(dict(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}, 'language_info': {'name': 'python'}}, nbformat=4, nbformat_minor=5)))
    (src/'reference.md').write_text(reference(pages))
    (src/'pages.json').write_text(json.dumps({p.name: dict(nb=p.rel.as_posix(), promise=re.sub('[`*$]', '', p.promise)) for p in pages.values()}))
    return pages

TAG  = re.compile(r'<(script|link|img|iframe|source|video|audio|a|object|embed)\b([^>]*)>', re.I)
ATTR = re.compile(r'\b(src|href|data|rel)="([^"]*)"')

def problems(out):
    "What is wrong with the links of a built site: targets that are not there, and things fetched from elsewhere"
    pages = {p: p.read_text() for p in out.rglob('*.html')}
    ids = {p: set(re.findall(r'\b(?:id|name)="([^"]+)"', t)) for p, t in pages.items()}
    for page, text in pages.items():
        where = page.relative_to(out)
        for tag, attrs in TAG.findall(re.sub(r'<!--.*?-->', '', text, flags=re.S)):
            a = dict(ATTR.findall(attrs))
            for url in (html.unescape(a[k]) for k in ('src', 'href', 'data') if k in a):
                u = urlsplit(url)
                if u.scheme or u.netloc:
                    if tag.lower() != 'a' and u.scheme != 'data' and a.get('rel') not in ('canonical', 'license'): yield f'{where}: fetches {url}'
                    continue
                file = (page.parent/unquote(u.path)).resolve() if u.path else page
                if file.is_dir(): file = file/'index.html'
                if not file.is_file(): yield f'{where}: {url} is not there'
                elif u.fragment and file in ids and unquote(u.fragment) not in ids[file]: yield f'{where}: {url} has no such section'
    for css in out.rglob('*.css'):
        for url in re.findall(r'url\(["\']?((?:https?:)?//[^"\')]+)', css.read_text()): yield f'{css.relative_to(out)}: fetches {url}'

def build(out, nbs=ROOT/'nbs', work=ROOT/'_proc'):
    "Build the site of `nbs` into `out`, which changes only if all went well; the exit status"
    from sphinx.cmd.build import main
    out, work = Path(out), Path(work)
    pages = sources(Path(nbs), work/'site')
    made = work/'html'
    shutil.rmtree(made, ignore_errors=True)
    if code := main(['-q', '-W', '--keep-going', '-d', str(work/'doctrees'), '-c', str(ROOT/'docs'), str(work/'site'), str(made)]): return code
    for p in pages.values(): (made/f'{p.name}.html.md').write_text(p.markdown())
    (made/'llms.txt').write_text(llms(pages))
    (made/'.nojekyll').touch()
    for d in ('_sources', '_static/locales'): shutil.rmtree(made/d, ignore_errors=True)
    for p in [*made.rglob('*.map'), *(made/'_static').glob('*macros.html'), made/'objects.inv', made/'.buildinfo']: p.unlink(missing_ok=True)      # left by the theme, needed by no page
    bad = list(problems(made))
    print(*bad, sep='\n', end='\n' if bad else '', file=sys.stderr)
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
