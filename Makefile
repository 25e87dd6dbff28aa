# What one types here. `make demo` and `make test` make their own .venv; each step leaves a stamp in it and is repeated
# only when a file it reads has changed.
#
#   make demo        the embedded model answers recorded questions: wav files and a page
#   make test        everything that tests need, then the suite
#   make check-long  the same properties over every length and case, the result written down with its commit
#   make clients     other people's clients, each in an environment of its own, for the tests of the server
#   make docs        the documentation, built strictly, into site/

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq
CLIENTS := $(patsubst requirements/clients/%.txt,.clients/%/.made,$(filter-out %.no-deps.txt,$(wildcard requirements/clients/*.txt)))
QUIET  := $(if $(wildcard .clients),VIVAVOCE_CLIENTS=$(CURDIR)/.clients) HF_HUB_OFFLINE=1 VIVAVOCE_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: demo test check-long clients docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	@VIVAVOCE_OFFLINE=1 $(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(QUIET) $(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

check-long: $(VENV)/.test
	$(QUIET) VIVAVOCE_LONG=1 $(BIN)/python tests/check_long.py $(ARGS)

clients: $(CLIENTS) .clients/agents/.made

.clients/agents/.made: requirements/clients/agents/package.json
	@echo "installing @openai/agents into .clients/agents"
	@mkdir -p $(@D) && cp $< $(@D) && cd $(@D) && npm install --silent --no-audit --no-fund
	@touch $@

.clients/%/.made: requirements/clients/%.txt
	@echo "installing $* into .clients/$*"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install -qq --no-compile -r $<
	@test ! -f $(<:.txt=.no-deps.txt) || \
	    $(@D)/bin/python -m pip --disable-pip-version-check install -qq --no-compile --no-deps -r $(<:.txt=.no-deps.txt)
	@touch $@

docs: $(VENV)/.test
	$(QUIET) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) .clients build dist site out

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vivavoce needs Python 3.11 or later: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: requirements/core.txt $(VENV)/.made
	@echo "installing what the demo needs into $(VENV) (once; about two minutes)"
	@$(PIP) -r requirements/core.txt
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.core
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: requirements/test.txt tests/peers.txt $(VENV)/.package
	@echo "installing what the tests need into $(VENV) (once; some minutes)"
	@$(PIP) -r requirements/test.txt
	@$(PIP) --no-deps --no-build-isolation -r tests/peers.txt
	@touch $@
