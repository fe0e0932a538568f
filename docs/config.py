"pyproject.toml, the version and the address on every page, from settings.ini: `python docs/config.py`."
import os
import re
from configparser import ConfigParser
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import tomlkit
from nbdev.migrate import nbdev_migrate_config

ROOT = Path(__file__).resolve().parent.parent
# A page that is opened in Colab is alone, so its first cell has to name the address (in a file a quote is \")
ADDRESS = re.compile(r'(pip install -q (?:\\"prunelab\[[\w,]+\] @ )?git\+)[^\'"\\]+')

def settings(root):
    "What settings.ini says"
    ini = ConfigParser()
    ini.read(root/'settings.ini', encoding='utf8')
    return ini['DEFAULT']

def extras(
    block:str, # One line for each extra, `name: requirement requirement ...`
) -> dict: # {name: [requirement, ...]}
    "The `extras` of settings.ini"
    res = {}
    for line in block.strip().splitlines():
        name, _, requirements = line.partition(':')
        name = name.strip()
        if not requirements.split() or name in ('', 'dev') or name in res:
            raise ValueError(f'settings.ini has the extra {line.strip()!r}: write `name: requirement ...`, '
                             'each name once, and what is for dev in dev_requirements')
        res[name] = requirements.split()
    return res

def amend(
    text:str, # pyproject.toml as nbdev writes it
    lib:str, # The package
    more:dict, # Extras, {name: [requirement, ...]}
) -> str:
    "`text` with what nbdev's command cannot express: subpackages, and extras beside `dev`"
    doc = tomlkit.parse(text)
    doc['tool']['setuptools']['packages']['find']['include'] = [lib, f'{lib}.*']
    if 'optional-dependencies' not in doc['project']: doc['project']['optional-dependencies'] = {}
    doc['project']['optional-dependencies'].update(more)
    return tomlkit.dumps(doc)

def write(path, text):
    "Write `text` unless the file has it already: its date says when something changed"
    if path.read_text(encoding='utf8') != text: path.write_text(text, encoding='utf8')

def main(root=ROOT):
    "Write all that follows from settings.ini"
    cfg, made = settings(root), root/'pyproject.toml'
    more = extras(cfg.get('extras', ''))
    before = made.stat().st_mtime_ns if made.exists() else None
    was = made.read_text(encoding='utf8') if made.exists() else None
    with redirect_stdout(StringIO()): nbdev_migrate_config(root)    # it says that settings.ini may go now: no
    text = amend(made.read_text(encoding='utf8'), cfg['lib_path'], more)
    made.write_text(text, encoding='utf8')
    if text == was: os.utime(made, ns=(before, before))                 # so that make installs nothing again
    for page in sorted((root/cfg['nbs_path']).rglob('[!.]*.ipynb')):
        write(page, ADDRESS.sub(lambda m: m[1] + cfg['git_url'], page.read_text(encoding='utf8')))

if __name__ == '__main__': main()
