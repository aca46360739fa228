# `make demo` and `make test` do all their own set-up. Nothing else needs to be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/src

.PHONY: demo test test-oldest test-newest lint format schema published readme lock clean

demo: $(VENV)/installed  ## studies and theory at demo scale: three PDFs in reports/demo/
	snakemake --cores $(CORES)
	@echo && ls -l reports/demo/*.pdf && echo "Start with reports/demo/index.html"

test: $(VENV)/installed  ## the test suite
	pytest

test-oldest test-newest: test-%:  ## unit tests on other versions than the lock's: 6 GB of disk each
	$(PYTHON) tools/other_versions.py $* .venv-$*

lint: $(VENV)/installed  ## style of Python and Snakemake files
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

format: $(VENV)/installed
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

schema: $(VENV)/installed  ## workflow/schemas from the models
	python -m peregrine schema > workflow/schemas/config.schema.json

published: $(VENV)/installed  ## reports/published/ from its bundles: SCALE=cpu for one, CHECK=1 to compare, WHOLE=folder for all
	python tools/published.py $(if $(SCALE),--scale '$(SCALE)') $(if $(CHECK),--check) $(if $(WHOLE),--whole '$(WHOLE)')

readme: $(VENV)/installed  ## README.md's verdicts from a finished demo and from reports/published/
	python tools/readme.py

lock:  ## requirements.lock and the conda environments from pyproject.toml; needs uv
	$(PYTHON) tools/lock.py

clean:  ## everything that make or snakemake wrote, data and trained runs included; not reports/published/
	rm -rf $(VENV) .venv-oldest .venv-newest results report.html .snakemake .pytest_cache .ruff_cache .hypothesis
	test ! -d reports || find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock is complete, so pip needs no resolver; the marker is written last, after a whole install.
$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v}: make PYTHON=...")'
	@command -v which > /dev/null || { echo "the program 'which' is needed (Snakemake's SLURM plugin calls it)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@
