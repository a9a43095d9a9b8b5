# `make help` lists what there is. Everything runs from a fresh clone.
PY := .venv/bin/python
SITE := $(wildcard tests/e2e/test_site_*.py) tests/e2e/test_isolation_example.py \
	tests/e2e/test_bench_takeover.py
ARM_UPGRADE := tests/integration/test_package_upgrade_arm64.py
ARM := $(addprefix tests/integration/test_, package_boots.py images_arm64.py) $(ARM_UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help quickstart down test proof proof-site proof-chart proof-arm release lint unit protos format bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: ## Orchestrator, agent and a first workload on this machine (as root)
	@tools/bootstrap.sh --system
	@$(PY) -m quickstart up

down: ## Stop what quickstart started, and remove it
	@tools/bootstrap.sh
	@$(PY) -m quickstart down

test: ## Everything: linters, types, layers, stubs, all tests
	@tools/bootstrap.sh --system --tests
	@$(MAKE) --no-print-directory lint
	@$(PY) tools/side_by_side.py

proof: ## Long proofs: lost regions, members and stores; seeded faults; simulations
	@tools/bootstrap.sh --system --tests
	@$(PY) -m pytest -m long $(SITE:%=--ignore=%) --ignore=tests/charts --ignore=$(ARM_UPGRADE)
	@$(PY) -m tests.faults --runs 50 --seed 1
	@$(PY) -m tests.sim rollouts --seeds 100
	@$(PY) -m tests.sim site --seeds 1000

proof-site: ## Longer proofs of a site alone: every fault on real containers; ten thousand seeds
	@tools/bootstrap.sh --system --tests
	@$(PY) -m pytest -m long $(SITE)
	@$(PY) -m tests.sim site --seeds 10000

proof-chart: ## The Helm chart on a real API server (needs Go), and images for amd64 and arm64
	@tools/bootstrap.sh --system --tests
	@tools/kube_tools.sh kube-apiserver
	@$(PY) -m pytest -m long tests/charts

proof-arm: ## The agent on an emulated Debian arm64: its tests, joining, memory (an hour)
	@tools/bootstrap.sh --system --tests
	@$(PY) -m tests.arm
	@$(PY) -m pytest -m long -k arm64 $(ARM)
	@$(PY) -m bench footprint --arch arm64 --json

release: ## Wheel, packages, images, chart, bills of materials and checksums of the last commit, into dist/
	@tools/bootstrap.sh --system --tests
	@$(PY) -m releasing build

lint: ## Linters, types, layers, freshness of generated stubs
	@tools/bootstrap.sh --tests
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo
	@$(PY) tools/gen_protos.py --check

unit: ## Only the tests that take milliseconds
	@tools/bootstrap.sh --tests
	@$(PY) -m pytest tests/unit

protos: ## Regenerate the stubs from proto/
	@tools/bootstrap.sh --tests
	@$(PY) tools/gen_protos.py

format: ## Format the code and fix what linters can fix
	@tools/bootstrap.sh --tests
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: ## The benchmarks of docs/benchmarks.md, one JSON object each
	@for name in cli store deploy footprint schedule; do \
	    $(PY) -m bench $$name --json || exit 1; done

clean: ## Remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build dist
