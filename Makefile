# Two commands: `make demo` and `make test`. Everything they make stays in
# run/, everything they start is ended by its own pid.
SHELL := /bin/bash
PYTHON ?= python3.11
RUN := $(CURDIR)/run
BIN := $(RUN)/venv/bin
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo demo-stop test unit functional e2e lint vectors bench-launch bench-disk \
	bench-compressed bench-stream \
        install clean genconfig events

install:
	@$(shell command -v $(PYTHON) || command -v python3) tools/install.py

# make demo KEEP=1 leaves everything up and prints what to source.
demo: install
	@$(BIN)/python -m tests.minicloud.demo $(if $(KEEP),--keep)

demo-stop:
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m tests.minicloud stop

test: install lint
	@$(BIN)/python tools/run_tests.py

unit: install
	@$(BIN)/python -m pytest -q tests/unit

functional: install
	@$(BIN)/python -m pytest -q tests/functional

e2e: install
	@$(BIN)/python -m pytest -q tests/e2e

lint: install
	@tools/lint.sh $(BIN)

vectors: install
	@for make in tools/vectors/*.py; do $(BIN)/python $$make || exit 1; done

bench-disk: install
	@$(BIN)/python -m tests.bench.disk

bench-compressed: install
	@$(BIN)/python -m tests.bench.compressed

bench-stream: install
	@$(BIN)/python -m tests.bench.stream

bench-launch: install
	@$(BIN)/python -m tests.bench.launch

# doc/source/reference/events.rst, out of the source
events: install
	@$(BIN)/python tools/events.py

genconfig: install
	@mkdir -p $(RUN)/samples
	@for f in etc/*/config-generator.conf; do \
	    $(BIN)/oslo-config-generator --config-file $$f; done
	@for f in etc/*/policy-generator.conf; do \
	    $(BIN)/oslopolicy-sample-generator --config-file $$f; done

clean: demo-stop
	@rm -rf $(RUN)
