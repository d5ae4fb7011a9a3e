"""Cold start: one prediction as a whole process, beside the barest script and beside Keras."""

from __future__ import annotations

from pathlib import Path

import pytest
from mri_edge import Bundle
from paired import alternate, program, ratio_of_medians, script

SCAN = Path(__file__).parents[1] / "examples" / "mni152-slice-1.jpg"
ROUNDS = 15


@pytest.fixture(scope="session")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference network with random weights: the time does not depend on their values."""
    pytest.importorskip("tensorflow", reason="needs mri-edge[train]")
    from mri_edge.train.backbone import build_backbone
    from mri_edge.train.model import build_network
    from mri_edge.train.recipe import REFERENCE

    path = tmp_path_factory.mktemp("keras") / "model.keras"
    build_network(build_backbone(None, 128, 128), REFERENCE, classes=2, seed=0).whole.save(path)
    return path


def test_predict_costs_little_more_than_the_barest_script(record_property):
    bundle = Bundle.open()
    model = bundle.path_of(bundle.artefact("model.int8.onnx"))
    seconds = alternate(
        {"mri-edge": program("predict", SCAN, "--json"), "bare": script("bare_onnxruntime.py", model, SCAN)}, ROUNDS
    )
    ratio = ratio_of_medians(seconds, "mri-edge", "bare")
    record_property("cold start, mri-edge / bare ONNX Runtime script", round(ratio, 3))
    print(f"cold start: mri-edge {ratio:.2f} times the bare script, medians of {ROUNDS}")
    assert ratio <= 1.25


def test_predict_is_15_times_faster_than_keras(keras_file, record_property):
    seconds = alternate(
        {"mri-edge": program("predict", SCAN, "--json"), "keras": script("keras_predict.py", keras_file, SCAN)}, 3
    )
    ratio = ratio_of_medians(seconds, "keras", "mri-edge")
    record_property("cold start, Keras script / mri-edge", round(ratio, 1))
    print(f"cold start: Keras script {ratio:.1f} times mri-edge, medians of 3")
    assert ratio >= 15
