# Each target does all of its own set-up in .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test test-faults lint format clean

help:
	@echo "make install   set up .venv (about 3 minutes, 7 GB)"
	@echo "make demo      the whole job on 8 photographs, 4 to 6 minutes on 2 CPU cores"
	@echo "make test      the test suite, about 25 minutes on 2 CPU cores"
	@echo "make test-faults   kills, crashes and bad data in their long forms, under 60 minutes"
	@echo "make lint      ruff and pyright (strict)"
	@echo "make format    apply ruff's formatting and fixes"
	@echo "make clean     delete runs/demo and shards/demo"

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null \
		|| (echo "Python 3.11 or newer is needed; name it with make PYTHON=python3.12" && exit 1)
	@echo "setting up .venv: about 3 minutes and 7 GB, most of it torch"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: install
	@$(BIN)/python scripts/demo.py

test: install
	$(BIN)/pytest -n 2 --dist loadfile

test-faults: install
	$(BIN)/pytest -m faults

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf runs/demo shards/demo
