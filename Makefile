# Everything a developer or CI runs. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/pong_small.yaml
ARGS ?=
GATES ?= cartpole pendulum_apex_dpg pendulum_d4pg pendulum_d4pg_narrow minatar_breakout

BIN := $(VENV)/bin
SOURCES := apexrl services benchmarks tests tools
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help train test learning bench soak cluster-test lint format protos locks clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/train.stamp ## Train CONFIG (default configs/pong_small.yaml) on this machine; ARGS="--local.actors 2"
	$(BIN)/apex train $(CONFIG) $(ARGS)

test: lint ## Lint, check types, run the fast tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

learning: $(VENV)/dev.stamp ## Run the learning gates over real services, write benchmarks/results (an hour; GATES="pong" for others)
	$(BIN)/python -m pytest -m slow
	set -e; for gate in $(GATES); do $(BIN)/python benchmarks/learning.py $$gate $(ARGS); done

bench: $(VENV)/dev.stamp ## Measure learner and actor with CONFIG against plain loops, write benchmarks/results (minutes, idle machine)
	$(BIN)/python benchmarks/learner_update.py $(CONFIG) --write $(ARGS)
	$(BIN)/python benchmarks/learner_loop.py $(CONFIG) --write $(ARGS)
	$(BIN)/python benchmarks/actor_loop.py $(CONFIG) --write $(ARGS)

soak: $(VENV)/dev.stamp ## Run everything for half an hour and fit each process's memory, write benchmarks/results/soak.json
	$(BIN)/python benchmarks/soak.py configs/pong_small.yaml --write $(ARGS)

cluster-test: $(VENV)/dev.stamp ## Prove the chart on the cluster of KUBECONFIG; ARGS="--help" says what it takes (half an hour)
	$(BIN)/python tests/cluster/run.py --write $(ARGS)

lint: $(VENV)/dev.stamp ## Check style, types, import rules and generated code
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/chart.py --check
	$(BIN)/python tools/dashboards.py --check

format: $(VENV)/dev.stamp ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

protos: $(VENV)/dev.stamp ## Generate the Python code of protos/
	$(BIN)/python tools/generate_protos.py

locks: $(VENV)/dev.stamp ## Resolve requirements/*.lock anew, with the versions of the present locks where they fit
	$(BIN)/python tools/resolve_locks.py

clean: ## Remove the environment, caches and build output (never runs/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find apexrl services benchmarks tests tools -name __pycache__ -prune -exec rm -rf {} +

# Both environments live in one directory: what training needs is a part of what development needs, at equal versions.
# A stamp is older than its lock only if the lock changed, so nothing is installed twice.
$(VENV)/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "apex needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "$(PYTHON) cannot create environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/train.stamp: requirements/train.lock pyproject.toml $(VENV)/created.stamp
	@echo "Installing the packages of requirements/train.lock (minutes the first time) ..."
	$(PIP_INSTALL) --requirement requirements/train.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock pyproject.toml $(VENV)/created.stamp
	@echo "Installing the packages of requirements/dev.lock (minutes the first time) ..."
	$(PIP_INSTALL) --requirement requirements/dev.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/train.stamp
