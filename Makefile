# make demo   a virtual environment, the quickstart, a page            (needs Python 3.11 to 3.13)
# make test   the same, then the tests
# make lint   ruff
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/.requirements
	$(RUN) launch.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.requirements-dev
	$(RUN) launch.py --config=configs/quickstart.py --workdir=runs/quickstart
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.requirements-dev
	$(RUN) -m ruff check .

# One rule for both lists: a changed list is installed again, an unchanged one is not looked at.
$(VENV)/.requirements $(VENV)/.requirements-dev: $(VENV)/.%: %.txt requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or \
	  sys.exit("taskpgm needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: make PYTHON=python3.12" % v)'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $*.txt
	@touch $@

clean:
	rm -rf $(VENV) runs
