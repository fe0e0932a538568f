# Two commands matter: `make demo` shows what prunelab does, `make test` checks that all of it works.
# Both start from nothing but make, Python >= 3.11 and a package registry.
PYTHON ?= python3
BIN    := .venv/bin
# Two stamps for one .venv: what the demo needs, and the same with all that tests, pages, website and releases need.
# --no-compile: Python itself writes the bytecode of what is imported, which is a part of what is installed.
USE    := .venv/installed
DEV    := .venv/installed-dev
RUN    := env -u PYTHONPATH PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONWARNINGS=ignore::FutureWarning,ignore::DeprecationWarning

.PHONY: demo test test-lowest soak catalogue elsewhere peers install config export nbs readme docs docs-serve lint style hooks dist bench clean
.NOTPARALLEL:

demo: $(USE)             ## train on digits, prune with every method, print the table, save the figure
	@$(RUN) python -m prunelab.lab.demo

test: $(DEV)             ## generated files agree with their sources, every test passes, every notebook runs
	$(RUN) OMP_NUM_THREADS=1 pytest -q -n logical --maxprocesses 4 --dist loadfile tests
	$(RUN) OMP_NUM_THREADS=1 python -m tests.elsewhere --each-once

test-lowest:             ## the same with the lowest versions that settings.ini allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	@touch .venv-lowest/installed .venv-lowest/installed-dev
	$(MAKE) test BIN=.venv-lowest/bin USE=.venv-lowest/installed DEV=.venv-lowest/installed-dev

# Pages on simulated other machines: make elsewhere [PAGES="nbs/20_drop.ipynb ..."] [MACHINES=10] [TRAINING=1], and to
# keep what was found for these pages: TABLE=tests/elsewhere/table.md
MACHINES ?= 3
elsewhere: $(DEV)        ## does what pages claim hold where arithmetic rounds in another way?
	@$(RUN) python -m tests.elsewhere "$(PAGES)" --machines $(MACHINES) $(if $(TRAINING),--training) $(if $(TABLE),--table-file $(TABLE))

install: $(DEV)          ## .venv for those who change prunelab
$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "prunelab needs Python 3.11 or newer, this is %s: make PYTHON=python3.12" % sys.version.split()[0]'
	$(PYTHON) -m venv .venv
$(USE): settings.ini pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -e .
	@touch $@
$(DEV): settings.ini pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -e '.[dev]'
	@touch $(USE) $@

# Not `config: $(DEV)`: that would first install what the old pyproject.toml asks for
config:                  ## pyproject.toml, the version and the address on every page, from settings.ini
	@test -e $(DEV) || $(MAKE) --no-print-directory $(DEV)
	$(RUN) python docs/config.py

export: $(DEV)           ## notebooks -> prunelab/**/*.py
	$(RUN) nbdev-export

nbs: $(DEV)              ## run notebooks in a real kernel and keep clean outputs: make nbs [NBS="nbs/00_core.ipynb ..."]
	$(RUN) python docs/execute.py $(NBS)

readme: $(DEV)           ## nbs/index.ipynb -> README.md
	$(RUN) python docs/readme.py

docs: $(DEV)             ## the website from the notebooks' committed outputs: _docs/
	$(RUN) python docs/site.py

docs-serve: docs         ## the same, shown at http://127.0.0.1:8000
	$(RUN) python -m http.server 8000 --bind 127.0.0.1 --directory _docs

lint: $(DEV)             ## ruff on pages, tests and tools (ruff.toml); its list of exceptions may only shrink: make lint SHRINK=1
	$(RUN) python docs/lint.py $(if $(SHRINK),--shrink)

style: $(DEV)            ## size of statements and cells, comments, voice: read it, no number of it is a target
	@$(RUN) python docs/style.py

peers:                   ## other libraries side by side with ours, in .venv-peers: rows go to nbs/repro/results
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -e '.[peers,search]'
	.venv-peers/bin/python -m prunelab.lab.engine --only 'head_to_head/*/peer *'

hooks: $(DEV)            ## git and Jupyter hooks: notebooks stay clean, and what is committed passes ruff
	$(RUN) nbdev-install-hooks
	$(RUN) python docs/hooks.py

dist: $(DEV)             ## wheel and source archive in dist/; the wheel prunes a Learner in an empty environment
	rm -rf build dist
	$(RUN) python -m build
	$(RUN) python tests/dist_smoke.py dist/*.whl

soak: $(DEV)             ## what takes too long for `make test`: kills, the whole product of the promise, many examples
	@$(RUN) OMP_NUM_THREADS=1 python -m tests.soak 100
	@$(RUN) OMP_NUM_THREADS=1 python -m tests.soak.ranks 10000
	@$(RUN) OMP_NUM_THREADS=1 python -m tests.soak.promise --table tests/soak/promise.json
	@$(RUN) OMP_NUM_THREADS=1 python -m tests.soak.steps 1000000
	$(RUN) OMP_NUM_THREADS=1 PRUNELAB_EXAMPLES=20 pytest -q tests/test_properties.py
	$(RUN) OMP_NUM_THREADS=1 PRUNELAB_EXAMPLES=210 pytest -q tests/test_files.py -k 'any_bytes or damaged_file'

catalogue: $(DEV)        ## torchvision, timm, fastai and transformers: each network is pruned, trains a step, and is counted
	$(BIN)/python -m pip install -q -e '.[catalogue]'
	@$(RUN) OMP_NUM_THREADS=1 python -m tests.catalogue --table tests/catalogue.jsonl

bench: $(DEV)            ## ratios against the peers, measured side by side on this machine
	@$(RUN) python -m tests.bench

clean:
	rm -rf .venv .venv-lowest .venv-peers build dist *.egg-info _docs _proc .ruff_cache
