# make demo | test | lint | fuzz | install: each makes the one .venv and installs what it needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two threads that spin while they wait make two busy processes ten times slower than one.
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0
export MUJOCO_GL ?= $(shell $(PYTHON) -c "import sys; sys.path.insert(0, 'scripts'); import system_libraries as s; print(s.backend() or 'egl')")

.PHONY: help install system demo test lint fuzz clean
help:
	@echo "make demo     train a policy, run it through ROS 2, replay it (about ten minutes)"
	@echo "make test     all tests"
	@echo "make lint     ruff and mypy on the whole tree"
	@echo "make fuzz     10,000 generated bad inputs"
	@echo "make install  the virtual environment alone"
	@echo "make clean    remove the virtual environment and what tools left; recordings and datasets stay"

install: system $(STAMP)

system:
	@$(PYTHON) scripts/system_libraries.py

$(STAMP): pyproject.toml setup.py setup.cfg constraints.txt
	@$(PYTHON) -c "import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(0 if ok else 'visuomotor needs Python 3.11, 3.12 or 3.13, this is %s: try make PYTHON=python3.11' % sys.version.split()[0])"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/python scripts/demo.py --output runs/demo

# A process a core for what only computes; one after the other, and the cores to themselves, for what is held to the clock.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not realtime" --numprocesses auto --dist loadfile
	$(BIN)/python -m pytest -m realtime

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: install
	VISUOMOTOR_FUZZ_EXAMPLES=10000 $(BIN)/python -m pytest -m fuzz -v

clean:
	rm -rf $(VENV) build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache
