# Everything runs in .venv, which is created on first use with plain venv and pip. For each set of extras there is a
# stamp file, so that it is installed only once, and again when the requirements have changed.
#
#   make demo           restore the photograph that ships with the package: demo/restored.png, demo/comparison.png
#   make test           the tests, without PyTorch;   make test ARGS="-k guidance"   some of them
#   make test-shapes    the tests that call the package, and more cases of them, with every annotation checked
#   make soak           slow tests: killed commands, training in several processes, on several meshes and on a full
#                       disk, the whole hostile corpus, 2,000 damaged files, and others
#   make soak-long      1,000 kills, 10,000 damaged files with and without PyTorch, and the marker "long"; takes hours
#   make test-torch     live comparisons with PyTorch, diffusers and transformers
#   make test-app       the web page in Chromium, which is installed with apt-get if it is missing
#   make test-notebooks runs the notebooks in their small form
#   make test-wheel     builds the package, installs it into a new environment, and tries every command
#   make docs           builds the site of docs/ into site/; a broken link is an error
#   make lint           ruff and mypy;   make format   lets ruff fix what it can
#   make clean          removes .venv and all caches

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
# Without the tests that need PyTorch, a browser, Jupyter, or a separate environment.
PLAIN := tests $(addprefix --ignore=tests/,torch app notebooks wheel)
# Processes that tests start run without these checks. Tests that only start processes are therefore left out.
SHAPES := $(PLAIN) $(addprefix --ignore=tests/,hostile soak test_accelerator_alone.py test_imports.py test_package.py)

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
SHARED_OUT := -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-shapes soak soak-long test-torch test-app test-notebooks test-wheel docs chromium lint format clean
.DEFAULT_GOAL := demo

demo: .venv/.demo
	$(BIN)/python -m xpsr_jax.demo $(ARGS)

# The tests of a file run in one process, so that shared programs are compiled once. The longest files come first.
test: .venv/.test
	$(PYTEST) $(PLAIN) -m "not soak and not more" $(SHARED_OUT) $(ARGS)

# A separate target, because the checks take time. They report wrong shapes and dtypes at the call that causes them.
test-shapes: .venv/.test
	XPSR_JAX_CHECK_SHAPES=1 $(PYTEST) $(SHAPES) -m "not soak" $(SHARED_OUT) $(ARGS)

# -rfEP: measured figures are printed at the end, followed by the failures.
soak: .venv/.test
	$(PYTEST) $(PLAIN) -m "soak and not long" $(SHARED_OUT) -rfEP $(ARGS)

soak-long: .venv/.test-torch
	SOAK_KILLS=1000 SOAK_FILES=10000 $(PYTEST) tests/soak/test_kills.py tests/hostile/test_kills.py \
	  tests/hostile/test_mutations.py -m soak $(SHARED_OUT) -rfEP $(ARGS)
	$(PYTEST) $(PLAIN) -m long $(SHARED_OUT) -rfEP $(ARGS)

test-torch: .venv/.test-torch .venv/.spandrel
	XPSR_JAX_CHECK_SHAPES=1 $(PYTEST) tests/torch $(ARGS)

test-app: .venv/.test-app chromium
	$(PYTEST) tests/app $(ARGS)

test-notebooks: .venv/.test-notebooks
	$(PYTEST) tests/notebooks $(ARGS)

test-wheel: .venv/.test
	$(PYTEST) tests/wheel $(ARGS)

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

chromium:
	@command -v chromium >/dev/null \
	  || { echo "Installing Debian's chromium." && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
	  || { echo "make test-app needs the command chromium. On Debian, make test-app as root installs it." >&2; exit 1; }

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
.venv/.test-notebooks: EXTRAS := [dev,notebooks]
.venv/.docs: EXTRAS := [docs]
.venv/.demo .venv/.test .venv/.test-torch .venv/.test-app .venv/.test-notebooks .venv/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing xpsr-jax$(EXTRAS) into .venv. This takes a minute or two."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$(EXTRAS)"
	@touch $@

# Without its dependency torchvision: not every build of it works with every PyTorch, and these networks do not need it.
.venv/.spandrel: constraints.txt | .venv/.test-torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps spandrel
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
