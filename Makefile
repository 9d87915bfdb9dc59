# On a machine with Python, pip and make, each target sets up what it needs and runs:
#   make demo        refine a photo and write demo.png
#   make test-fast   for a developer at work: each test with the first of its parameters alone, but none that starts
#                    other processes; of the kernels' a share in Triton's interpreter
#   make test        the package's tests but the slow ones. The kernels as code compiled for sm_90, in an emulator, and a
#                    share of their tests in Triton's interpreter
#   make test-extras the tests of optional packages, PyTorch's compilers, documents, wheel, types and benchmarks; kernels
#                    compiled with every constant that they are launched with; the same share for sm_80. CI runs these
#                    and `make test`
#   make test-slow   the slow ones, all tests of the kernels for sm_80 and in the interpreter, every configuration of a
#                    kernel compiled, and the newest Triton
#   make bench       the benchmarks, on whatever this machine has
#   make profile     what a Hopper GPU, which need not be here, has for the kernels
#   make lint        ruff, check and format; mypy
#   make gallery     the pictures of the README and of docs, drawn again
#   make docs        the pages and the reference, docs/_build/html/index.html
#   make clean       remove all that these targets made
# and on a GPU machine, with the packages already there and no network:
#   make gpu STAGE=first|tests|sanitize|bench|profile|TABLE OUT=folder COMMIT=hash DATA=folder MINUTES=9

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NEWEST := $(VENV)/newest-triton

STAGE ?= tests
OUT ?= out
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATA ?=
MINUTES ?=

.PHONY: demo test test-fast test-extras test-slow part-project part-rest part-models part-compilation part-sm_80 part-sm_90 \
	part-interpreter part-newest bench profile gpu lint gallery docs clean
.DEFAULT_GOAL := test

# The pin in constraints.txt makes pip take a CPU build of torch where the index has one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(VENV)/bin/tritoncrf demo -o demo.png

# Parts of the tests, in two processes side by side. A part's output appears as a whole when the part is done, and its
# last line, pytest's, once more at the end. All parts run though one fails, and then make fails. The tests' tensors are
# small: more threads would only wait for each other.
# $(1): the parts, the longest first. $(2): which tests, in pytest's words. $(3): the same, of the kernels for sm_80 and
# in the interpreter.
define run_tests
	logs=$$(mktemp -d); failed=0; \
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs=2 --output-sync --keep-going LOGS=$$logs \
		TESTS="$(2)" SHARE="$(3)" $(1) || failed=1; \
	tail -qn 1 $$logs/*; rm -rf $$logs; exit $$failed
endef

# Triton reads TRITON_INTERPRET when it is imported, and what it interprets it cannot compile: hence a process each.
# Documents, types, the wheel and the benchmarks.
PROJECT := $(foreach name,architecture docs gallery readme repository types wheel,tests/test_$(name).py) \
	$(wildcard tests/test_bench*.py)
part-project: run = $(PYTHON) -m pytest $(PROJECT) -m "$(TESTS)" $(EACH)
part-rest: run = $(PYTHON) -m pytest tests $(patsubst %,--ignore=%,tests/kernels tests/models tests/compilation $(PROJECT)) \
	-m "$(TESTS)" $(EACH)
part-models: run = $(PYTHON) -m pytest tests/models -m "$(TESTS)" $(EACH)
part-compilation: run = $(PYTHON) -m pytest tests/compilation -m "$(TESTS)"
part-sm_90: run = $(PYTHON) tests/ptxemu.py --target sm_90 pytest tests/kernels -m "$(TESTS)"
part-sm_80: run = $(PYTHON) tests/ptxemu.py --target sm_80 pytest tests/kernels -m "$(SHARE)"
part-interpreter: run = TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/kernels -m "$(SHARE)" $(EACH)
part-newest: export PYTHONPATH = $(NEWEST)
part-newest: run = { TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/kernels -m interpreter && \
	$(PYTHON) tests/ptxemu.py pytest tests/kernels -m "not slow"; }

part-project part-rest part-models part-compilation part-sm_80 part-sm_90 part-interpreter part-newest:
	@$(run) > $(LOGS)/$@ 2>&1; status=$$?; cat $(LOGS)/$@; \
		[ $$status -eq 5 ] && [ "$(TESTS)" = slow ] && status=0; exit $$status  # 5: a part without slow tests is no failure

test-fast: export EACH = --one-of-each
test-fast: $(INSTALLED)
	@$(call run_tests,part-rest part-models part-interpreter part-project,not slow and not processes,interpreter)

test: $(INSTALLED)
	@$(call run_tests,part-rest part-sm_90 part-models part-interpreter part-compilation part-project,not slow and not extras,interpreter)

test-extras: $(INSTALLED)
	@$(call run_tests,part-project part-rest part-compilation part-sm_80 part-models,extras and not slow,interpreter)

# What pip gives where no pin holds it, in a folder of its own.
$(NEWEST): $(INSTALLED)
	$(PYTHON) -m pip install --disable-pip-version-check --no-deps --target $@ triton

test-slow: $(INSTALLED) $(NEWEST)
	@$(call run_tests,part-interpreter part-newest part-sm_80 part-compilation part-rest part-models part-project part-sm_90,slow)

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
