# Two commands matter: `make demo` shows what prunelab does, `make test` checks that all of it works.
# Both start from nothing but make, Python >= 3.11 and a package registry.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/installed
RUN    := env -u PYTHONPATH PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONWARNINGS=ignore::FutureWarning,ignore::DeprecationWarning

.PHONY: demo test test-lowest elsewhere elsewhere-ci install config export nbs readme docs docs-serve hooks bench clean

demo: $(STAMP)           ## train on digits, prune with every method, print the table, save the figure
	@$(RUN) python -m prunelab.demo

test: $(STAMP)           ## generated files agree with their sources, every notebook runs, every test passes
	$(RUN) pytest -q tests/test_project.py
	$(RUN) OMP_NUM_THREADS=1 nbdev-test --n-workers 2 --do-print
	$(RUN) pytest -q tests --ignore tests/test_project.py

test-lowest:             ## the same with the lowest versions that settings.ini allows, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	@touch .venv-lowest/installed
	$(MAKE) test BIN=.venv-lowest/bin STAMP=.venv-lowest/installed

# Pages on simulated other machines: make elsewhere [PAGES="nbs/20_drop.ipynb ..."] [MACHINES=10] [TABLE=file.md]
MACHINES ?= 3
elsewhere: $(STAMP)      ## does what pages claim hold where arithmetic rounds in another way?
	@$(RUN) python -m tests.elsewhere "$(PAGES)" --machines $(MACHINES) $(if $(TABLE),--table-file $(TABLE))

elsewhere-ci: $(STAMP)   ## the same for the pages that assert outcomes of training
	@$(RUN) python -m tests.elsewhere --training --machines $(MACHINES)

install: $(STAMP)
$(STAMP): settings.ini pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "prunelab needs Python 3.11 or newer, this is %s: make PYTHON=python3.12" % sys.version.split()[0]'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

config: $(STAMP)         ## pyproject.toml and the version, from settings.ini
	$(RUN) nbdev-migrate-config

export: $(STAMP)         ## notebooks -> prunelab/*.py
	$(RUN) nbdev-export

nbs: $(STAMP)            ## run notebooks in a real kernel and keep clean outputs: make nbs [NBS="nbs/00_core.ipynb ..."]
	$(RUN) python docs/execute.py $(NBS)

readme: $(STAMP)         ## nbs/index.ipynb -> README.md
	$(RUN) python docs/readme.py

docs: $(STAMP)           ## the website from the notebooks' committed outputs: _docs/
	$(RUN) python docs/site.py

docs-serve: docs         ## the same, shown at http://127.0.0.1:8000
	$(RUN) python -m http.server 8000 --bind 127.0.0.1 --directory _docs

hooks: $(STAMP)          ## git and Jupyter hooks that keep notebooks clean
	$(RUN) nbdev-install-hooks

bench: $(STAMP)          ## ratios against the peers, measured side by side on this machine
	@$(RUN) python -m tests.bench

clean:
	rm -rf .venv build dist *.egg-info _docs _proc
