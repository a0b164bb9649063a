# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-mil-nce demo-frozen test test-quick test-tpu lint clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(INSTALLED): setup.py
	@echo "Making a virtual environment in $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Zoetrope needs Python 3.11 to 3.13; name one with PYTHON=..., e.g. make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS='ignore:Editable installation' \
	  $(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(INSTALLED)  ## mp4 files to a trained, evaluated, exported model and a report; VIDEOS=folder for your own
	@$(BIN)/python -m brave.demo --output='$(or $(OUTPUT),runs/demo)' $(if $(VIDEOS),--videos='$(VIDEOS)')

demo-mil-nce: $(INSTALLED)  ## narrated videos to a model that finds clips by text; VIDEOS=, NARRATIONS= for your own
	@$(BIN)/python -m mil_nce.demo --output='$(or $(OUTPUT),runs/demo_mil_nce)' $(if $(VIDEOS),--videos='$(VIDEOS)') $(if $(NARRATIONS),--narrations='$(NARRATIONS)')

demo-frozen: $(INSTALLED)  ## captioned videos through every part of Frozen in Time, to a bundle and a report; the same options
	@$(BIN)/python -m frozen.demo --output='$(or $(OUTPUT),runs/demo_frozen)' $(if $(VIDEOS),--videos='$(VIDEOS)') $(if $(NARRATIONS),--narrations='$(NARRATIONS)')

test: $(INSTALLED)  ## every test
	@$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations=15

test-quick: $(INSTALLED)  ## the tests that take seconds
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

test-tpu: .venv-tpu/.installed  ## what asks the TPU compiler, in an environment of its own (Linux on x86-64; 213 MB more)
	@.venv-tpu/bin/python -m pytest -q tests/common/planning

# libtpu lies over $(VENV), which it shares every other package with: a second whole environment
# would take gigabytes. It is not in $(VENV), for jax looks for a TPU wherever libtpu is.
.venv-tpu/.installed: $(INSTALLED)
	@$(BIN)/python -m venv --clear --without-pip .venv-tpu
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$(.venv-tpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_shared.pth"
	@PYTHONWARNINGS='ignore:Editable installation' \
	  $(BIN)/python -m pip --python .venv-tpu/bin/python install --quiet --editable '.[tpu]'
	@touch $@

lint: $(INSTALLED)  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:  ## removes the virtual environment and caches, never your runs
	rm -rf $(VENV) .venv-tpu .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
