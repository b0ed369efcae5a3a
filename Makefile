# make demo: the handwritten digits, trained, sampled and evaluated.  make test: the whole suite.
# make peers: diffusers, installed, recorded anew and compared with live.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2
RUFF := $(BIN)/ruff check --line-length 104 --select E,F,W,B \
	--ignore E731,E741,F722,F821,B008,B023,B905 --per-file-ignores 'eqflow/main.py:E402'

.PHONY: demo test test-all peers lint figures speed constraints clean

demo: .venv/demo
	$(BIN)/python -m eqflow.main --config=configs/digits.py --workdir=runs/digits

test: .venv/dev lint
	JAX_PLATFORMS=cpu $(PYTEST) -m 'not long'

# Programs are optimized here, as a user's are; make test leaves that out, for time.
test-all: .venv/dev lint
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 $(PYTEST)

# make test reads what is recorded of diffusers and needs no torch.
peers: .venv/peers
	JAX_PLATFORMS=cpu EQFLOW_PEERS=live $(BIN)/python -m pytest \
	  -W ignore:__array__:DeprecationWarning tests/peers/test_peers.py

lint: .venv/dev
	$(RUFF) eqflow configs tests experiments colabs

# Every picture of the README but the demo's; the last two train small networks.
figures: .venv/demo
	for name in gain weightings two_sides blind_spots zero_terminal_snr; do \
	  $(BIN)/python -m experiments.$$name || exit 1; done

speed: .venv/demo
	$(BIN)/python -m experiments.speed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'eqflow needs Python 3.11 or later: make PYTHON=python3.11'; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo 'python -m venv failed; on Debian: apt install python3-venv'; exit 1; }

.venv/demo: setup.cfg constraints.txt .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: setup.cfg constraints.txt .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/demo

# torch first and by this version, which brings no CUDA packages where the registry has a CPU build;
# torchvision beside it breaks diffusers.
.venv/peers: .venv/dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	@touch $@

constraints:
	@! $(BIN)/python -m pip show --quiet torch 2>/dev/null || { exec >&2; \
	  echo 'The peers are installed and would be listed too: make clean test constraints'; exit 1; }
	@{ echo '# Versions that make demo and make test were last run with. Made by make constraints.'; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
