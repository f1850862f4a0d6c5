# make demo | make test | make test-all | make test-isa | make test-browser | make test-docs |
# make test-cluster | make test-server | make test-faults | make test-fuzz | make lint | make reference | make docs |
# make release | make benchmarks: each sets itself up first.
# TESTS=tests/core/losses tests a part.
# Only Python 3.11 to 3.14, make and git are needed. Paths are relative, so the clone may lie
# anywhere, also in a folder with spaces in its name.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := gkd-core gkd-methods-classic gkd-methods-multiteacher gkd-methods-intermediate
RUNNABLE := .venv/runnable
INSTALLED := .venv/installed

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
QUICK := -m "not exhaustive and not browser and not cluster and not recipes and not campaign"
TESTS ?= tests
PART ?= 1/1

# Threads that wait do not spin: ranks and workers have more of them than there are cores.
TWO_THREADS := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE
OLD_CPU := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(TWO_THREADS)
AVX2_CPU := ATEN_CPU_CAPABILITY=avx2 $(TWO_THREADS)

# Tests start processes, each of which would compile all code again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-exhaustive test-all test-isa test-browser test-docs test-cluster test-server test-recipes test-faults test-fuzz lint format reference docs release benchmarks clean

install: $(INSTALLED)

# All packages in one command, so that pip finds each in the others' requirements.
$(RUNNABLE): constraints.txt $(PACKAGES:%=%/pyproject.toml)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES:%=-e ./%)
	@touch $@

$(INSTALLED): $(RUNNABLE) requirements-dev.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	@touch $@

demo: $(RUNNABLE)
	$(BIN)/gkd run

test: $(INSTALLED)
	$(PYTEST) $(QUICK) $(TESTS)

test-exhaustive: $(INSTALLED)
	$(PYTEST) -m exhaustive $(TESTS)

test-all: test test-exhaustive test-fuzz

# With the instructions and threads of other machines; the first lines of pytest say what is in force.
test-isa: $(INSTALLED)
	$(OLD_CPU) $(PYTEST) $(QUICK) $(TESTS)
	$(AVX2_CPU) $(PYTEST) $(QUICK) $(TESTS)

# All that shows the documentation to be true: its links, code and commands, the examples, the site.
test-docs: $(INSTALLED)
	$(PYTEST) tests/docs

test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser tests/browser

# Kills, signals, full disks and damage, or the i-th of n equal parts: PART=i/n.
test-faults: $(INSTALLED)
	$(PYTEST) tests/faults --part $(PART)

# Inputs that nobody has tried, for each target of fuzzing as many seconds as FUZZ_SECONDS says.
FUZZ_SECONDS ?= 120
test-fuzz: $(INSTALLED)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) -rP -m campaign tests/core/config/test_fuzz.py tests/core/plugins/test_fuzz.py

test-recipes: $(INSTALLED)
	$(BIN)/python -m pytest -m recipes tests/test_recipes.py

test-cluster: $(INSTALLED)
	$(BIN)/python -m pytest -m cluster tests/cluster

# vLLM is installed by the first call, into an environment of its own.
VLLM ?= $(CURDIR)/build/vllm
test-server: $(INSTALLED)
	GKD_VLLM="$(VLLM)" $(BIN)/python -m pytest -m server tests/server

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(INSTALLED)
	$(BIN)/python docs/generate.py

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

# Builds what is released, and tries it in empty environments; uploads nothing.
release: $(INSTALLED)
	$(BIN)/python tools/release.py

benchmarks: $(INSTALLED)
	$(BIN)/python tests/benchmarks/kd_overhead.py
	$(BIN)/python tests/benchmarks/kept_answers.py
	$(BIN)/python tests/benchmarks/capture_speed.py
	$(BIN)/python tests/benchmarks/fused_head.py
	$(BIN)/python tests/benchmarks/probe_cost.py

clean:
	rm -rf .venv docs/_build dist
