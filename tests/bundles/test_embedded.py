"""The embedded models are complete, small enough, and reproduce the results recorded when they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from mri_edge import Bundle, Classifier
from mri_edge.bundles.bundle import embedded_models
from mri_edge.cli import run

EXAMPLES = Path(__file__).parents[2] / "examples"
README = EXAMPLES.with_name("README.md")


@pytest.mark.parametrize("name", embedded_models())
def test_an_embedded_model_is_complete_and_replays_its_golden_values(name, capfd):
    bundle = Bundle.open(name)
    bundle.verify()
    assert bundle.manifest.name == name
    assert bundle.manifest.novelty is not None
    assert all(artifact.parity and artifact.parity.verdict != "not met" for artifact in bundle.manifest.artifacts)
    assert run(["verify", name]) == 0
    assert "This device's CPU reproduces the recorded results" in capfd.readouterr().out


def test_small_model_keeps_its_budget():
    """At most 150 KB in 8 bits, ONNX and TFLite, and 0.6 MB in float."""
    artifacts = Bundle.open("small").manifest.artifacts
    assert {artifact.file for artifact in artifacts} >= {"model.int8.onnx", "model.int8.tflite", "model.onnx"}
    for artifact in artifacts:
        assert artifact.size_bytes <= (150_000 if artifact.precision == "int8" else 600_000), artifact.file


def test_the_small_model_names_its_teacher():
    manifest = Bundle.open("small").manifest
    assert manifest.training.recipe == "small"
    assert "distilled from vgg16" in manifest.training.backbone_weights
    assert manifest.training.split_fingerprint == Bundle.open("vgg16").manifest.training.split_fingerprint


def test_a_model_is_chosen_by_name():
    for name in embedded_models():
        with Classifier.load(name) as classifier:
            assert classifier.predict(EXAMPLES / "phantom-1.jpg").model.startswith(name)


def test_readme_states_the_figures_of_each_models_manifest():
    readme = README.read_text(encoding="utf-8")
    for name in embedded_models():
        manifest = Bundle.open(name).manifest
        accuracy, auc = (manifest.metrics[key] for key in ("accuracy", "auc"))
        [row] = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"| {accuracy.images} | {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}) |" in row
        assert f"| {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f}) |" in row


@pytest.mark.parametrize(
    ("name", "tumours"),
    [
        ("lite", ["phantom-1", "phantom-2", "phantom-3"]),
        ("vgg16", ["phantom-1", "phantom-2"]),
        ("small", ["phantom-2"]),
    ],
)
def test_demo_scans_get_the_labels_that_both_readmes_state(name, tumours):
    with Classifier.load(name) as classifier:
        labels = {path.stem: classifier.predict(path).label for path in sorted(EXAMPLES.glob("*.jpg"))}
    assert len(labels) == 6
    assert [scan for scan, label in labels.items() if label == "tumour"] == tumours


@pytest.mark.parametrize("name", embedded_models())
def test_the_benchmark_uses_the_pictures_of_the_golden_record(name):
    from mri_edge.benchmarking.benchmark import scans_for

    scans = [Path(scan).name for scan in scans_for(Bundle.open(name), [])]
    assert scans == ["mni152-slice-2.jpg", "phantom-2.jpg"]
