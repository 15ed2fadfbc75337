# Two commands: `make up` and `make test`. The others are for whoever works on cacheyard.
BIN := .venv/bin
PROXY := $(wildcard proxy/*.toml proxy/Cargo.lock proxy/src/*.rs proxy/src/*/*.rs)

.PHONY: up test check proxy-check soak bench losses generate clean
.NOTPARALLEL:

up: .venv/ready .venv/proxy
	$(BIN)/cacheyard up

test: .venv/ready-dev .venv/proxy check proxy-check
	$(BIN)/pytest -n 2 --dist loadfile tests

check: .venv/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m cacheyard.contract.generate --check

proxy-check:
	scripts/proxy --check

# The full counts of the long runs: hours, not minutes.
soak: .venv/ready-dev .venv/proxy
	CACHEYARD_SOAK=1 $(BIN)/pytest --timeout 7200 tests/chaos tests/contract/test_schemathesis.py
	scripts/proxy --soak

bench: .venv/ready-dev .venv/proxy
	PYTHONPATH=tests $(BIN)/python -m bench

# How many acknowledged writes a failover costs, by fault and load: an hour.
losses: .venv/ready-dev .venv/proxy
	PYTHONPATH=tests $(BIN)/python -m bench.failover

generate: .venv/ready-dev
	$(BIN)/python -m cacheyard.contract.generate
	$(BIN)/cacheyard coverage --markdown > docs/coverage.md

clean:
	rm -rf .venv proxy/target

.venv/ready: pyproject.toml constraints.txt scripts/setup
	scripts/setup
	touch $@

# Not there as long as the proxy cannot be built: then it is tried, and said, each time.
.venv/proxy: $(PROXY) scripts/proxy
	scripts/proxy

.venv/ready-dev: pyproject.toml constraints.txt scripts/setup
	scripts/setup --dev
	touch .venv/ready $@
