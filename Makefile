# `make` lists what there is. Each target sets itself up: nothing else needs to be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)/src

.DEFAULT_GOAL := help
.PHONY: help install demo test test-oldest test-newest lint format schema published readme lock \
  clean clean-results

help:  ## this list
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / {printf "make %-24s %s\n", $$1, $$2}' Makefile

install: $(VENV)/installed  ## only the environment, in .venv; nothing is run

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

format: $(VENV)/installed  ## Python and Snakemake files brought into that style
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

schema: $(VENV)/installed  ## workflow/schemas from the models
	python -m peregrine schema > workflow/schemas/config.schema.json

published: $(VENV)/installed  ## reports/published/ from its bundles: SCALE=cpu for one, CHECK=1 to compare, WHOLE=folder for all
	python tools/published.py $(if $(SCALE),--scale '$(SCALE)') $(if $(CHECK),--check) $(if $(WHOLE),--whole '$(WHOLE)')

readme: $(VENV)/installed  ## README.md's verdicts from a finished demo and from reports/published/
	python tools/readme.py

lock:  ## requirements.lock and the conda environments from pyproject.toml, pins kept; needs uv
	$(PYTHON) tools/lock.py

# Snakemake's notes of what it made stay as long as that does: without them a changed parameter of a
# step would rerun nothing.
clean:  ## environments and caches removed; nothing trained, downloaded or reported
	rm -rf $(VENV) .venv-oldest .venv-newest .snakemake/conda .snakemake/conda-archive
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-results:  ## with YES=1: results/ and reports/ removed, downloads too; not reports/published/
	@test '$(YES)' = 1 || { echo "this deletes results/ (trained and adopted runs, downloads), report.html\
	 and all of reports/ but reports/published/; to do so: make clean-results YES=1" >&2; exit 1; }
	rm -rf results report.html
	test ! -d reports || find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
	test ! -d .snakemake || find .snakemake -mindepth 1 -maxdepth 1 ! -name 'conda*' -exec rm -rf {} +

# The lock is complete, so pip needs no resolver; the marker is written last, after a whole install.
$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v}: make PYTHON=...")'
	@command -v which > /dev/null || { echo "the program 'which' is needed (Snakemake's SLURM plugin calls it)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@
