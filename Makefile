# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Packages of another Python would shadow those of .venv.
unexport PYTHONPATH PYTHONHOME

BIN := .venv/bin
# Images for `make demo`; by default the demo draws its own.
IMAGES ?=
# More options of `make campaign-NAME` and `make image-NAME`.
ARGS ?=
# For `make sbom`.
EXTRAS ?= server
# For `make image-NAME`.
ENGINE ?= docker

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {sub("%", "NAME", $$1); printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: venv-demo ## Serve with the real Triton and read text; IMAGES="a.jpg b.png" for your own images
	@$(BIN)/ocdserve demo --output out/demo $(IMAGES)

.PHONY: builder
builder: venv-builder ## Install what `ocdserve build` needs, TensorRT-RTX included

.PHONY: extra
extra: ## Install an extra of pyproject.toml: NAME=tables
	@scripts/make_venv.sh "$(NAME)"

.PHONY: test
test: check ## Check, then run all tests except the long ones
	@scripts/run_tests.sh "not long"

.PHONY: test-long
test-long: check ## Check, then run all tests, with fresh random examples for property tests
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .venv/pins.txt \
		'moto[s3,server]>=5,<6' s3fs || echo "ocdserve: without moto, the tests of object stores are skipped" >&2
	@scripts/run_tests.sh "" --hypothesis-profile=explore

# A pattern cannot be .PHONY; there are no files of such names.
campaign-%: venv-dev ## Run a campaign against a real server: ARGS="--short", "--help"; the names: python -m tests.campaigns
	@$(BIN)/python -m tests.campaigns $* $(ARGS)

.PHONY: docs
docs: venv-docs ## Build the documentation's site into out/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "ocdserve: the documentation is out/docs/index.html"

.PHONY: lock
lock: venv-server ## Refresh requirements.lock and THIRD_PARTY.md after a change of pyproject.toml; UPGRADE=1: newest versions
	@scripts/lock.sh $(if $(UPGRADE),--upgrade)

.PHONY: sbom
sbom: venv-server ## List the packages of the extras EXTRAS, with licences, in out/sbom.json (CycloneDX)
	@scripts/sbom.sh "$(EXTRAS)"

# A pattern cannot be .PHONY; there are no files of such names.
image-%: ## Build an image: cpu, gpu, builder or triton; ENGINE=podman or buildah
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); BUILDAH_FORMAT=docker $(ENGINE) build \
		--target $* --file docker/Dockerfile --tag "ocdserve:$$version-$*" $(ARGS) \
		--label "org.opencontainers.image.version=$$version" \
		--label "org.opencontainers.image.revision=$$(git rev-parse HEAD 2>/dev/null || echo unknown)" .

.PHONY: pin-images
pin-images: venv-dev ## Add the digests that registries name to the images in docker/
	@$(BIN)/python scripts/pin_images.py

.PHONY: wheel
wheel: venv-dev ## Build a release's archive and wheel, with the kernels compiled for every GPU, in dist/
	@OCDSERVE_CUBINS=1 $(BIN)/python -m hatchling build --directory dist

.PHONY: coverage
coverage: venv-dev ## Print the line coverage of `make test`; of the tests' processes, not of the servers that they start
	@rm -rf out/coverage
	@scripts/run_tests.sh "not long" --cov --cov-report=
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

.PHONY: check
check: venv-dev ## Check formatting, lint, types and import layers
	@$(BIN)/ruff format --check --quiet . || { echo "ocdserve: files above need formatting: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >/dev/null || { $(BIN)/lint-imports --no-cache >&2; exit 1; }

.PHONY: format
format: venv-dev ## Format the code and apply the linter's fixes
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove everything that make, the tests and the tools created
	@rm -rf .venv .venv.lock .tools out build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@rm -f python_backend/ocdserve/backend/{kernels/cpu,native}/postprocess.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Always run; returns at once when .venv matches pyproject.toml.
.PHONY: venv-server venv-demo venv-builder venv-docs venv-dev
venv-server:
	@scripts/make_venv.sh server
venv-demo:
	@scripts/make_venv.sh server,pdf
venv-builder:
	@scripts/make_venv.sh server,builder,tensorrt-rtx
venv-docs:
	@scripts/make_venv.sh server,docs
venv-dev:
	@scripts/make_venv.sh server,builder,tensorrt-rtx,dev
