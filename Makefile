# Sluice: install, demo, test. Targets work as root with or without sudo; a second run of `install` does nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
export PYTHON
BIN := .venv/bin

CLANG ?= clang
OBJECT := vfp/datapath/vfp.bpf.o
# asm/types.h is in the folder of the machine's own architecture, which clang does not search for the target bpf.
ASM_HEADERS := $(firstword $(wildcard /usr/include/$(shell uname -m)-linux-gnu /usr/include/*-linux-gnu))
BPF_FLAGS := -O2 -g -target bpf -Wall -Werror $(addprefix -I,$(ASM_HEADERS))

.PHONY: help install packages venv bpf demo test fuzz faults churn container-churn check lint types unit bench bench-peers clean root

help:
	@echo 'sudo make demo     install what is missing, run the tour (labs/tour.yaml) on real traffic'
	@echo 'sudo make test     install what is missing, run every test'
	@echo 'sudo make fuzz     look for cases on which the two engines differ (MINUTES=5)'
	@echo 'sudo make faults   the agent killed 200 times during 10,000 changes under traffic'
	@echo 'sudo make churn    30 hosts whose endpoints move, go and come back while all fails (MINUTES=5)'
	@echo 'sudo make container-churn   200 containers come and go, 8 at a time, while the agent is killed'
	@echo 'sudo make bench    Sluice beside its peers, into docs/bench (ARGS="--quick", ARGS="--only same-host")'
	@echo 'make install       Debian packages, .venv, BPF object; does nothing when they are there'
	@echo 'make check         ruff and mypy'
	@echo 'make unit          the tests that need no root'
	@echo 'make clean         remove what make made (.venv too)'

install: packages venv bpf

packages:
	@install/install-debian

venv: packages
	@install/make-venv

bpf: $(OBJECT)
	@:

# Written beside and renamed: an agent that starts at this moment finds a whole object.
$(OBJECT): $(wildcard vfp/bpf/*.c vfp/bpf/*.h) | packages
	@echo 'building $@'
	@$(CLANG) $(BPF_FLAGS) -c vfp/bpf/vfp.bpf.c -o $@.new
	@mv $@.new $@

demo: root install
	@$(BIN)/sluice lab run labs/tour.yaml

test: root install check
	@$(BIN)/python -m tests.parts

faults: root install
	@SLUICE_FAULTS=full $(BIN)/python -m pytest -s tests/system/test_system_faults.py

MINUTES ?= 5
fuzz: root install
	@$(BIN)/python tests/kernel/engine_fuzz.py --minutes $(MINUTES)

churn: root install
	@$(BIN)/python tests/system/churn.py --minutes $(MINUTES) $(ARGS)

container-churn: root install
	@SLUICE_CONTAINERS=200 $(BIN)/python -m pytest -s tests/system/test_docker_churn.py

bench: root install bench-peers
	@$(BIN)/python -m bench $(ARGS)

# Peers to measure beside, and what draws: nobody else needs them.
bench-peers: venv
	@install/install-debian debian.bench-packages || echo 'bench: goes on without those peers' >&2
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/python -m pip install --quiet \
	    --disable-pip-version-check --no-input --root-user-action ignore --constraint constraints.txt matplotlib

check: lint types

lint: venv
	@$(BIN)/ruff check .

types: venv
	@$(BIN)/mypy

unit: venv bpf
	@$(BIN)/python -m pytest tests/unit

root:
	@if [ "$$(id -u)" -ne 0 ]; then \
	    echo 'error: this makes network namespaces and loads BPF programs, which needs root' >&2; \
    echo '  do:    run it with sudo: sudo make $(or $(filter demo test fuzz faults churn container-churn bench,$(MAKECMDGOALS)),demo)' >&2; \
	    exit 1; fi

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(OBJECT) $(OBJECT).new
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
