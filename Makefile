PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: simulate test slow check benchmark docs clean

simulate: $(READY)
	$(BIN)/python -m fedkd.simulate $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

slow: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last: an interrupted installation starts again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@
