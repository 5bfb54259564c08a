# Everything this project does from a bare machine: Python >= 3.11 with venv, a C compiler, git and make.
# Nothing here needs root; what is installed goes into .venv.

PYTHON ?= python3
# A package index of PyTorch builds to take torch from, instead of choosing by the hardware in sight.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_PIN = $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.txt)

# As constraints the pins hold also in the environments where pip builds packages from source; which of
# the two variables pip reads for that depends on its age.
PIP = PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
      PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help:
	@echo "make setup   create .venv with the pinned dependencies (the other targets do this by themselves)"
	@echo "make demo    from raw text to a trained and evaluated model, in minutes, on any machine"
	@echo "make test    lint, then run the tests"
	@echo "make lint    check style (ruff) and types (mypy)"
	@echo "make clean   remove .venv and the tools' caches"
	@echo
	@echo "PYTHON=python3.12       the interpreter to build .venv with (3.11 or later)"
	@echo "TORCH_INDEX=URL         index to take torch from; AMD GPUs need one: for ROCm X.Y,"
	@echo "                        make clean setup TORCH_INDEX=https://download.pytorch.org/whl/rocmX.Y"

setup: $(STAMP)
	@echo "setup: $(VENV) is complete"

# The stamp says where the environment was made, as its scripts do: it is made anew after a move,
# and where its Python has gone.
ifneq ($(shell $(BIN)/python -c 'print(open("$(STAMP)").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

# DeepSpeed compiles its operators when first used and calls ninja for that, so .venv/bin is in PATH.
demo test lint: export PATH := $(CURDIR)/$(BIN):$(PATH)

demo: $(STAMP)
	@$(BIN)/python launch/demo.py

# Several files of tests at a time, so each computes with one thread.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build elc_bert/*/*.so elc_bert/*/*/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last and the environment always begins empty, so that whatever interrupted
# an earlier setup leaves nothing behind. torch goes first and alone: the later steps find its pin met
# by any build of that version and bring what that build needs.
$(STAMP): requirements.txt tests/hub/transformers-4.txt setup.py elc_bert/kernels/cpu/kernels.c elc_bert/optim/lamb_cpu.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "setup: $(PYTHON) is missing or older than 3.11; name a newer one: make setup PYTHON=python3.12" >&2; \
	    exit 1; }
	@echo "setup: creating $(VENV)"
	@rm -f $@ && $(PYTHON) -m venv --clear $(VENV)
	@$(install_torch)
	@echo "setup: installing the other pinned packages"
	@$(PIP) --requirement requirements.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(PIP) --no-deps --no-build-isolation --editable .
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-deps \
	    --target $(VENV)/transformers-4 --requirement tests/hub/transformers-4.txt
	@echo "$(CURDIR)" > $@

# With no NVIDIA driver, the CPU build: from the configured indexes where they have it, else from PyTorch's
# own index, else (neither can be reached) the default build, which runs on a CPU as well but is far larger.
# On macOS the default build is the CPU build.
define install_torch
if [ -n "$(TORCH_INDEX)" ]; then \
    echo "setup: installing $(TORCH_PIN) from $(TORCH_INDEX)"; \
    $(PIP) --no-deps --index-url "$(TORCH_INDEX)" $(TORCH_PIN); \
elif [ "$$(uname)" = Darwin ] || [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null; then \
    echo "setup: installing $(TORCH_PIN) (default build)"; \
    $(PIP) --no-deps $(TORCH_PIN); \
else \
    [ ! -e /dev/kfd ] || echo "setup: this looks like an AMD GPU; to use it see TORCH_INDEX in 'make help'"; \
    echo "setup: installing $(TORCH_PIN) (CPU build, about 200 MB)"; \
    $(PIP) --no-deps $(TORCH_PIN)+cpu 2>/dev/null || \
    $(PIP) --no-deps --extra-index-url $(TORCH_CPU_INDEX) $(TORCH_PIN)+cpu || { \
        echo "setup: no CPU build of torch found; installing the default build (several GB)"; \
        $(PIP) --no-deps $(TORCH_PIN); }; \
fi
endef
