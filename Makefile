# A newcomer needs two targets: `make demo` and `make test`. Both set up what they need in .venv.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
KAFKA_PORT ?= 9092
READY := $(VENV)/.ready

.PHONY: help setup demo test chaos check format bench evaluate kafka lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## make the virtual environment and install everything

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) --version 2>/dev/null | grep -q 'Python 3\.1[1-9]' || python3 --version | grep -q 'Python 3\.1[1-9]' \
		|| { echo "facetstream needs Python 3.11 or later; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole job on real data, without a broker: import, train, stream, rebalance, query, verify
	$(BIN)/facetstream demo

test: $(READY) ## all tests, with a real Kafka broker where Java and Maven are there
	$(BIN)/pytest

chaos: $(READY) ## two hundred kills of the real daemon, compared with an undisturbed one; rewrites the table of docs/reliability.md
	$(BIN)/python -m tests.chaos --report docs/reliability.md

check: $(READY) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## all benchmarks; results as JSON under benchmarks/results
	$(BIN)/python -m benchmarks

evaluate: $(READY) ## the learner against its peers on real data; rewrites docs/evaluation.md (hours; news need GLOBO=clicks.parquet)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/facetstream import movielens examples/ml-latest-small evaluation-work/movielens --overwrite
	$(BIN)/facetstream evaluate --events evaluation-work/movielens --out docs/evaluation/movielens.json \
		--settings examples/movielens-evaluation.toml --training examples/movielens-training.toml $(EVALUATE)
ifdef GLOBO
	$(BIN)/facetstream import globo $(GLOBO) evaluation-work/globo --overwrite
	$(BIN)/facetstream evaluate --events evaluation-work/globo --out docs/evaluation/globo.json \
		--from 2017-10-10T03:00:00Z --to 2017-10-12T03:00:00Z \
		--settings examples/globo-evaluation.toml --training examples/globo-training.toml $(EVALUATE)
endif
	$(BIN)/python -m streamer.evaluation.document docs/evaluation/*.json

kafka: $(READY) ## a broker with our topics on port 9092 (KAFKA_PORT), until Ctrl-C, for those without one
	$(BIN)/python -m tests.kafka.broker $(KAFKA_PORT)

lock: $(READY) ## write the installed versions to constraints.txt
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove everything that was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-work evaluation-work tests/kafka/target benchmarks/results
