# make demo         trains, samples and evaluates the handwritten digits
# make test         the tests, but the long ones; make test-all runs all
# make test-newest  make test with the newest Python and packages: make test-newest NEWEST=python3.13
# make light        the library with nothing but what `pip install .` brings
# make peers        compares with diffusers, installed and recorded again
PYTHON ?= python3
NEWEST ?= python3.13
BIN := .venv/bin
# A file of tests stays in one process, which trains and traces what they share once. The files keep
# their order: sorted by number of tests, the few that train would come last.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(SPREAD)
RUFF := $(BIN)/ruff check --line-length 104 --select E,F,W,B \
	--ignore E731,E741,F722,F821,B008,B023,B905 --per-file-ignores 'eqflow/main.py:E402'

.PHONY: demo test test-all test-newest light peers lint figures speed constraints clean

demo: .venv/demo
	$(BIN)/python -m eqflow.main --config=configs/digits.py --workdir=runs/digits

test: .venv/dev lint
	JAX_PLATFORMS=cpu $(PYTEST) -m 'not long'

# XLA optimizes here, as for a user; make test compiles without optimization, which is faster.
test-all: .venv/dev lint
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 $(PYTEST)

# No constraints.txt here: pip takes the newest versions that its index has for this Python.
test-newest:
	@$(NEWEST) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo 'make test-newest needs Python 3.12 or later: make test-newest NEWEST=python3.12'; exit 1; }
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[dev]'
	.venv-newest/bin/python -m pip list | grep -iE '^(jax|flax|optax|orbax-checkpoint|grain|numpy) '
	JAX_PLATFORMS=cpu .venv-newest/bin/python -m pytest $(SPREAD) -m 'not long'

# From a folder without the sources, so that the installed package is imported.
light: .venv/bin/python
	rm -rf .venv-light build
	$(BIN)/python -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet .
	cd .venv-light && JAX_PLATFORMS=cpu bin/python ../tests/light.py

# make test reads what is recorded of diffusers and needs no torch.
peers: .venv/peers
	JAX_PLATFORMS=cpu EQFLOW_PEERS=live $(BIN)/python -m pytest \
	  -W ignore:__array__:DeprecationWarning tests/peers/test_peers.py

lint: .venv/dev
	$(RUFF) eqflow configs tests experiments colabs

# The pictures of docs/ but the demo's; the last two train small networks.
figures: .venv/demo
	for name in plane gain weightings two_sides blind_spots zero_terminal_snr; do \
	  $(BIN)/python -m experiments.$$name || exit 1; done

speed: .venv/demo
	$(BIN)/python -m experiments.speed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'eqflow needs Python 3.11 or later: make PYTHON=python3.11'; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo 'python -m venv failed; on Debian: apt install python3-venv'; exit 1; }

.venv/demo: setup.cfg constraints.txt .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	@touch $@

.venv/dev: setup.cfg constraints.txt .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/demo

# torch first and in this version, which brings no CUDA packages where the index has a CPU build;
# torchvision would break diffusers.
.venv/peers: .venv/dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	@touch $@

constraints:
	@! $(BIN)/python -m pip show --quiet torch 2>/dev/null || { exec >&2; \
	  echo 'The peers are installed and would be listed too: make clean test constraints'; exit 1; }
	@{ echo '# The versions that make demo and make test were last run with. Written by make constraints.'; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt

clean:
	rm -rf .venv .venv-newest .venv-light runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
