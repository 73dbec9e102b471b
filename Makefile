# Two commands for a fresh machine: `make demo` and `make test`. Everything installs into .venv under constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# One thread a process: at the demo's size more threads cost more than they give, above all on a busy machine.
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-forgetting scoreboard methods memory monitoring test lint docs clean

demo: .venv/.installed
	$(BIN)/python -m demo.run

demo-forgetting: .venv/.installed
	$(BIN)/python -m demo.run --forgetting

scoreboard: .venv/.installed
	$(BIN)/python -m demo.scoreboard

methods: .venv/.installed
	$(BIN)/python -m demo.methods

memory: .venv/.installed
	$(BIN)/python -m demo.memory

monitoring: .venv/.installed
	$(BIN)/python -m demo.monitoring

test: .venv/.installed-test
	$(BIN)/python -m pytest -n 3 --dist worksteal

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed
	$(BIN)/everydream schema --markdown > docs/configuration.md
	$(BIN)/everydream schema --scrape --markdown > docs/scraping_settings.md

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
