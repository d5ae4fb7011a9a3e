"""The models that come with the package: whole, small enough, and giving here what they gave where they were made."""

from __future__ import annotations

from pathlib import Path

import pytest
from mri_edge import Bundle, Classifier
from mri_edge.bundle import embedded_models
from mri_edge.cli import run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_model_is_whole_and_replays_its_golden_values(name, capfd):
    bundle = Bundle.open(name)
    bundle.verify()
    assert bundle.manifest.name == name
    assert bundle.manifest.novelty is not None
    assert all(one.parity and one.parity.verdict != "not met" for one in bundle.manifest.artefacts)
    assert run(["verify", name]) == 0
    assert "This device's CPU gives what was recorded" in capfd.readouterr().out


def test_small_model_keeps_its_budget():
    """At most 150 KB in 8 bits, ONNX and TFLite, and 0.6 MB in float."""
    artefacts = Bundle.open("small").manifest.artefacts
    assert {one.file for one in artefacts} >= {"model.int8.onnx", "model.int8.tflite", "model.onnx"}
    for one in artefacts:
        assert one.size_bytes <= (150_000 if one.precision == "int8" else 600_000), one.file


def test_small_model_says_who_taught_it():
    manifest = Bundle.open("small").manifest
    assert manifest.training.recipe == "small"
    assert "distilled from vgg16" in manifest.training.backbone_weights
    assert manifest.training.split_fingerprint == Bundle.open("vgg16").manifest.training.split_fingerprint


def test_a_model_is_chosen_by_name():
    for name in embedded_models():
        with Classifier.load(name) as classifier:
            assert classifier.predict(EXAMPLES / "phantom-1.jpg").model.startswith(name)


@pytest.mark.parametrize(
    ("name", "tumours"), [("vgg16", ["phantom-1", "phantom-2", "phantom-3"]), ("small", ["phantom-2"])]
)
def test_demo_scans_get_the_labels_that_both_readmes_tell(name, tumours):
    with Classifier.load(name) as classifier:
        labels = {one.stem: classifier.predict(one).label for one in sorted(EXAMPLES.glob("*.jpg"))}
    assert len(labels) == 6
    assert [scan for scan, label in labels.items() if label == "tumour"] == tumours
