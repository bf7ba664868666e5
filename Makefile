# The development environment lives in .venv and is set up by whichever target needs it first.
#   make train    train the built-in model on the embedded synthetic set
#   make test     run all tests            make lint    lint, formatting, types
#   make test-quick   two minutes' tests    make clean   remove .venv and what the tools left behind
#   make bench    run the benchmarks       make docs    the API reference, in build/api
#   make coverage run all tests, with the lines and branches that they reach
#   make mutants  change the specification and the monitor, and list what no test notices
#   make mutants-terms   the same with the per-pixel terms of the kernels
#   make sanitize   the kernels under compute-sanitizer, on a GPU (LOGS=build/sanitize)
#   make matrix   the wheel in clean environments, Python 3.10 to 3.13, oldest and newest torch (needs uv)
# `make test PYTHON=python3.12` picks the interpreter of a new .venv.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What tests/compat compares with. Without their own needs: torchvision's wheel on PyPI does not import
# beside a CPU build of torch, and losses need nothing but torch.
PEERS  := monai==1.6.1 segmentation-models-pytorch==0.6.0
STAMP  := $(VENV)/.installed

# What users import; tests/test_api_reference.py reads this line.
API    := fastseg_losses fastseg_losses.signatures fastseg_losses.compat fastseg_losses.compat.smp \
	fastseg_losses.compat.monai fastseg_losses.compat.nnunet fastseg_losses.compat.torchvision \
	fastseg_losses.compat.sam2 fastseg_losses.training

.PHONY: train test test-losses test-kernels test-users test-builds test-quick lint bench docs coverage matrix mutants \
	mutants-terms sanitize clean

train: $(STAMP)
	$(PY) train.py

# Four processes. The third is one of its own because whether a kernel is interpreted is decided when it
# is decorated: the others interpret the kernels where there is no GPU, it builds them for GPUs that need
# not be there. Two side by side, a thread each: on two cores, more threads than cores made tests ten
# times as slow.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(MAKE) --jobs=2 --output-sync=target test-losses test-kernels test-builds test-users

# The operators, and the kernels behind them.
KERNELS := $(wildcard tests/test_ops*.py) tests/test_single.py tests/test_variants.py \
	tests/test_predict_mask.py tests/test_faults.py

test-kernels: $(STAMP)
	$(PY) -m pytest -m "not compile_only" $(KERNELS)

# The losses and all around them, and the examples in the docstrings.
test-losses: $(STAMP)
	$(PY) -m pytest -m "not compile_only" --ignore=tests/compat --ignore=tests/training $(KERNELS:%=--ignore=%)

# What is built with them: the trainer, and the peers' signatures.
test-users: $(STAMP)
	$(PY) -m pytest -m "not compile_only" tests/compat tests/training

test-builds: $(STAMP)
	TRITON_INTERPRET=0 $(PY) -m pytest tests -m compile_only

# A thread, as for `test`. The losses on plain PyTorch, their arguments, errors and documents: without what takes the time, which is
# interpreted kernels, drawn examples, other libraries and training.
QUICK := --ignore=tests/compat --ignore=tests/training --ignore-glob='tests/test_ops*' \
	--ignore=tests/test_single.py --ignore=tests/test_variants.py --ignore=tests/test_packaging.py \
	--ignore=tests/test_train_cli.py --ignore=tests/test_distributed_losses.py --ignore-glob='tests/test_ways*' \
	--ignore=tests/test_extremes.py --ignore=tests/test_same_bits.py --ignore=tests/test_faults.py \
	--ignore=tests/test_leaks.py --ignore=tests/test_broken_triton.py

test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(QUICK) -m "not compile_only and not slow and not hypothesis and not gpu"

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) -m pytest benchmarks --benchmark-only

docs: $(STAMP)
	$(PY) -m pdoc -d google -o build/api $(API)
	@echo "open build/api/fastseg_losses.html"

# Interpreted kernels are Python, and counted too; what only a GPU runs is not reached without one.
coverage: $(STAMP)
	$(PY) -m pytest -m "not compile_only" --cov --cov-report=term-missing:skip-covered --cov-report=html:build/coverage

LOGS ?= build/sanitize

sanitize: $(STAMP)
	$(PY) tests/sanitize.py $(LOGS)

matrix: $(STAMP)
	$(PY) tests/matrix.py

# Of the files that [tool.mutmut] names; what survived is listed at the end.
mutants: $(STAMP)
	$(PIP) --editable '.[mutants]'
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

mutants-terms: $(STAMP)
	$(PY) tests/mutate_terms.py

# torch first and by its exact version: a plain `torch` may resolve to a newer build of several GB.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastseg-losses needs Python 3.10 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train,dev]'
	$(PIP) --no-deps $(PEERS)
	@touch $@

clean:
	rm -rf $(VENV) build dist mutants .coverage* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
