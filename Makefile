# Everything needs only Python (3.10 or newer), pip and make; the first call sets up .venv.
PYTHON ?= python3
BIN := .venv/bin
COUNT ?= 2000
KILLS ?= 12
SEED ?= 0

.PHONY: demo test test-all fuzz lint clean

demo: .venv/ready  ## Draw a product with defects, learn it, evaluate, write demo/report.html
	$(BIN)/blemish demo --out demo

test: lint  ## Lint, types, layers, then all tests, on all cores
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: lint  ## The same, and the largest backbones and data sets
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

fuzz: .venv/ready  ## Malicious files, folders, command lines, kills; as long as you like: make fuzz COUNT=20000 KILLS=50 SEED=1
	for target in decode model_files folders commands; do \
		OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/$$target.py --count $(COUNT) --seed $(SEED) || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/kills.py --count $(KILLS) --seed $(SEED)

lint: .venv/ready
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	@# Not on Python 3.10: NumPy and matplotlib have other types in the last releases that it gets.
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' || $(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo dist
