# Each target does all of its own set-up in .venv; bench in .venv-bench, beside what it measures.

PYTHON ?= python3
BIN := .venv/bin
BENCH_ROUNDS ?= 3

.PHONY: help install demo demo-vilt quick test test-faults test-lowest test-newest docs bench \
	bench-compiled lint format clean

help:
	@echo "make install   set up .venv (about 3 minutes, 7 GB)"
	@echo "make demo      the whole job on 8 photographs, 3 minutes on 2 CPU cores"
	@echo "make demo-vilt   images with captions, on drawn scenes, 2:20 minutes on 2 CPU cores"
	@echo "make quick     unit tests that start no process, 90 seconds on 2 CPU cores"
	@echo "make test      the test suite, about 15 minutes on 2 CPU cores"
	@echo "make test-faults   kills, crashes and bad data in their long forms, under 60 minutes"
	@echo "make test-lowest   the test suite on Python 3.11 with the lowest versions we allow"
	@echo "make test-newest   the test suite on Python 3.13 with the newest versions there are"
	@echo "make docs      the documentation, into site/; no network, and a warning fails"
	@echo "make bench     speed against alternatives, and what fell; an idle machine, 40 minutes"
	@echo "make bench-compiled   training steps again, compiled by torch.compile; 40 minutes"
	@echo "make lint      ruff and pyright (strict)"
	@echo "make format    apply ruff's formatting and fixes"
	@echo "make clean     delete what the demos made, in runs/ and shards/"

install: .venv/installed

.venv/installed: EXTRAS := dev
.venv-bench/installed: EXTRAS := bench,demo,report
.venv/installed .venv-bench/installed: pyproject.toml data/images/jpeg.c
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null \
		|| (echo "Python 3.11 or newer is needed; name it with make PYTHON=python3.12" && exit 1)
	@echo "setting up $(@D): about 3 minutes and 7 GB, most of it torch"
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: install
	@$(BIN)/python scripts/demo.py

demo-vilt: install
	@$(BIN)/python scripts/demo.py --vilt

SUITE := pytest -n 3 --dist loadfile --no-loadscope-reorder

quick: install
	$(BIN)/pytest -n 2 --quick -m 'not faults and not slow'

test: install
	$(BIN)/$(SUITE)

test-faults: install
	$(BIN)/pytest -m faults

# the lowest versions that pyproject.toml allows, and the newest there are, each in its own environment
.venv-lowest/installed: VERSIONS := --resolution lowest-direct
.venv-lowest/installed: PYTHON_VERSION := 3.11
.venv-newest/installed: PYTHON_VERSION := 3.13
.venv-lowest/installed .venv-newest/installed: pyproject.toml data/images/jpeg.c | install
	@echo "setting up $(@D): about 3 minutes and 6 GB, most of it torch"
	$(BIN)/uv venv --quiet --clear --python $(PYTHON_VERSION) $(@D)
	$(BIN)/uv pip install --quiet --python $(@D) $(VERSIONS) --editable '.[dev]'
	@touch $@

test-lowest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/$(SUITE)

docs: install
	$(BIN)/ruff check --quiet --select D100,D101,D102,D103,D104
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html; with search: $(BIN)/python -m http.server --directory site"

# measures what $(1) says into runs/bench/$(2).json and .png; recorded: docs/benchmarks/$(2).json
define measure
	.venv-bench/bin/python scripts/benchmark.py $(1) --rounds $(BENCH_ROUNDS) \
		--json runs/bench/$(2).json --png runs/bench/$(2).png
endef

# measures the training steps of all, compiled or not
define measure-steps
	$(call measure,step --seconds 8 $(1),step-s16-fp32$(2))
	$(call measure,step --seconds 8 --precision bf16 $(1),step-s16-bf16$(2))
	$(call measure,step --seconds 5 $(SMALL) $(1),step-small-fp32$(2))
	$(call measure,step --seconds 5 --precision bf16 $(SMALL) $(1),step-small-bf16$(2))
endef
SMALL := --batch-size 128 --encoder configs/pretrain/cifar10-mask-tokens.yaml
COMPARE := .venv-bench/bin/python scripts/benchmark.py compare docs/benchmarks runs/bench

bench: .venv-bench/installed
	@mkdir -p runs/bench
	$(call measure-steps)
	$(call measure,loader,loader)
	$(call measure,run,run)
	$(call measure,run --seconds 20 --processes 2,processes)
	$(COMPARE)

bench-compiled: .venv-bench/installed
	@mkdir -p runs/bench
	$(call measure-steps,--compile,-compiled)
	$(COMPARE)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf runs/demo shards/demo runs/demo-vilt shards/scenes
