# Everything this project does on a bare machine with Python >= 3.11 and venv, a C compiler, git and make.
# Nothing here needs root; packages are installed into .venv.

PYTHON ?= python3
# Package index to install torch from. By default the build is chosen by the hardware that is found.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
STAMP := $(VENV)/.complete
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
OLDER_TRANSFORMERS := $(wildcard tests/hub/transformers-*.txt)
TORCH_PIN = $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.txt)

# Passed as constraints, the pins also hold in the environments in which pip builds packages from source.
# Older versions of pip read the first variable for that, newer ones the second.
PIP = PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
      PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq
# Several test files run at a time, so each of them computes with one thread.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast mutants lint clean

help:
	@echo "make setup      create .venv with the pinned dependencies (the other targets do so when needed)"
	@echo "make demo       train and evaluate a model from raw text, in minutes, on any machine"
	@echo "make test-fast  run the tests that start no training run or benchmark, in less than 4 minutes"
	@echo "make test       run lint and all tests"
	@echo "make mutants    put small faults into copies of the code and check that tests notice, in an hour"
	@echo "make lint       check style (ruff), types (mypy) and the direction of imports (import-linter)"
	@echo "make clean      remove .venv, build products and the tools' caches"
	@echo
	@echo "PYTHON=python3.12       interpreter to build .venv with (3.11 or later)"
	@echo "TORCH_INDEX=URL         index to install torch from; AMD GPUs need one: for ROCm X.Y, run"
	@echo "                        make clean setup TORCH_INDEX=https://download.pytorch.org/whl/rocmX.Y"

setup: $(STAMP)
	@echo "setup: $(VENV) is complete"

# The first stamp holds the directory in which the environment was made. The environment's scripts refer to
# that directory, so the environment is rebuilt after a move, and also if its Python no longer exists.
ifneq ($(shell $(BIN)/python -c 'print(open("$(DEPENDENCIES)").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: $(DEPENDENCIES)
endif

# DeepSpeed compiles its operators on first use and calls ninja, so .venv/bin must be on PATH.
demo test test-fast mutants lint: export PATH := $(CURDIR)/$(BIN):$(PATH)

demo: $(STAMP)
	@$(BIN)/python launch/demo.py

test: lint
	$(PYTEST)

test-fast: $(STAMP)
	$(PYTEST) -m "not launcher and not slow"

mutants: $(STAMP)
	$(BIN)/python tests/mutants/run

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf $(VENV) build elc_bert/*/*.so elc_bert/*/*/*.so *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# The environment always starts empty and a stamp is written last, so an interrupted setup leaves nothing
# behind. torch is installed first and alone; the later steps accept any build of the pinned version and
# install what that build needs.
$(DEPENDENCIES): requirements.txt $(OLDER_TRANSFORMERS) tests/kernels/triton.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "setup: $(PYTHON): missing or older than 3.11; run: make setup PYTHON=python3.12" >&2; \
	    exit 1; }
	@echo "setup: creating $(VENV)"
	@rm -f $@ $(STAMP) && $(PYTHON) -m venv --clear $(VENV)
	@$(install_torch)
	@echo "setup: installing the other pinned packages"
	@$(PIP) --requirement requirements.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@for file in $(OLDER_TRANSFORMERS); do \
	    PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-deps \
	        --target $(VENV)/$$(basename $$file .txt) --requirement $$file || exit 1; done
	@[ "$$(uname)" != Linux ] || $(BIN)/python -c 'import triton' 2>/dev/null || \
	    $(PIP) --requirement tests/kernels/triton.txt
	@echo "$(CURDIR)" > $@

# This package: Python code is used where it is, so only its metadata and the C code need an installation.
$(STAMP): $(DEPENDENCIES) setup.py pyproject.toml elc_bert/kernels/cpu/kernels.c elc_bert/optim/lamb_cpu.c
	@echo "setup: installing elc-bert"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# Without an NVIDIA driver, the CPU build is installed: from the configured indexes if they have it, else from
# PyTorch's own index. If neither can be reached, the default build is installed, which also runs on a CPU but
# is much larger. On macOS the default build is the CPU build.
define install_torch
if [ -n "$(TORCH_INDEX)" ]; then \
    echo "setup: installing $(TORCH_PIN) from $(TORCH_INDEX)"; \
    $(PIP) --no-deps --index-url "$(TORCH_INDEX)" $(TORCH_PIN); \
elif [ "$$(uname)" = Darwin ] || [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null; then \
    echo "setup: installing $(TORCH_PIN) (default build)"; \
    $(PIP) --no-deps $(TORCH_PIN); \
else \
    [ ! -e /dev/kfd ] || echo "setup: found an AMD GPU; to use it, see TORCH_INDEX in 'make help'"; \
    echo "setup: installing $(TORCH_PIN) (CPU build, about 200 MB)"; \
    $(PIP) --no-deps $(TORCH_PIN)+cpu 2>/dev/null || \
    $(PIP) --no-deps --extra-index-url $(TORCH_CPU_INDEX) $(TORCH_PIN)+cpu || { \
        echo "setup: no CPU build of torch found; installing the default build (several GB)"; \
        $(PIP) --no-deps $(TORCH_PIN); }; \
fi
endef
