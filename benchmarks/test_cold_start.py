"""Cold start: one prediction as a whole process, beside the barest script and beside Keras; its memory too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from paired import alternate, peak_memory, program, ratio_of_medians, script

from mri_edge import Bundle

SCAN = Path(__file__).parents[1] / "examples" / "mni152-slice-1.jpg"
ROUNDS = 15


@pytest.fixture(scope="session")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference network with random weights: the time does not depend on their values."""
    pytest.importorskip("tensorflow", reason="needs mri-edge[train]")
    from mri_edge.train.models.network import build_network
    from mri_edge.train.models.vgg16 import build_backbone
    from mri_edge.train.recipes.reference import REFERENCE

    path = tmp_path_factory.mktemp("keras") / "model.keras"
    backbone = build_backbone(None, 128, 128)
    build_network(backbone, REFERENCE.head, 0.001, classes=2, seed=0).whole.save(path)
    return path


# Measured on two cores: 1.27 for vgg16 (1.17 at best), 1.5 for small, whose session opens in no time. What is more is
# imports, click and the manifest's own; the model's hash and a part of the imports run beside the session's opening.
# The bare script checks nothing. 1.15 is wanted.
@pytest.mark.parametrize(("model", "most"), [("vgg16", 1.45), ("small", 1.8)])
def test_predict_costs_little_more_than_the_barest_script(model, most, record_property):
    bundle = Bundle.open(model)
    artefact = bundle.path_of(bundle.artefact("model.int8.onnx"))
    ours, bare = program("predict", SCAN, "--json", "--model", model), script("bare_onnxruntime.py", artefact, SCAN)
    seconds = alternate({"mri-edge": ours, "bare": bare}, ROUNDS)
    ratio = ratio_of_medians(seconds, "mri-edge", "bare")
    record_property(f"cold start, {model}: mri-edge / bare ONNX Runtime script", round(ratio, 3))
    print(f"cold start, {model}: mri-edge {ratio:.2f} times the bare script, medians of {ROUNDS}")
    assert ratio <= most


def test_predict_is_many_times_faster_than_keras(keras_file, record_property):
    seconds = alternate(
        {
            "mri-edge": program("predict", SCAN, "--json", "--model", "vgg16"),
            "keras": script("keras_predict.py", keras_file, SCAN),
        },
        3,
    )
    ratio = ratio_of_medians(seconds, "keras", "mri-edge")
    record_property("cold start, Keras script / mri-edge", round(ratio, 1))
    print(f"cold start: Keras script {ratio:.1f} times mri-edge, medians of 3")
    # Measured on a quiet machine: 18.3, where the bare script reaches 23.6. 25 is wanted.
    assert ratio >= 15


def test_help_costs_little_more_than_starting_python(record_property):
    seconds = alternate({"help": program("--help"), "python": [sys.executable, "-c", "pass"]}, ROUNDS)
    ratio = ratio_of_medians(seconds, "help", "python")
    record_property("mri-edge --help / python -c pass", round(ratio, 2))
    print(f"--help: {ratio:.1f} times python -c pass, medians of {ROUNDS}")
    assert ratio <= 5


@pytest.mark.skipif(not hasattr(os, "EX_SOFTWARE"), reason="this system does not tell a process's peak memory")
def test_predict_needs_little_memory(record_property):
    peak = max(peak_memory(program("predict", SCAN, "--json", "--model", "vgg16")) for _ in range(5))
    record_property("peak memory of a cold predict, MiB", round(peak, 1))
    print(f"peak memory of a cold predict: {peak:.1f} MiB, largest of 5")
    assert peak <= 100


@pytest.mark.skipif(not hasattr(os, "EX_SOFTWARE"), reason="this system does not tell a process's peak memory")
def test_predict_needs_an_eighth_of_the_memory_of_keras(keras_file, record_property):
    peak = max(peak_memory(program("predict", SCAN, "--json", "--model", "vgg16")) for _ in range(3))
    keras = peak_memory(script("keras_predict.py", keras_file, SCAN))
    record_property("peak memory, Keras script / mri-edge", round(keras / peak, 1))
    print(f"peak memory: Keras script {keras:.0f} MiB, mri-edge {peak:.1f} MiB: {keras / peak:.1f} times")
    assert peak <= keras / 8
