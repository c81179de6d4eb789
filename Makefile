# Everything a newcomer or a build machine needs; `make help` lists it. Every step is skipped when it is done.

PYTHON ?= python3
VENV ?= .venv
# dense or moe: which tiny model `make tune` serves
MODEL ?= dense
# what `make bench-search` replays on, and the models' config.json
TABLES ?= ../shared/replay
MODELS ?= $(wildcard ../shared/models)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
LM_EVAL := $(CURDIR)/build/lm-eval/bin/lm_eval
TINY_MODELS := .models/tiny-dense/config.json .models/tiny-moe/config.json
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --editable

MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tune: engine .models/tiny-$(MODEL)/config.json ## install all that is needed and tune a tiny model (MODEL=moe for experts)
	@$(BIN)/autotune tune search_spaces/quickstart.yaml $(if $(filter-out dense,$(MODEL)),--model .models/tiny-$(MODEL) --name quickstart-$(MODEL))

test: lint engine $(TINY_MODELS) ## linters, types, layers and every test but the end-to-end ones
	@command -v chromium >/dev/null || echo "browser tests are skipped; to run them: sudo apt-get install -y chromium"
	@$(BIN)/pytest -n 2 -m "not alone and not e2e"
	@$(BIN)/pytest -m "alone and not e2e" --durations 20

test-unit: $(INSTALLED_DEV) ## the tests that need no engine
	@$(BIN)/pytest -m "not engine and not e2e"

test-e2e: $(INSTALLED_DEV) engine $(TINY_MODELS) ## whole studies on a real engine, minutes
	@$(BIN)/pytest -m "e2e and not long"

test-long: $(INSTALLED_DEV) engine $(TINY_MODELS) $(LM_EVAL) ## more engines, pools, the quality gate, hangs: half an hour
	@$(BIN)/autotune engines install transformers
	@AUTOTUNE_LM_EVAL=$(LM_EVAL) $(BIN)/pytest -m long

# In an environment of its own; the newest whose command line and results the tests have seen.
$(LM_EVAL):
	@echo "installing lm-evaluation-harness into build/lm-eval"
	@$(PYTHON) -m venv build/lm-eval
	@build/lm-eval/bin/pip install --quiet 'lm_eval[api]==0.4.13' transformers

parallelism: engine $(TINY_MODELS) .models/tiny-dense-int8/config.json ## every parallelism, precision and speculation of vLLM on CPU, measured
	@$(BIN)/autotune tune search_spaces/parallelism-dense.yaml
	@$(BIN)/autotune tune search_spaces/parallelism-moe.yaml

lint: $(INSTALLED_DEV) ## style, formatting, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(INSTALLED_DEV) ## the documentation, into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html; to search in it: python3 -m http.server -d build/site"

bench-overhead: engine .models/tiny-dense/config.json ## what the bench itself costs
	@$(BIN)/python bench/overhead.py

bench-load: engine .models/tiny-dense/config.json ## our load client beside vllm bench serve, aiperf and guidellm
	@$(BIN)/python bench/load.py

bench-pairs: engine .models/tiny-dense/config.json ## our load client and vllm bench serve in turns on one real vLLM
	@$(BIN)/python bench/against_vllm_bench.py

bench-repeats: engine .models/tiny-dense/config.json ## whether printed intervals cover a second launch: 21 launches
	@$(BIN)/python bench/repeats.py

bench-coverage: $(INSTALLED) ## how often intervals hold, by simulation
	@$(BIN)/python bench/coverage.py

bench-web: $(INSTALLED_DEV) ## how fast the pages are with 10,000 trials in the store
	@$(BIN)/python bench/web.py

bench-roofline: $(INSTALLED) ## the roofline against recorded tables: TABLES=folder MODELS=folder [FIT=rounds]
	@PYTHONPATH=. $(BIN)/python bench/roofline.py "$(TABLES)" "$(MODELS)" $(if $(FIT),--fit $(FIT))

bench-boundary: $(INSTALLED) ## levels, seconds and capacity error of the load-boundary search, by simulation
	@$(BIN)/python bench/boundary.py

bench-search: $(INSTALLED_DEV) ## searches replayed on recorded tables: TABLES, MODELS, PRIORS=folder, LEAVE_OUT=hardware
	@$(BIN)/autotune engines install vllm || echo "Optuna's GP borrows an engine's torch, and is left out without it"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python bench/search.py $(TABLES) $(if $(MODELS),--models $(MODELS)) $(if $(PRIORS),--priors $(PRIORS)) $(if $(LEAVE_OUT),--leave-out $(LEAVE_OUT))

bench-search-real: $(INSTALLED) .models/tiny-dense/config.json ## ours, TPE and random search on a table of 40 real launches of vLLM on CPU
	@$(BIN)/python bench/search_real.py

bench-search-live: engine .models/tiny-dense/config.json ## the same three searching live, on the same time each: 90 minutes
	@$(BIN)/python bench/search_live.py

bench-search-cost: $(INSTALLED) ## how long a suggestion takes at 500 trials and 20 dimensions
	@$(BIN)/python bench/search_cost.py

bench-search-failures: $(INSTALLED) ## launches wasted on what fails, replayed from recorded failures
	@$(BIN)/python bench/search_failures.py $(TABLES)

clean: ## remove what was made here; studies and installed engines stay
	rm -rf $(VENV) .models build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find autotune launchers tests bench -name __pycache__ -prune -exec rm -rf {} +

prerequisites:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; run:" \
		"sudo apt-get install -y python3 python3-venv python3-dev libnuma1 g++" >&2; exit 1; }
	@$(PYTHON) autotune/adapters/debian_packages.py

engine: $(INSTALLED)
	@$(BIN)/autotune engines install vllm

.models/tiny-%/config.json: | $(INSTALLED)
	@$(BIN)/autotune models make tiny-$* .models/tiny-$*

$(BIN)/python: | prerequisites
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@$(PIP_INSTALL) '.[web]'
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@$(PIP_INSTALL) '.[dev]'
	@touch $@
