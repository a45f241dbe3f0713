# `make serve` and `make test` are all a new machine needs: python3, make, a package index.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test test-wheel check format options metrics dashboards lock openblas clean

serve: $(VENV)/.ready-serve
	@exec $(BIN)/mlxfleet launch --port $(PORT) $(ARGS)

test: $(VENV)/.ready-dev
	@PYTHONDONTWRITEBYTECODE= exec $(BIN)/python -m pytest $(ARGS)

# The same suite against the wheel instead of the checkout.
test-wheel: $(VENV)/.ready-dev
	@rm -rf build
	@$(PYTHON) -m venv $(VENV)-wheel
	@$(VENV)-wheel/bin/python -m pip install -q --require-hashes -r requirements-dev.lock
	@$(VENV)-wheel/bin/python -m pip install -q --no-deps --no-build-isolation --force-reinstall .
	@exec $(VENV)-wheel/bin/python -m pytest $(ARGS)

check: $(VENV)/.ready-dev
	@VENV=$(VENV) .ci/check

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes the README's option table.
options: $(VENV)/.ready-serve
	$(BIN)/python -m mlxfleet.common.option_table README.md

# Writes docs/metrics.md.
metrics: $(VENV)/.ready-serve
	$(BIN)/python -m mlxfleet.common.metrics_docs docs/metrics.md

# Writes deploy/grafana/*.json.
dashboards: $(VENV)/.ready-dev
	$(BIN)/python -m mlxfleet.common.dashboards deploy/grafana

# Runs where the tested versions are to change; needs uv.
lock:
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --extra build pyproject.toml -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --extra build --extra dev --extra tracing -c requirements.lock pyproject.toml -o requirements-dev.lock

$(VENV)/.ready-serve: requirements.lock pyproject.toml | $(VENV)/.made openblas
	@echo "installing (once) ..."
	@$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock $(VENV)/.ready-serve
	@echo "installing what the tests need (once) ..."
	@$(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit( \
	  "mlxfleet needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# MLX's Linux wheel links the reference BLAS; OpenBLAS makes float32 about 80 times faster.
openblas:
	@if [ "$$(uname)" = Linux ] && ! ls /usr/lib/*-linux-gnu/openblas-pthread/libopenblas.so.0 >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libopenblas0-pthread) >/dev/null 2>&1 \
	      || echo "could not install libopenblas0-pthread: float32 models will run about 80 times slower"; \
	  else \
	    echo "libopenblas0-pthread is not installed: float32 models will run about 80 times slower"; \
	  fi; \
	fi

clean:
	rm -rf $(VENV) $(VENV)-wheel build *.egg-info
