# `make train` and `make test` do all their own set-up: they need Python 3.11 or newer, make and, for the compiled
# kernels, g++. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# e.g. VENV_ARGS=--system-site-packages, to use the torch that is installed already
VENV_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.fusedrnn-ready

ARGS ?= timemachine --cell gru --hidden 256 --epochs 500 --lr 1 --clip 1 --seed 0
OUT ?= runs/timemachine
PYTEST_ARGS ?= -n 2 --dist worksteal
CHECK_RUN := build/train-check
CXX_FILES = $(shell find csrc benchmarks tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help train test bench report gpu aot build wheel format lint types train-check pytest clean
.NOTPARALLEL:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

train: build ## train the Time Machine model; OUT=folder, ARGS="corpus and options of fusedrnn train"
	@out=$(OUT); n=1; while [ -e "$$out" ]; do n=$$((n + 1)); out=$(OUT)-$$n; done; \
	$(BIN)/fusedrnn train --out "$$out" $(ARGS) && \
	echo "curve $$out/curve.png; more text: $(BIN)/fusedrnn sample $$out --prompt 'time traveller'"

test: lint types train-check pytest ## format and lint, types, build, a short training run, the tests

bench: build ## measure against torch.nn, about 25 minutes, and write benchmarks/README.md
	@$(BIN)/pytest benchmarks --benchmark-only; status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

report: build ## write benchmarks/README.md again from the files in benchmarks/results
	$(BIN)/python -m benchmarks.report

gpu: ## measure the GPU, with a python3 that has torch; RESULTS=folder, MINUTES=9; DRY=1: the plan
	@python=$(PYTHON); $$python -c 'import torch' 2>/dev/null || python=$(BIN)/python; \
	test "$$python" = $(PYTHON) || test -x $$python || { \
	    echo "$(PYTHON) has no torch: name another with make gpu PYTHON=..., or make build sets one up" >&2; exit 2; }; \
	$$python -m benchmarks.gpu $(if $(RESULTS),--results '$(RESULTS)') $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(DRY),--dry)

aot: build ## compile every Triton kernel for sm_80, sm_90, sm_100, and the CUDA kernels: spills; records what they are
	$(BIN)/python -m benchmarks.aot
	$(BIN)/python -m benchmarks.cubins --record
	$(BIN)/python -m benchmarks.cubins

build: $(READY) ## set up, and compile what has changed in csrc
	@$(BIN)/python setup.py -q build_ext --inplace

# Without isolation, which would download another torch to build with. What earlier builds gathered is removed, else files
# that are gone from the sources would be packed again.
wheel: $(READY) ## a wheel and an sdist in dist/, checked, and the wheel installed and run
	@rm -rf dist build/lib.* build/bdist.* *.egg-info
	@FUSEDRNN_BUILD=cpu $(BIN)/python setup.py -q sdist
	@FUSEDRNN_BUILD=cpu $(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .
	@rm -rf build/lib.* build/bdist.* *.egg-info
	@FUSEDRNN_DIST='$(CURDIR)/dist' $(BIN)/pytest -q tests/test_wheel.py
	@ls -l dist

format: $(READY) ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

lint: $(READY) ## check format and lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

types: $(READY) ## check types
	$(BIN)/mypy

train-check: build
	@rm -rf $(CHECK_RUN)
	$(BIN)/fusedrnn train timemachine --cell gru --hidden 64 --epochs 5 --lr 1 --clip 1 --out $(CHECK_RUN)
	@test -s $(CHECK_RUN)/model.safetensors && test -s $(CHECK_RUN)/curve.png

pytest: build
	OMP_WAIT_POLICY=passive $(BIN)/pytest --durations=40 $(PYTEST_ARGS)

clean: ## remove what was built, not the virtual environment
	rm -rf build dist *.egg-info fusedrnn/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

$(READY): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	    f"fusedrnn needs Python 3.11 or newer and $(PYTHON) is {v[0]}.{v[1]}: name another with make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) has no venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'setting up $(VENV), which takes some minutes the first time'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	@$(BIN)/python -c 'import torch; v = torch.__version__.split("."); assert (int(v[0]), int(v[1])) >= (2, 11)' \
	    2>/dev/null || $(BIN)/pip install torch==2.13.0
	@$(BIN)/pip install -q ninja 'setuptools>=77' wheel
	@$(BIN)/pip install -q --no-build-isolation -e '.[lm,examples,test,dev]'
	@touch $@
