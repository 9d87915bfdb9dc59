# On a machine with Python, pip and make, each target sets up what it needs and runs:
#   make demo        refine a photo and write demo.png
#   make test        all tests but the slow ones; what CI runs
#   make test-slow   the slow ones
#   make bench       the benchmarks, on whatever this machine has
#   make profile     what a Hopper GPU, which need not be here, has for the kernels
#   make lint        ruff, check and format; mypy
#   make gallery     the pictures of the README and of docs, drawn again
#   make docs        the pages and the reference, docs/_build/html/index.html
#   make clean       remove all that these targets made
# and on a GPU machine, with the packages already there and no network:
#   make gpu STAGE=tests|sanitize|bench|profile|TABLE OUT=folder COMMIT=hash DATA=folder MINUTES=9

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

STAGE ?= tests
OUT ?= out
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATA ?=
MINUTES ?=

.PHONY: demo test test-slow bench profile gpu lint gallery docs clean
.DEFAULT_GOAL := test

# The pin in constraints.txt makes pip take a CPU build of torch where the index has one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/tritoncrf demo -o demo.png

# Triton reads TRITON_INTERPRET when it is imported, and what it interprets it cannot compile: so the kernels
# run in the interpreter in one process, all else in another, side by side; make fails if either does. The first
# one's output follows the second's. The tests' tensors are small: more threads would only wait for each other.
# $(1): which tests, in pytest's words. $(2): what to make of pytest's exit status, where it is not 0.
define run_tests
	export OMP_NUM_THREADS=1; failed=0; log=$$(mktemp); \
	TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/kernels -m "$(1)" > $$log 2>&1 & kernels=$$!; \
	$(PYTHON) -m pytest tests --ignore=tests/kernels -m "$(1)" || $(2) failed=1; \
	wait $$kernels || $(2) failed=1; \
	cat $$log; rm -f $$log; exit $$failed
endef

test: $(INSTALLED)
	@$(call run_tests,not slow,)

# A half without slow tests (pytest's status 5) is no failure.
test-slow: $(INSTALLED)
	@$(call run_tests,slow,[ $$? -eq 5 ] ||)

bench: $(INSTALLED)
	$(PYTHON) -m bench run

profile: $(INSTALLED)
	$(PYTHON) -m bench profile --out bench/results

gpu:
	$(PYTHON3) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(PYTHON3) -m bench gpu --stage $(STAGE) --out "$(OUT)" --commit "$(COMMIT)" \
		$(if $(DATA),--data "$(DATA)") $(if $(MINUTES),--minutes $(MINUTES))

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m pytest -q tests/test_types.py

# One thread, so that the seconds in the pictures are those of one.
gallery: $(INSTALLED)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[gallery]"
	OMP_NUM_THREADS=1 $(PYTHON) -m docs.gallery

docs: $(INSTALLED)
	$(PYTHON) -m sphinx -W --keep-going -q docs docs/_build/html

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks docs/_build demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
