# Two commands: `make up` and `make test`. The others are for whoever works on cacheyard.
BIN := .venv/bin

.PHONY: up test check soak bench generate clean

up: .venv/ready
	$(BIN)/cacheyard up

test: .venv/ready-dev check
	$(BIN)/pytest -n 2 --dist loadfile tests

check: .venv/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m cacheyard.contract.generate --check

# The full counts of the long runs: hours, not minutes.
soak: .venv/ready-dev
	CACHEYARD_SOAK=1 $(BIN)/pytest --timeout 7200 tests/chaos tests/contract/test_schemathesis.py

bench: .venv/ready-dev
	PYTHONPATH=tests $(BIN)/python -m bench

generate: .venv/ready-dev
	$(BIN)/python -m cacheyard.contract.generate
	$(BIN)/cacheyard coverage --markdown > docs/coverage.md

clean:
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt scripts/setup
	scripts/setup
	touch $@

.venv/ready-dev: pyproject.toml constraints.txt scripts/setup
	scripts/setup --dev
	touch .venv/ready $@
