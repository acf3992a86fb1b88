# make demo: train, index, retrieve and evaluate on scikit-learn's digits, then search parts of photographs with the
# released model;
# make test: lint, types, and the tests that a change needs, with their coverage: 8 minutes on 2 cores;
# make test-ci: the slow tests too, as CI runs them: 20 minutes; make test-all: those for the night as well.
# make demo-cluster: a Milvus server and a Ray cluster on this machine: add, search, kill, recover.
# make docs: the documentation as a site in build/site.
# All make .venv and install first, once. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTOGRAPHS := "$${DR_KERAS_CACHE:-$$HOME/.cache/dr_keras}/photographs"
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report term \
    --cov-fail-under 90 -rs

.PHONY: demo demo-cluster test test-ci test-all lint types docs clean

demo: $(VENV)/demo.stamp
	$(BIN)/python train.py --data digits --image-size 32 --backbone resnet10 --width 16 \
	    --epochs 20 --eval-every 5 --run demo --overwrite
	$(BIN)/python retrieve.py --run demo --query digit_0110.png --top 15 --save demo.png
	$(BIN)/python evaluate.py --run demo
	$(BIN)/python benchmarks/photo_search.py --run tiny-imagenet-64 --folder $(PHOTOGRAPHS)
	$(BIN)/python retrieve.py --run tiny-imagenet-64 --gallery $(PHOTOGRAPHS) --query coffee_0.jpg --top 7 \
	    --save photographs.png

demo-cluster: $(VENV)/demo.stamp $(VENV)/cluster.stamp
	$(BIN)/python examples/cluster.py

test: lint types
	$(PYTEST) -m "not slow and not nightly"

test-ci: lint types
	$(PYTEST) -m "not nightly"

test-all: lint types
	$(PYTEST)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile deploy/Dockerfile; fi
	if command -v npx >/dev/null; then npx --yes @biomejs/biome@2.6.8 check; fi # the version of package.json

types: $(VENV)/dev.stamp
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache demo.png photographs.png
