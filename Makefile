# medflow: everything from a bare Python 3.11 and make. `make` lists the targets.
#
# Set-up happens once, into ./.venv, behind stamp files: the locked packages again only when requirements.lock changes,
# medflow itself (editable) only when pyproject.toml does. Nothing outside this folder is touched.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
INSTALLED := $(VENV)/.installed
OVERLAY ?= dev
export REGISTRY TAG

# Two processes, each with a state folder of its own; a file of tests stays in one, so that what it made is made once.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
# Two processes, of which each tests the files that the folder's conftest.py gives it.
IN_TWO := -n 2 --dist loadscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-kubernetes bench table-systems lint images secrets platform

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## install everything into .venv

demo: $(INSTALLED)  ## generated images through every step, to a model that answers
	@$(BIN)/medflow demo

test: $(INSTALLED)  ## all tests but the slow ones
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: $(INSTALLED)  ## the slow tests, and those that need a browser
	@$(BIN)/python -m pytest -m "slow or browser" $(SIDE_BY_SIDE)

test-kubernetes: $(INSTALLED)  ## the tests on a real cluster, all or one file: T=manifests
	@$(BIN)/python -m pytest -m kubernetes $(if $(T),tests/kubernetes/test_$(T).py,$(IN_TWO) tests/kubernetes)

bench: $(INSTALLED)  ## benchmarks against the peers named in them
	@$(BIN)/python -m pytest tests/benchmarks -m "slow or not slow"

table-systems: $(INSTALLED)  ## the five published systems beside medflow, about two hours, resumable
	@$(BIN)/python tests/benchmarks/systems

lint: $(INSTALLED)  ## style, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

images:  ## build all images and push them: REGISTRY=127.0.0.1:5000 TAG=(the commit)
	@infra/docker/images.sh

image-%:  ## likewise one of step, serving, zenml, mlflow, mariadb, postgres
	@infra/docker/images.sh $*

secrets:  ## passwords and keys for the servers, made in the cluster; AWS_* give the object store's
	@infra/scripts/make-secrets

platform:  ## ZenML and MLflow servers, rights and limits, from the overlay dev, gpu or production: OVERLAY=dev
	@infra/scripts/apply $(OVERLAY)

$(PACKAGES): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found"; \
		echo "hint: install Python 3.11, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@touch $@

$(INSTALLED): $(PACKAGES) pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@
