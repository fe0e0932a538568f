"How Sphinx turns translated notebooks into pages: read by docs/site.py"
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
ini = ConfigParser()
ini.read(HERE.parent/'settings.ini')
CFG = dict(ini['DEFAULT'])

project, author, copyright, language = CFG['title'], CFG['author'], CFG['author'], 'en'
extensions = ['myst_nb', 'sphinx_pages']
exclude_patterns = []
nb_execution_mode, nb_merge_streams, nb_render_markdown_format = 'off', True, 'myst'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence']
myst_dmath_allow_space, myst_dmath_double_inline = False, True
myst_heading_anchors, myst_heading_slug_func, myst_update_mathjax = 4, 'sphinx_pages.slug', False
html_math_renderer = 'katex'

html_theme, html_title = 'sphinx_book_theme', CFG['title']
html_baseurl = f"https://{CFG['user']}.github.io/{CFG['repo']}/"
html_static_path, templates_path = [str(HERE/'static')], [str(HERE/'templates')]
html_sidebars = {'**': ['sidebar-head.html', 'sbt-sidebar-nav.html']}
html_css_files = ['katex/katex.min.css', 'site.css']
html_js_files = [('katex/katex.min.js', {'defer': 'defer'}), ('site.js', {'defer': 'defer'})]
html_logo = html_favicon = str(HERE/'static/logo.svg')
html_copy_source = html_show_sourcelink = html_use_index = html_show_sphinx = html_show_copyright = False
html_context = {'default_mode': 'auto'}
html_theme_options = {
    'repository_url': CFG['git_url'], 'repository_branch': CFG['branch'], 'use_repository_button': True,
    'use_download_button': False, 'use_fullscreen_button': False,
    'logo': {'text': CFG['title'], 'alt_text': ''},
    'toc_title': 'On this page', 'show_toc_level': 2}
