# Two commands matter: `make demo` and `make test`. Each builds its own .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test ui lint types imports bench subjects soak clean

demo: $(STAMP)
	$(BIN)/sae-pipeline run demo

test: $(STAMP) lint types imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

ui: $(STAMP)
	$(BIN)/sae-pipeline ui

$(STAMP): pyproject.toml constraints.txt sae_pipeline/kernels/_selection.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

subjects: $(STAMP)
	for model in small medium llama large; do \
		$(BIN)/sae-pipeline run subjects --set study=subjects-$$model --set subject.id=embedded/code-$$model || exit 1; \
	done

soak: $(STAMP)
	$(BIN)/python -m tests.soak

clean:
	rm -rf outputs .dagster_home
