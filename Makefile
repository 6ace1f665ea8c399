# make demo   sets everything up and draws a picture with the embedded model, to demo.png
# make app    sets up what the window needs, and opens it
# make test   sets up what the tests need, then lint, types, tests
# make soak   1000 jobs through the app and its worker, and 100 faults; make soak JOBS=40 FAULTS=12 SEED=2 is shorter
# They install into .venv once; after that they are quick. GNU make 3.81 (macOS) is enough.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO = a red lighthouse by the sea at dusk
JOBS ?= 1000
FAULTS ?= 100
SEED ?= 1

.PHONY: demo app test lint fuzz soak clean

demo: $(VENV)/.installed
	@$(BIN)/mlxldm generate "$(DEMO)" --seed 5 -o demo.png >/dev/null
	@echo "$(DEMO): $(CURDIR)/demo.png"

app: $(VENV)/.installed-app
	$(BIN)/mlxldm-app

test: lint
	$(BIN)/python -m pytest

fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz.py --count 50000

soak: $(VENV)/.installed-app
	$(BIN)/python tools/soak.py --jobs $(JOBS) --faults $(FAULTS) --seed $(SEED)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mlxldm needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Making $(VENV) failed. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing mlxldm into $(VENV), once ..."
	@$(PIP) --editable .
	@if [ "`uname -sm`" = "Linux x86_64" ] && ! $(BIN)/python -c 'import sys; from mlxldm.on_mlx import BLAS; sys.exit(bool(BLAS.advice))'; then \
	  echo "No OpenBLAS on this system, and MLX alone is slow on a CPU: installing Intel's MKL into $(VENV) too ..."; \
	  $(PIP) --editable '.[fastcpu]' || echo "That failed; everything works without it, only slower."; \
	fi
	@touch $@

$(VENV)/.installed-app: pyproject.toml $(VENV)/.installed
	@echo "Installing Qt for the window (some 80 megabytes), once ..."
	@$(PIP) --editable '.[app]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml tests/constraints.txt $(VENV)/.installed
	@echo "Installing what the tests need (torch and diffusers among it, several hundred megabytes), once ..."
	@$(PIP) --constraint tests/constraints.txt --editable '.[test]'
	@touch $@
