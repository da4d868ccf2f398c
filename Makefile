# Two commands do everything: `make pretrain` and `make test`. They create .venv on first use.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS)

.PHONY: help pretrain test lint bench install install-dev clean

help:
	@echo "make pretrain   install, then pretrain a LiDAR encoder on simulated streets and write a report"
	@echo "make test       install everything, then lint, type-check and test"
	@echo "make bench      benchmarks and slow tests; results go to docs/results"
	@echo "                (REAL=DIR: on the scans of a KITTI object folder instead of simulated ones)"
	@echo "make install    the environment only, in $(VENV)"
	@echo "Variables: PYTHON=$(PYTHON)  TORCH=$(TORCH)  PIP_ARGS=  ARGS= (overrides for pretrain)"

# A torch that is already there (a CUDA build, say) is used as it is and never replaced. Otherwise torch is installed
# first and by itself, so that pip takes a CPU build where one is offered.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || \
	  { echo "Python 3.11 or 3.12 is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $$($(PYTHON) -c 'import torch; print("--system-site-packages")' 2>/dev/null) $(VENV) || \
	  { rm -rf $(VENV); echo "cannot create $(VENV): this Python lacks the venv module"; exit 1; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null && ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  $(PYTHON) -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' \
	    > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer_environment.pth; fi
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  $(BIN)/python -c 'import torch; print("using the torch that is there:", torch.__version__)'; \
	else echo "installing $(TORCH)"; $(PIP) '$(TORCH)' || { rm -rf $(VENV); exit 1; }; fi

$(VENV)/.base: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing the project"
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.all: $(VENV)/.base
	@echo "installing the tools for tests"
	@$(PIP) -c constraints.txt -e '.[all]'
	@touch $@

install: $(VENV)/.base
install-dev: $(VENV)/.all

pretrain: $(VENV)/.base
	@$(BIN)/python scripts/pretrain_lidar.py $(ARGS)

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

bench: $(VENV)/.all
	$(BIN)/python scripts/benchmark_sparse.py $(if $(REAL),--real $(REAL))
	$(BIN)/python scripts/benchmark_pipeline.py $(if $(REAL),--real $(REAL))
	$(BIN)/python scripts/benchmark_suppression.py
	$(BIN)/python scripts/measure_objectives.py
	$(BIN)/python scripts/deep_linear.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
