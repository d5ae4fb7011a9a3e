"""A model with more than two labels and no positive one: null in records, and people see the answer's probability."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.authoring import golden
from mri_edge.authoring.card import CARD
from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest, Metric, TensorSpec
from mri_edge.cli import run
from mri_edge.errors import ManifestError
from mri_edge.inference.prediction import decide, displayed_label
from mri_edge.testing import FakeEngine

LABELS = ("glioma", "meningioma", "notumor")
WILSON = "Wilson score interval (Wilson 1927)"
FIGURE = {"value": 0.75, "low": 0.301, "high": 0.954, "images": 4, "method": WILSON}


@pytest.fixture
def manifest(tiny_manifest: Manifest) -> Manifest:
    names = ("accuracy", "macro_auc", "macro_sensitivity", "macro_precision", "macro_f1", "brier", "calibration_error")
    return replace(
        tiny_manifest,
        labels=LABELS,
        positive=None,
        training=replace(tiny_manifest.training, classes={label: [label] for label in LABELS}),
        metrics={name: Metric(0.75, 0.301, 0.954, 4, WILSON) for name in names},
    )


@pytest.fixture
def bundle(tmp_path: Path, manifest: Manifest, tiny_artifact: Artifact) -> Path:
    """A bundle for the fake engine: bright scans are ``notumor``; of dark ones both others are equally probable."""
    folder = tmp_path / "three"
    measured = {
        "confusion_matrix": [[3, 1, 0], [0, 2, 0], [0, 0, 5]],
        "by_label": {"glioma": {"sensitivity": FIGURE, "auc": FIGURE}, "meningioma": {"sensitivity": FIGURE}},
        "test": [{"file": "0" * 16, "label": 0, "probabilities": [0.2, 0.7, 0.1]}],
    }
    with new_bundle(folder, manifest) as writer:
        writer.path("model.fake").write_text('{"input": [128, 128, 3], "classes": 3}')
        output = TensorSpec("probabilities", "float32", (None, 3))
        writer.add_artifact(replace(tiny_artifact, file="model.fake", format="fake", output=output))
        writer.add_document("metrics.json", json.dumps(measured))
        writer.add_card()
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, level in (("bright", 204), ("dark", 51)):
        Image.fromarray(np.full((128, 128), level, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_the_manifest_says_null_and_refuses_a_threshold(manifest):
    assert json.loads(manifest.to_json())["positive"] is None
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.positive_label is None
    with pytest.raises(ManifestError, match="threshold: needs a positive label"):
        Manifest.from_json(replace(manifest, threshold=0.5).to_json())
    assert manifest.content_hash != replace(manifest, positive=0).content_hash


def test_the_schema_allows_null(manifest):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'dev'")
    schema = json.loads(files("mri_edge").joinpath("bundles", "manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(manifest.to_json()), schema)


def test_the_most_probable_label_is_the_answer():
    rows = np.array([[0.3, 0.4, 0.3], [0.5, 0.2, 0.3]], np.float32)
    assert decide(rows, None, None).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("positive", "labels", "shown"),
    [("yes", ("no", "yes"), "yes"), (None, ("no", "yes"), "no"), (None, LABELS, "no"), ("yes", (*LABELS, "yes"), "no")],
)
def test_the_positive_label_is_shown_only_of_two(positive, labels, shown):
    assert displayed_label("no", positive, labels) == shown


def test_prediction(bundle):
    with Classifier.load(bundle) as classifier:
        prediction = classifier.predict(np.full((128, 128), 204, np.uint8))
    assert (prediction.label, prediction.positive, prediction.threshold) == ("notumor", None, None)
    assert prediction.probability == prediction.probabilities["notumor"] == pytest.approx(0.8)
    record = prediction.to_dict()
    assert record["positive"] is None
    jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'dev'")
    schema = files("mri_edge").joinpath("inference", "result.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(record, json.loads(schema))


def test_predict_shows_the_probability_of_the_answer(bundle, scans, capfd):
    assert run(["predict", str(scans), "--model", str(bundle)]) == 0
    _, heading, *rows = capfd.readouterr().out.splitlines()
    assert heading.split() == ["label", "p(label)", "ms", "file"]
    shown = [row.split()[:2] for row in rows if row.endswith(".png")]
    assert shown == [["notumor", "0.800"], ["glioma", "0.400"]]
    assert run(["predict", str(scans), "--model", str(bundle), "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["label"] for row in table] == ["notumor", "glioma"]
    assert table[0]["probability of notumor"] == "0.800000"
    assert table[0]["threshold"] == ""


def test_watch_shows_the_probability_of_the_answer(bundle, scans, tmp_path, capfd):
    options = ["--out", tmp_path / "out", "--once", "--settle", "0", "--model", bundle]
    assert run(["watch", *map(str, [scans, *options])]) == 0
    printed = capfd.readouterr().out
    assert "bright.png  notumor  p(notumor) = 0.800" in printed
    assert "dark.png  glioma  p(glioma) = 0.400" in printed
    record = json.loads((tmp_path / "out" / "results" / "dark.png.json").read_text())
    assert (record["label"], record["positive"]) == ("glioma", None)


def test_info_verify_bench_and_golden_values(bundle, scans, tmp_path, capfd):
    (tmp_path / "NOTICE").write_text("drawn here")
    golden.record(Bundle.open(bundle), sorted(scans.iterdir()), tmp_path / "NOTICE")
    assert run(["verify", str(bundle)]) == 0
    assert run(["info", str(bundle)]) == 0
    shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["positive", "none"] in shown
    assert ["threshold", "none:", "the", "likeliest", "label"] in shown
    assert run(["info", str(bundle), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["positive"] is None
    assert run(["bench", str(bundle)]) == 0
    slim = tmp_path / "slim"
    assert run(["bundle", "slim", str(bundle), "--artifact", "model.fake", "--out", str(slim)]) == 0
    packed = tmp_path / "slim.mribundle"
    assert run(["bundle", "pack", str(slim), "--out", str(packed)]) == 0
    assert Bundle.open(packed).manifest.positive is None


def test_card(bundle):
    text = (bundle / CARD).read_text()
    assert "| labels | glioma, meningioma, notumor; positive: none |" in text
    assert "The answer is the likeliest label" in text
    assert "| truth | called glioma | called meningioma | called notumor |" in text
    assert "| label | sensitivity (95% interval) | AUC (95% interval) |" in text
    assert "| glioma | 0.750 (0.301 to 0.954) | 0.750 (0.301 to 0.954) |" in text
    assert "| meningioma | 0.750 (0.301 to 0.954) | – |" in text
    assert "| notumor | – | – |" in text
    for name in ("accuracy", "macro AUC", "macro sensitivity", "macro precision", "macro F1", "Brier score"):
        assert f"| {name} | 0.750 (0.301 to 0.954) | 4 |" in text
    assert "\n| sensitivity |" not in text
    assert "| 0000000000000000 | glioma | meningioma | 0.200 |" in text


class ExplainingEngine(FakeEngine):
    """Also gives contributions, all in the upper left quarter, and the label that they are about."""

    def __init__(self, explained: float) -> None:
        super().__init__((128, 128, 3), classes=3)
        self._explained = explained
        self.outputs = (
            *self.outputs,
            TensorSpec("contributions", "float32", (None, 2, 2)),
            TensorSpec("explained", "float32", (None,)),
        )

    def run_outputs(self, batch, names):
        contributions = np.zeros((len(batch), 2, 2), np.float32)
        contributions[:, 0, 0] = 30
        outputs = {
            "probabilities": self.run(batch),
            "contributions": contributions,
            "explained": np.full(len(batch), self._explained, np.float32),
        }
        return {name: outputs[name] for name in names}


def explained_by(bundle: Path, explained: float, positive: int | None = None):
    opened = Bundle.open(bundle)
    opened = Bundle.from_manifest(bundle, replace(opened.manifest, positive=positive).to_json().encode())
    return Classifier(opened, opened.manifest.artifacts[0], ExplainingEngine(explained))


@pytest.mark.parametrize("positive", [None, 0])
def test_the_heatmap_is_about_the_called_label(bundle, scans, positive):
    with explained_by(bundle, 2.0, positive) as classifier:
        prediction = classifier.predict(scans / "bright.png", explain=True)
    assert prediction.explained == prediction.label == "notumor"


def test_contributions_count_only_if_they_are_about_the_called_label(bundle, scans):
    with explained_by(bundle, 2.0) as classifier, explained_by(bundle, 1.0) as other:
        used, unused = (each.predict(scans / "bright.png", explain=True).heatmap for each in (classifier, other))
    assert used[32, 32] == pytest.approx(unused[32, 32] * 2 / 3 + 30 / 3, abs=1)
    assert used.argmax() != unused.argmax()
    assert used[96, 96] == pytest.approx(unused[96, 96], abs=1)
