"What the site adds to Sphinx: anchors, mathematics, lines of code, page metadata, the way to Colab"
import html, json, re
from pathlib import Path
from docutils import nodes

def slug(title):
    "The anchor of a heading as nbdev and Quarto write it"
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', title.lower()).strip()).lstrip('0123456789.-')

CODE = re.compile(r'(<div class="(?:output [\w ]+ )?highlight-(?:i?python3?|default|sh|console|myst-ansi|none)[^>]*><div class="highlight"><pre>)(.*?)(</pre>)', re.S)
def by_line(m):
    "Code and output as one element per line, which knows its indent: a long line is broken and its rest stands deeper (the highlighter closes its spans at the end of each line)"
    if re.search(r'myst-ansi|none', m[1]) and re.search(r'\S {2,}\S', m[2]): return m[0]       # printed columns stay as they are
    lines = m[2].removeprefix('<span></span>').removesuffix('\n').split('\n')
    return m[1] + ''.join(f'<span class="line" style="--i:{len(t) - len(t.lstrip(" "))}">{s}\n</span>' for s in lines for t in [re.sub('<[^>]*>', '', s)]) + m[3]

def page_context(app, page, template, context, doctree):
    "Lines of code, Open in Colab, and what a search engine or a messenger shows"
    if 'body' in context: context['body'] = CODE.sub(by_line, context['body'])
    known = app.prunelab_pages.get(page)
    if not known: return
    repo, branch = (app.config.html_theme_options[f'repository_{k}'] for k in ('url', 'branch'))
    context['header_buttons'].insert(0, dict(type='link', url=f"{repo.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/{branch}/nbs/{known['nb']}",
                                             text='Open in Colab', label='colab', tooltip='Run this page in your browser'))
    title, promise = html.escape(re.sub('<[^>]*>', '', context['title'])), html.escape(known['promise'])
    tags = dict(description=promise), {'og:title': title, 'og:description': promise, 'og:type': 'article', 'og:site_name': app.config.html_title, 'og:url': f'{app.config.html_baseurl}{page}.html'}
    context['metatags'] += ''.join(f'<meta {k}="{n}" content="{v}" />\n' for k, d in zip(('name', 'property'), tags) for n, v in d.items())

def setup(app):
    app.prunelab_pages = json.loads((Path(app.srcdir)/'pages.json').read_text())
    def math(tag, cls):
        def visit(self, node):
            self.body.append(self.starttag(node, tag, '', CLASS=f'math {cls} notranslate') + self.encode(node.astext()) + f'</{tag}>')
            raise nodes.SkipNode
        return visit, None
    app.add_html_math_renderer('katex', math('span', 'inline'), math('div', 'display'))
    app.connect('html-page-context', page_context, priority=502)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
