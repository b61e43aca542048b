# make demo   distil the tiny teacher into a spiking student: tables, pictures, checkpoint
# make test   everything that must hold before a change is accepted
# make docs   the documentation, into docs/_build
# make gpu    what is right and how fast on the NVIDIA GPU of this machine, in ten minutes
# VENV=/path  an environment elsewhere;  PYTHON=python3.12  another interpreter

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs gpu clean

demo: $(VENV)/.installed-core
	$(BIN)/python examples/distill_llamba.py

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sphinx-build -q -W -b html docs docs/_build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov --cov-report=term

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W -b html docs docs/_build

gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/on_gpu.py

clean:
	rm -rf docs/_build outputs .coverage .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed-core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV); PyTorch alone is several GB, so the first time takes minutes.'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV); PyTorch alone is several GB, so the first time takes minutes.'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed-core
