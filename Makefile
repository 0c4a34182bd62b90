# Two commands are the contract: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow check format clean

quickstart: $(VENV)/.bc2-quickstart
	-$(BIN)/bc2 doctor
	$(BIN)/bc2 pretrain recipes/tiny.toml
	$(BIN)/bc2 registry lineage checkpoint/tiny
	$(BIN)/bc2 generate checkpoint/tiny "The function returns" "这家酒店的" "def main(" \
	  --max-new-tokens 40 --temperature 0.8 --seed 1
	@echo "curves: $$(ls .bc2/runs/tiny-*/loss.png)"

test: $(VENV)/.bc2-dev
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

# Whole matrices, soaks, peers and real data; results belong in docs/benchmarks.md.
test-slow: $(VENV)/.bc2-dev
	$(BIN)/python -m pytest -m slow --timeout 3600

check: $(VENV)/.bc2-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: $(VENV)/.bc2-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.bc2-quickstart: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[quickstart]"
	touch $@

$(VENV)/.bc2-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
