# Every target does its own set-up: the first call makes .venv and installs into it,
# later calls find .venv/.stamp newer than pyproject.toml and go straight to work.
# Another interpreter: make test PYTHON=python3.12

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
OUTPUT ?= outputs
# Workers of pytest.
JOBS ?= auto
# More options for pytest or a benchmark: make bench-cost ARGS="--rounds 3"
ARGS ?=
# Where benchmarks find sst2/, ag_news/ and the other sets.
DATA ?= data
# A small causal language model, for the benchmarks of answers and of generation.
MODEL ?= model

# Idle threads sleep instead of spinning: on a small or busy machine training is several times
# faster so. Nothing here needs a model hub.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick lint format docs clean distclean
.PHONY: bench-fidelity bench-cost bench-calibration bench-streams bench-merging
.PHONY: bench-scaling bench-processes bench-full-size
.PHONY: bench-answers bench-words bench-several bench-quantised bench-generation bench-low-rank bench-memory results

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install everything (the other targets call this)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: '$(PYTHON)' was not found; install Python 3.10 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(0 if sys.version_info >= (3, 10) else "error: $(PYTHON) is Python %s, this project needs 3.10 or newer; name another one: make PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (about 6 GB: a few quiet minutes the first time, seconds later)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

demo: $(STAMP) ## train, bayesianize and compare on real weights and data; at most 5 minutes
	$(BIN)/bhpeft demo --output $(OUTPUT)/demo

lint: $(STAMP) ## ruff (rules and format) and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict posthoc_bhpeft

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread for each worker: the workers already fill the cores.
test: lint ## lint, then every test, with a coverage report
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --maxprocesses 8 --cov --cov-report=term $(ARGS)

test-quick: $(STAMP) ## only the tests not marked slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --maxprocesses 8 -m "not slow" $(ARGS)

docs: $(STAMP) ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

bench-fidelity: $(STAMP) ## curvature against the exact one, ours beside others' (about 10 minutes)
	$(BIN)/python benchmarks/fidelity.py --output benchmarks/results/fidelity.md $(ARGS)

bench-cost: $(STAMP) ## time and memory in units of training and of a plain forward; on a quiet machine
	$(BIN)/python benchmarks/cost.py --output benchmarks/results/cost.md $(ARGS)

bench-scaling: $(STAMP) ## how cost grows with classes, lengths, ranks, widths and rows, beside laplace-torch (half an hour); on a quiet machine
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py --output benchmarks/results/scaling.md $(ARGS)

bench-processes: $(STAMP) ## a fit by two processes against one; on a machine with two idle cores
	$(BIN)/python benchmarks/processes.py --output benchmarks/results/processes.md $(ARGS)

bench-full-size: $(STAMP) ## two whole sets through the command line: time and memory of every step, DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where clinc150/ and ag_news/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/full_size.py --data "$(DATA)" --output $(OUTPUT)/full_size $(ARGS)

bench-calibration: $(STAMP) ## every way of predicting on nine real sets (hours; finished scores are kept), DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where sst2/, ag_news/ and the other sets are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/calibration.py --data "$(DATA)" $(ARGS)

bench-streams: $(STAMP) ## ours and every baseline on four streams of rounds (hours; finished cells are kept), DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where sst2/, airline_tweets/, amazon_full/, yelp_full/, ag_news/, dbpedia14/ and fomc_stream/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/streams.py --data "$(DATA)" --figures $(ARGS)

bench-merging: $(STAMP) ## halves of a set learnt apart and merged, against averaging and joint training, DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where sst2/ and ag_news/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/merging.py --data "$(DATA)" $(ARGS)

bench-answers: $(STAMP) ## answer tokens of a small language model on five sets (half an hour; finished scores are kept), DATA=FOLDER MODEL=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where arc_easy/, arc_challenge/, openbookqa/, boolq/ and winogrande_s/ are: make $@ DATA=FOLDER MODEL=FOLDER"; exit 1; }
	@test -f "$(MODEL)/config.json" || { echo "error: '$(MODEL)' holds no model; name the folder of a small causal language model: make $@ DATA=FOLDER MODEL=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/answers.py --data "$(DATA)" --model "$(MODEL)" $(ARGS)

bench-words: $(STAMP) ## a label at every word, too brief, long enough and over-trained (an hour; finished scores are kept), DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where ag_news/ and airline_tweets/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/words.py --data "$(DATA)" $(ARGS)

bench-several: $(STAMP) ## several labels a row (an hour; finished scores are kept), DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where ag_news/, airline_tweets/ and clinc150/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/several.py --data "$(DATA)" --seeds 0 1 2 $(ARGS)

bench-quantised: $(STAMP) ## bases in 8 and 4 bits (an hour; finished scores are kept), DATA=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where ag_news/ and airline_tweets/ are: make $@ DATA=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quantised.py --data "$(DATA)" $(ARGS)

bench-generation: $(STAMP) ## uncertainty at every token and of generated texts (half an hour; finished seeds are kept), DATA=FOLDER MODEL=FOLDER
	@test -d "$(DATA)" || { echo "error: '$(DATA)' is no folder; say where ag_news/, sst2/, airline_tweets/ and dbpedia14/ are: make $@ DATA=FOLDER MODEL=FOLDER"; exit 1; }
	@test -f "$(MODEL)/config.json" || { echo "error: '$(MODEL)' holds no model; name the folder of a small causal language model: make $@ DATA=FOLDER MODEL=FOLDER"; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/generation.py --data "$(DATA)" --model "$(MODEL)" $(ARGS)

bench-low-rank: $(STAMP) ## what factors in low rank lose, on a hybrid trained for it, DATA=FOLDER
	@test -d "$(DATA)/airline_tweets" || { echo "error: '$(DATA)/airline_tweets' is no folder; say where airline_tweets/ is: make $@ DATA=FOLDER"; exit 1; }
	test -d "$(OUTPUT)/low_rank" || OMP_NUM_THREADS=1 $(BIN)/bhpeft train --data "$(DATA)/airline_tweets" --max-rows 640 --epochs 7 --batch-size 8 --max-length 48 --seed 1 --no-early-stopping --output "$(OUTPUT)/low_rank"
	test -f "$(OUTPUT)/low_rank/posterior.json" || OMP_NUM_THREADS=1 $(BIN)/bhpeft fit "$(OUTPUT)/low_rank"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/low_rank.py "$(OUTPUT)/low_rank" --data "$(DATA)/airline_tweets" --output benchmarks/results/low_rank.md $(ARGS)

bench-memory: $(STAMP) ## the estimate of memory beside the peaks of the process, on Linux
	$(BIN)/python benchmarks/memory.py --output benchmarks/results/memory.md $(ARGS)

results: bench-fidelity bench-cost bench-scaling bench-processes bench-full-size bench-calibration bench-streams bench-merging bench-answers bench-words bench-several bench-quantised bench-generation bench-low-rank bench-memory ## every figure of the README and the docs, DATA=FOLDER MODEL=FOLDER

clean: ## remove caches, reports and the built site
	rm -rf .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov site build dist
	find posthoc_bhpeft tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV)
