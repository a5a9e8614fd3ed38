# Everything runs in .venv, which is made on first use with plain venv and pip. A stamp file for each set of extras keeps
# that to once, and does it again when what is to be installed has changed.
#
#   make demo           restore the photograph that ships with the package: demo/restored.png, demo/comparison.png
#   make test           the tests, without PyTorch;   make test ARGS="-k guidance"   some of them
#   make test-shapes    the tests that call the package, and more cases of them, with every annotation checked at each call
#   make soak           commands that are killed, trainings of several processes, on several meshes, on a full disk; all of
#                       the hostile corpus and 2,000 damaged files; what else is slow
#   make soak-long      1,000 kills and 10,000 damaged files, with and without PyTorch, and the marker "long"; it takes hours
#   make test-torch     live comparisons with PyTorch, diffusers and transformers
#   make test-app       the web page in Chromium, which apt-get installs if it is not there
#   make test-wheel     the package as users get it: built, installed into a new environment, every command tried
#   make docs           the site of docs/ in site/: strict, so a link that leads nowhere ends it
#   make lint           ruff and mypy;   make format   lets ruff put right what it can
#   make clean          removes .venv and all caches

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
# Without those that need PyTorch, a browser, or an environment of their own.
PLAIN := tests $(addprefix --ignore=tests/,torch app wheel)
# Processes that tests start run without these checks: tests that only start some gain nothing from them.
SHAPES := $(PLAIN) $(addprefix --ignore=tests/,hostile soak test_accelerator_alone.py test_imports.py test_package.py)

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
SHARED_OUT := -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-shapes soak soak-long test-torch test-app test-wheel docs chromium lint format clean
.DEFAULT_GOAL := demo

demo: .venv/.demo
	$(BIN)/python -m xpsr_jax.demo $(ARGS)

# One file's tests stay in one process, so that what they share is compiled once; the longest files come first.
test: .venv/.test
	$(PYTEST) $(PLAIN) -m "not soak and not more" $(SHARED_OUT) $(ARGS)

# A step of its own: the checks take a part of the tests' time. They show wrong shapes and dtypes at the call that has them.
test-shapes: .venv/.test
	XPSR_JAX_CHECK_SHAPES=1 $(PYTEST) $(SHAPES) -m "not soak" $(SHARED_OUT) $(ARGS)

# -rfEP: what was measured is printed at the end, and after it what failed.
soak: .venv/.test
	$(PYTEST) $(PLAIN) -m "soak and not long" $(SHARED_OUT) -rfEP $(ARGS)

soak-long: .venv/.test-torch
	SOAK_KILLS=1000 SOAK_FILES=10000 $(PYTEST) tests/soak/test_kills.py tests/hostile/test_kills.py \
	  tests/hostile/test_mutations.py -m soak $(SHARED_OUT) -rfEP $(ARGS)
	$(PYTEST) $(PLAIN) -m long $(SHARED_OUT) -rfEP $(ARGS)

test-torch: .venv/.test-torch .venv/.spandrel
	$(PYTEST) tests/torch $(ARGS)

test-app: .venv/.test-app chromium
	$(PYTEST) tests/app $(ARGS)

test-wheel: .venv/.test
	$(PYTEST) tests/wheel $(ARGS)

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

chromium:
	@command -v chromium >/dev/null \
	  || { echo "Installing Debian's chromium." && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
	  || { echo "make test-app needs Chromium under the name chromium; as root on Debian it installs it itself." >&2; exit 1; }

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache site

.venv/.demo: EXTRAS :=
.venv/.test: EXTRAS := [dev,metrics,tfds,bucket,servers]
.venv/.test-torch: EXTRAS := [dev,metrics,tfds,bucket,servers,torch,oracles]
.venv/.test-app: EXTRAS := [dev,app,browser]
.venv/.docs: EXTRAS := [docs]
.venv/.demo .venv/.test .venv/.test-torch .venv/.test-app .venv/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing xpsr-jax$(EXTRAS) into .venv; this takes a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$(EXTRAS)"
	@touch $@

# Without torchvision, which it asks for: not every build of that goes with every PyTorch, and these networks need none.
.venv/.spandrel: constraints.txt | .venv/.test-torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps spandrel
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
