# Every target makes what it needs and can be run again. `make` alone lists them.
PYTHON ?= python3
STACK ?= sandbox
RUN := .venv/bin/python
READY := .venv/.ready
# SET="max-model-len=8192 vllm.max-num-seqs=64" becomes one --set for each pair.
OVERRIDES = $(foreach pair,$(SET),--set '$(pair)')

.DEFAULT_GOAL := help
.PHONY: help benchmark up down preview status plan diff preflight fit size fit-serving presets pin test test-engine engine-contract check format bench picture models clean requirements

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(READY) ## deploy the sandbox stack on this machine: report, control plane, resources
	@$(RUN) -m sandbox up --stack $(STACK) $(OVERRIDES)

down: $(READY) ## remove what `make up` made, processes and state included
	@$(RUN) -m sandbox destroy --stack $(STACK)

preview: $(READY) ## what `make up` would change
	@$(RUN) -m sandbox preview --stack $(STACK) $(OVERRIDES)

status: $(READY) ## the sandbox's workloads and outputs
	@$(RUN) -m sandbox status --stack $(STACK)

plan: $(READY) ## the report: make plan STACK=prod SET="max-model-len=32768"
	@$(RUN) -m planning report --stack $(STACK) $(OVERRIDES)

diff: $(READY) ## what a change means for users: make diff STACK=prod BASE=main SET="max-model-len=32768"
	@$(RUN) -m planning diff --stack $(STACK) --base $(or $(BASE),HEAD) $(OVERRIDES)

preflight: $(READY) ## what would stop a deployment, asked live: make preflight STACK=prod
	@$(RUN) -m preflight --stack $(STACK) $(OVERRIDES)

fit: $(READY) ## will a model fit: make fit ARGS="--preset qwen3-8b --gpu H100-80GB --tensor-parallel-size 1"
	@$(RUN) -m planning fit $(ARGS)

size: $(READY) ## what a load takes: make size ARGS="--users 200 --input-tokens 1024 --output-tokens 512 --max-tpot-ms 40"
	@$(RUN) -m planning size $(ARGS)

fit-serving: $(READY) ## fit the constants of the serving rate on bench/data/serving_measurements.csv
	@$(RUN) -m bench.serving

presets: $(READY) ## the models there are presets for
	@$(RUN) -m planning presets

rehearse: $(READY) ## preview, deploy, verify and roll back on this machine: make rehearse STACK=prod SET="max-model-len=65536"
	@$(RUN) -m gitops rehearse $(if $(filter command line,$(origin STACK)),--stack $(STACK)) $(OVERRIDES)

benchmark: $(READY) ## measure what a stack serves, beside the prediction: make benchmark STACK=dev (WITH=sandbox: on this machine)
	@$(RUN) -m gitops benchmark --stack $(STACK) --with $(or $(WITH),$(if $(filter sandbox,$(STACK)),sandbox,pulumi))

policy: $(READY) ## the policies on what a stack declares, offline: make policy STACK=prod
	@$(RUN) -m gitops policy --stack $(STACK)

bootstrap-backend: $(READY) ## print the commands that make state and secrets storage in Azure, each explained; runs none
	@$(RUN) -m gitops backend $(if $(filter command line,$(origin STACK)),--stack $(STACK))

pin: $(READY) ## fill unknown revisions and digests, online: make pin PRESET=qwen3-8b
	@$(RUN) -m preflight.pin $(PRESET)

test: $(READY) ## all tests; the first run builds the control plane, about ten minutes on two cores
	@$(RUN) -m pytest --numprocesses 2 --dist loadfile -m "not engine and not edge and not rehearsal" $(ARGS)

test-engine: $(READY) ## the rehearsal, a real HAProxy, and vLLM's own code on the CPU: a quarter of an hour, and 6 GB the first time
	@$(RUN) -m pytest -m "engine or edge or rehearsal" -s $(or $(ARGS),tests/sandbox tests/edge tests/engine tests/serving)

engine-contract: $(READY) ## make the folder of a vLLM from its own code: make engine-contract VERSION=0.33.0
	@$(RUN) tests/engine/contract.py $(or $(VERSION),$(error VERSION=0.33.0 names the vLLM whose folder is made))

test-long: $(READY) ## property tests of the planner on 10,000 examples each, before a release
	@$(RUN) -m pytest tests/planning/test_robust.py --hypothesis-profile=long $(ARGS)

check: $(READY) ## lint, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m ty check --error-on-warning

format: $(READY) ## put the code into its form
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(READY) ## the figures of docs/benchmarks.md, as ratios measured in one run
	@$(RUN) -m bench $(ARGS)

picture: $(READY) ## draw docs/report.svg, which the README shows
	@$(RUN) docs/picture.py

models: $(READY) ## write docs/models.md, the catalogue
	@$(RUN) -m planning presets --format markdown > docs/models.md

clean: ## remove the virtual environment and tool caches
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

requirements: ## regenerate requirements*.txt from pyproject.toml (needs `uv` on PATH)
	uv pip compile pyproject.toml $(COMPILE) -o requirements.txt
	uv pip compile pyproject.toml --group dev $(COMPILE) -o requirements-dev.txt
	uv pip compile policy/requirements.in $(COMPILE) -o policy/requirements.txt
	uv pip compile --group engine $(COMPILE) -o requirements-engine.txt

COMPILE := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet

# The policy pack's own environment, for the Pulumi CLI: its SDK wants an older protobuf.
policy/venv/.ready: policy/requirements.txt
	@$(PYTHON) -m venv policy/venv
	@policy/venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# The stamp comes last: an interrupted installation is taken up again.
$(READY): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "aks-vllm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making the virtual environment .venv (about a minute, once)"
	@$(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.txt
	@touch $@
