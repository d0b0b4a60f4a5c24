# BiTAgent. `make help` lists the targets; each does its own set-up.
#
#   make quickstart
#   make reproduce SCALE=laptop DOMAINS=walker SEEDS="0 1" -j 2
#   make -j 64 reproduce LAUNCH="srun --gpus 1"      every heavy step becomes a job of the cluster
#   make plan SCALE=paper                            what of it exists, what is missing, how long that takes
#   make table                                       every baseline and ablation on walker, two seeds
#   make reproduce NPROC=8                           pretraining and behaviour by torchrun on 8 devices

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
TORCH ?= $(shell grep '^torch==' constraints.txt)
PRESENT := $(filter present,$(TORCH))
BIN := $(VENV)/bin
READY := $(VENV)/.installed
BITAGENT := $(BIN)/python -m bitagent_cli

.PHONY: help venv test lint format torture smoke demo quickstart reproduce bench gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## make the virtual environment (TORCH=torch for CUDA, TORCH=present for PYTHON's own, PYTHON=..., VENV=...)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed; this is %d.%d: make PYTHON=/path/to/python3.11" % v or 0)'
	$(if $(PRESENT),@$(PYTHON) -c 'import torch; v = torch.__version__; sys = __import__("sys"); sys.exit(tuple(map(int, v.split(".")[:2])) < (2, 11) and "PyTorch 2.11 or newer is needed; there is " + v + ": make TORCH=torch" or 0)')
	$(PYTHON) -m venv $(if $(PRESENT),--system-site-packages) $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(if $(PRESENT),,$(BIN)/python -m pip install -q "$(TORCH)" -c $(VENV)/constraints.txt)
	$(BIN)/python -m pip install -q -e ".[dev,offline,gym,lora,logs]" -c $(VENV)/constraints.txt
	$(BIN)/python -m pip install -q --no-deps dm_control -c $(VENV)/constraints.txt
	@touch $@

# ------------------------------------------------------------------ checks

test: lint ## lint, type check, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

KILLS ?= 200
MUTATIONS ?= 2000
torture: $(READY) ## kill, damage and forge, counted; a stopped torture goes on (KILLS=, MUTATIONS=)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.torture --kills $(KILLS) --mutations $(MUTATIONS) --folder $(RUNS)/torture

format: $(READY) ## rewrite the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ------------------------------------------------------------------ the pipeline

SMOKE = --scale smoke --preset $(1) --out $(RUNS)/$(1)-smoke
# Toy sizes: more threads only wait for each other.
smoke: export OMP_NUM_THREADS := 1
smoke: $(READY) ## every stage at toy size in a scratch folder, in minutes
	rm -rf $(RUNS)/walker-smoke $(RUNS)/stickman-smoke
	$(BITAGENT) collect $(call SMOKE,walker)
	$(BITAGENT) embed $(call SMOKE,walker)
	$(BITAGENT) pretrain $(call SMOKE,walker)
	$(BITAGENT) behave $(call SMOKE,walker) --task walk
	$(BITAGENT) evaluate $(call SMOKE,walker) --task walk
	$(BITAGENT) collect $(call SMOKE,stickman) --source expert --task run
	$(BITAGENT) embed $(call SMOKE,stickman)
	$(BITAGENT) transfer $(call SMOKE,stickman) --src walker --task run
	$(BITAGENT) visualize $(call SMOKE,walker)
	$(BITAGENT) inspect $(RUNS)/walker-smoke/evaluation/bitagent-s0/walk --verify
	@echo "smoke: every stage ran"

demo: $(READY) ## a trained policy in the browser, in a minute: type a text, see it act
	$(BITAGENT) demo --serve

quickstart: $(READY) ## the whole walker run on 2 CPU cores, from collection to report
	$(BITAGENT) quickstart --preset walker --scale laptop --out $(RUNS)/walker-laptop

include reproduce.mk

MINUTES ?= 5
STATES ?= runs/walker-states
gpu: $(READY) ## a GPU's first minutes: right, fast, and a short real run (MINUTES=, STATES= datasets without frames)
	$(BITAGENT) bench gpu --minutes $(MINUTES) $(if $(wildcard $(STATES)/*/artifact.json),--states $(STATES))

bench: $(READY) ## speed of rendering, data and training on this machine
	$(BITAGENT) bench render
	$(BITAGENT) bench collect
	$(BITAGENT) bench data
	$(BITAGENT) bench train

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
