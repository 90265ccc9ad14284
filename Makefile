# Every command a developer types. They need python3 (3.11 to 3.14) and make, and nothing else.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:

VENV := .venv
AGAINST := main
BIN := $(VENV)/bin

# The first interpreter that starts and is new enough; `make PYTHON=… run` names another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

# Directories too: their time changes when a file is removed.
PROTOS := $(shell find protos -mindepth 1 -type d -o -name '*.proto' -o -name '*.json')

# What gen/ is written by, and what of the code the reference of the API tells.
GENERATORS := deploy/codegen.py $(wildcard deploy/openapi/*.py) runtime/contract.py runtime/errors.py \
	$(wildcard services/sessions/schemas/*.json)

# An interpreter that was upgraded away takes what was installed for it along.
$(shell test -x $(BIN)/python || rm -f $(VENV)/.*-stamp)

# Every lock can generate gen/; the one that the command installs anyway does.
GENERATOR := $(or $(filter bench,$(MAKECMDGOALS)),$(if $(filter test converge lint breaking,$(MAKECMDGOALS)),dev),run)

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	--only-binary :all:

.PHONY: help run demo upload test converge lint breaking format protos lock bench soak clean

help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run-stamp $(if $(SATCHEL_OTLP_ENDPOINT),$(VENV)/.traces-stamp) gen/.stamp  ## Run the whole mesh on this machine, until Ctrl-C
	@exec $(BIN)/python -m deploy.local

demo: $(VENV)/.run-stamp  ## Let simulated phones use what `make run` runs (ARGS="--phones 24 --admin ada@example.com")
	@exec $(BIN)/python -m clients.demo $(ARGS)

upload: $(VENV)/.run-stamp  ## Upload a file, or go on with it (FILE=ride.fit ARGS="--email ada@example.com")
	@$(BIN)/python -m clients.upload "$(FILE)" $(ARGS)

# Processes are killed under deadlines, on whatever machine there is: what fails is tried once more, and R says so.
test: $(VENV)/.dev-stamp gen/.stamp  ## Run the tests, on a real database and a real edge (ARGS="-k name")
	@$(BIN)/python -m pytest -q -n auto --reruns 1 -raR $(ARGS)

converge: $(VENV)/.dev-stamp gen/.stamp  ## Let phones go offline and parts die for long (ARGS="--steps 100000 --seed 7")
	@$(BIN)/python -m tests.convergence $(ARGS)

lint: $(VENV)/.dev-stamp gen/.stamp  ## Check style, types and protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy runtime services deploy clients
	@$(BIN)/python -m deploy.codegen --image $(VENV)/protos.binpb
	@$(BIN)/buf lint $(VENV)/protos.binpb --config protos/buf.yaml --path satchel

breaking: $(VENV)/.dev-stamp gen/.stamp  ## Check that the protos still serve the phones in the field (AGAINST=main)
	@rm -rf $(VENV)/against && mkdir -p $(VENV)/against
	@git archive $(AGAINST) protos | tar -x -C $(VENV)/against
	@$(BIN)/python -m deploy.codegen --image $(VENV)/protos.binpb
	@$(BIN)/python -m deploy.codegen --protos $(VENV)/against/protos --image $(VENV)/against.binpb
	@$(BIN)/buf breaking $(VENV)/protos.binpb --against $(VENV)/against.binpb --config protos/buf.yaml --path satchel

format: $(VENV)/.dev-stamp  ## Rewrite the code in its style
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

protos: gen/.stamp  ## Write gen/ from protos/

lock: $(VENV)/.dev-stamp  ## Resolve requirements/*.in into the hash-pinned locks (ARGS=--upgrade for newer ones)
	@for name in run traces dev bench; do \
		echo "Resolving requirements/$$name.in"; \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
			--no-emit-index-url $(ARGS) requirements/$$name.in -o requirements/$$name.txt || exit; \
	done

bench: $(VENV)/.bench-stamp gen/.stamp  ## Measure, each figure beside its floor
	@$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/.run-stamp gen/.stamp  ## Hold streams open for long while others come and go (ARGS="--streams 1000 --minutes 5")
	@$(BIN)/python -m bench.soak $(ARGS)

clean:  ## Remove what the other commands made, except the data in .satchel
	@rm -rf $(VENV) gen .gen-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.%-stamp: requirements/%.txt
	@test -n "$(PYTHON)" || { echo "Satchel needs Python 3.11 to 3.14: install one, or name it (make PYTHON=…)"; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) with $$($(PYTHON) -V)"; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "Installing requirements/$*.txt into $(VENV) (the first time, about a minute)"
	@$(INSTALL) -r $<
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' | while read -r packages; do \
		printf '%s\n' "$(CURDIR)/gen" "$(CURDIR)" > "$$packages/satchel.pth"; done
	@touch $@

gen/.stamp: $(PROTOS) $(GENERATORS) requirements/run.txt | $(VENV)/.$(GENERATOR)-stamp
	@echo "Writing gen/ from protos/"
	@$(BIN)/python -m deploy.codegen
