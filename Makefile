# make run   upscales IN to OUT        make test         checks everything
# make demo  opens the page            make test-hosts   checks it in browsers and genuine hosts
# Each sets itself up in .venv first; that needs Python 3.10 or newer, and happens again only when the needs change.

PYTHON ?= python3
IN ?= assets/demo.png
OUT ?= out/$(basename $(notdir $(IN)))_x4.png
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run demo test test-hosts clean

run: $(VENV)/.run
	@mkdir -p "$(dir $(OUT))"
	$(BIN)/python -m moesr upscale "$(IN)" -o "$(OUT)" --compare --skip-existing $(ARGS)

demo: $(VENV)/.demo
	$(BIN)/python -m moesr demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --ignore=tests/hosts -n 2 --dist loadfile

# Against the genuine hosts, run beside the project, and what `make test` leaves out because it needs Gradio.
test-hosts: $(VENV)/.hosts
	@if ls tests/hosts/test_*.py >/dev/null 2>&1; then $(BIN)/python -m pytest tests/hosts tests/test_resshift_hosts.py; else echo "no tests/hosts: nothing to run"; fi

clean:
	rm -rf $(VENV) .cache build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[demo]"
	@touch $@ $(VENV)/.run

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.run

$(VENV)/.hosts: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test,hosts,demo]"
	@touch $@ $(VENV)/.test $(VENV)/.demo $(VENV)/.run
