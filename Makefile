# make demo    a virtual environment, the quickstart, a page                (needs Python 3.11 to 3.13)
# make check   formatting, lint, types, and the tests that take seconds      under 3 minutes on 2 cores
# make test    formatting, lint, types, and all tests                        under 10 minutes on 2 cores
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Many processes are started, and each would compile all that it imports, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=
# A file's tests share fixtures, so they stay together. tests/conftest.py says which file comes first.
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Linters keep one core busy, and their words are few: tests need not wait for them.
BOTH := $(MAKE) --no-print-directory --jobs 2

.PHONY: demo check test lint quick-tests all-tests clean

demo: $(VENV)/.installed
	$(RUN) launch.py --config=configs/quickstart.py --workdir=runs/quickstart

check: $(VENV)/.installed-dev
	$(BOTH) lint quick-tests

test: $(VENV)/.installed-dev
	$(BOTH) lint all-tests

quick-tests: $(VENV)/.installed-dev
	$(PYTEST) -m "not pipeline and not torch and not browser and not slow"

all-tests: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

# A changed list is installed again, an unchanged one is not looked at.
$(VENV)/.installed: EXTRAS :=
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or \
	  sys.exit("taskpgm needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: make PYTHON=python3.12" % v)'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -e '.$(EXTRAS)'
	@touch $@

clean:
	rm -rf $(VENV) .jax_cache runs
