"""The threshold of the manifest decides every label: never 0.5, and never the probability of another label."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.authoring import golden
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest
from mri_edge.cli import run
from mri_edge.inference import replay
from mri_edge.inference.prediction import Latency, Prediction, decide

# Grey levels whose fake probabilities of "yes", level / 255, lie on both sides of each threshold and of a half.
LEVELS = (51, 89, 166, 204)  # 0.2, 0.35, 0.65, 0.8
CASES = [
    (1, 0.3, ["no", "yes", "yes", "yes"]),
    (1, 0.7, ["no", "no", "no", "yes"]),
    (1, None, ["no", "no", "yes", "yes"]),
    (0, 0.3, ["no", "no", "no", "yes"]),
    (0, 0.7, ["no", "yes", "yes", "yes"]),
]
EVERY_CASE = pytest.mark.parametrize(("positive", "threshold", "expected"), CASES)

Make = Callable[[int, "float | None"], Path]


@pytest.fixture
def make(tmp_path: Path, tiny_manifest: Manifest, tiny_artifact: Artifact) -> Make:
    """Return a function that makes a bundle for the fake engine with a positive label and a threshold."""

    def make_bundle(positive: int, threshold: float | None) -> Path:
        folder = tmp_path / "bundle"
        with new_bundle(folder, replace(tiny_manifest, positive=positive, threshold=threshold)) as writer:
            writer.path("model.fake").write_text('{"input": [128, 128, 3], "classes": 2}')
            writer.add_artifact(replace(tiny_artifact, file="model.fake", format="fake"))
        return folder

    return make_bundle


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for level in LEVELS:
        Image.fromarray(np.full((128, 128), level, np.uint8)).save(folder / f"{level:03}.png")
    return folder


# --- the rule itself


def test_a_probability_at_the_threshold_is_positive_and_one_just_below_is_not():
    at = np.float32(0.3)
    below = np.nextafter(at, np.float32(0))
    rows = np.array([[1 - at, at], [1 - below, below]], np.float32)
    assert decide(rows, 1, float(at)).tolist() == [1, 0]


def test_below_the_threshold_the_likeliest_other_label_is_chosen():
    rows = np.array([[0.2, 0.45, 0.35], [0.35, 0.45, 0.2], [0.1, 0.6, 0.3]], np.float32)
    assert decide(rows, 1, 0.5).tolist() == [2, 0, 1]
    assert decide(rows, 1, None).tolist() == [1, 1, 1]


def test_another_label_is_chosen_even_if_all_other_probabilities_are_zero():
    assert decide(np.array([[0.0, 1.0]], np.float32), 1, 1.0).tolist() == [1]
    assert decide(np.array([[0.0, 0.9]], np.float32), 1, 1.0).tolist() == [0]


def test_deciding_leaves_the_probabilities_as_they_are():
    rows = np.array([[0.2, 0.8]], np.float32)
    decide(rows, 1, 0.9)
    assert rows.tolist() == np.array([[0.2, 0.8]], np.float32).tolist()


# --- everywhere a label is given


@EVERY_CASE
def test_predict_and_predict_batches(make, scans, positive, threshold, expected):
    paths = sorted(scans.iterdir())
    with Classifier.load(make(positive, threshold)) as classifier:
        alone = [classifier.predict(path) for path in paths]
        together = list(classifier.predict_batches(paths, batch_size=3))
    assert [prediction.label for prediction in alone] == expected
    assert [prediction.label for prediction in together] == expected
    assert {prediction.threshold for prediction in [*alone, *together]} == {threshold}
    name = ("no", "yes")[positive]
    assert all(prediction.probability == prediction.probabilities[name] for prediction in alone)


@EVERY_CASE
def test_every_form_of_the_command(make, scans, capfd, tmp_path, positive, threshold, expected):
    options = ["predict", str(scans), "--model", str(make(positive, threshold))]
    assert run([*options, "--json"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == expected
    assert {row["threshold"] for row in rows} == {threshold}
    assert run([*options, "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["label"] for row in table] == expected
    assert run(options) == 0
    lines = capfd.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.endswith(".png")]
    assert shown == expected
    assert run([*options, "--resume", str(tmp_path / "kept.jsonl")]) == 0
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [row["label"] for row in kept] == expected


@EVERY_CASE
def test_watch(make, scans, tmp_path, positive, threshold, expected):
    out = tmp_path / "out"
    options = ["--out", out, "--once", "--settle", "0", "--model", make(positive, threshold)]
    assert run(["watch", *map(str, [scans, *options])]) == 0
    records = [json.loads((out / "results" / f"{level:03}.png.json").read_text()) for level in LEVELS]
    assert [record["label"] for record in records] == expected
    assert {record["threshold"] for record in records} == {threshold}


@pytest.mark.parametrize(
    ("threshold", "shift", "flipped"),
    [
        (0.3, -0.06, ["089.png"]),  # 0.35 sinks below 0.3
        (0.3, -0.04, []),  # and not with 0.31
        (0.7, +0.06, ["166.png"]),
        (0.5, +0.06, []),  # crosses 0.7, which is not asked for
        (None, -0.2, ["166.png"]),
    ],
)
def test_golden_replay_compares_labels_by_the_threshold(make, scans, tmp_path, threshold, shift, flipped):
    """Record answers that differ by ``shift`` from those of the model."""
    notice = tmp_path / "NOTICE"
    notice.write_text("drawn here")
    golden.record(Bundle.open(make(1, threshold)), sorted(scans.iterdir()), notice)
    bundle = Bundle.open(tmp_path / "bundle")
    with np.load(bundle.folder / replay.ARRAYS) as kept:
        arrays = dict(kept)
    arrays["probabilities-model.fake"] += np.array([-shift, shift], np.float32)
    with rewrite_bundle(
        bundle, keep=[entry.file for entry in bundle.entries() if entry.file != replay.ARRAYS]
    ) as writer:
        np.savez_compressed(writer.path(replay.ARRAYS), **arrays)
        writer.add_document(replay.ARRAYS)
    [label] = [check for check in replay.replay(Bundle.open(bundle.folder)).checks if check.stage == "label"]
    assert label.status == ("differs" if flipped else "same")
    assert [part.split(":")[0].split("/")[-1] for part in label.detail.split("; ") if part] == flipped


# --- the figures of evaluation and parity


@pytest.fixture
def labelled(scans: Path) -> Path:
    """The same scans as a data folder: the two dark ones are ``no``."""
    for level in LEVELS:
        folder = scans / ("yes" if level > 127 else "no")
        folder.mkdir(exist_ok=True)
        (scans / f"{level:03}.png").rename(folder / f"{level:03}.png")
    return scans


@EVERY_CASE
def test_evaluate(make, labelled, positive, threshold, expected):
    pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")
    from mri_edge.train.evaluation.evaluate import evaluate

    record = evaluate(Bundle.open(make(positive, threshold)), labelled)
    called = {row["file"]: ("no", "yes")[row["called"]] for row in record["predictions"]}
    assert [called[file] for file in sorted(called)] == expected
    assert record["threshold"] == threshold
    right = sum(label == truth for label, truth in zip(expected, ["no", "no", "yes", "yes"], strict=True))
    assert record["metrics"]["accuracy"]["value"] == right / 4
    assert record["mistakes"] == 4 - right
    assert sum(record["confusion_matrix"][i][i] for i in (0, 1)) == right


@EVERY_CASE
def test_parity_judges_labels_by_the_threshold(tiny_manifest, positive, threshold, expected):
    pytest.importorskip("sklearn", reason="needs the extra 'export'")
    from mri_edge.export.parity.comparison import ReferenceImages, compare
    from mri_edge.export.parity.document import document
    from mri_edge.export.parity.gate import DEFAULT_GATES

    manifest = replace(tiny_manifest, positive=positive, threshold=threshold)
    yes = np.array(LEVELS, np.float32) / 255
    reference = np.stack([1 - yes, yes], axis=1)
    labels = np.array([0, 0, 1, 1])
    mirrored = reference[:, ::-1].copy()  # an artifact that has the two labels the wrong way round
    files = tuple(f"{level}.png" for level in LEVELS)
    judges = ReferenceImages(files, ({},) * 4, labels, reference)
    gate = DEFAULT_GATES["float32"]
    found = compare(mirrored, judges, manifest, gate, engine="fake", provider="none", threads=1)
    of_mirrored = expected[::-1]  # levels are symmetric about a half
    assert [flip.reference_label for flip in found.flips] == [
        label for label, other in zip(expected, of_mirrored, strict=True) if label != other
    ]
    assert [flip.artifact_label for flip in found.flips] == [
        other for label, other in zip(expected, of_mirrored, strict=True) if label != other
    ]
    right = sum(label == ("no", "yes")[truth] for label, truth in zip(of_mirrored, labels, strict=True))
    assert found.accuracy.value == right / 4
    content = document(judges, manifest, {}, {})
    right = sum(label == ("no", "yes")[truth] for label, truth in zip(expected, labels, strict=True))
    assert content["reference_accuracy"]["value"] == right / 4


# --- what a prediction records


@pytest.fixture
def prediction(make) -> Prediction:
    with Classifier.load(make(1, 0.3)) as classifier:
        given = classifier.predict(np.full((128, 128), 204, np.uint8))
    return replace(given, latency_ms=Latency(1.23456, 0.12345, 2.34564))


def test_times_are_rounded_to_the_microsecond_and_add_up(prediction):
    record = prediction.to_dict()
    assert record["latency_ms"] == {"decode": 1.235, "resize": 0.123, "infer": 2.346, "total": 3.704}
    assert (record["label"], record["positive"], record["threshold"]) == ("yes", "yes", 0.3)
    assert record["probabilities"] == pytest.approx({"no": 0.2, "yes": 0.8})
    assert record["notice"] == "Research use only: not a medical device."
    json.dumps(record)


def test_pictures_are_not_part_of_the_equality_and_repr_of_a_prediction(prediction):
    picture = np.zeros((2, 2, 3), np.uint8)
    with_pictures = replace(prediction, pixels=picture, heatmap=np.zeros((2, 2), np.float32))
    assert with_pictures == prediction
    assert repr(with_pictures) == repr(prediction)
    assert with_pictures.to_dict() == prediction.to_dict()


def test_results_are_written_in_utf8_where_they_can_be_and_in_ascii_elsewhere(monkeypatch):
    import sys

    from mri_edge.inference.prediction import as_json, stdout_json

    assert as_json({"file": "ä.png"}) == '{"file": "ä.png"}'
    assert as_json({"file": "\udcff.png"}) == '{"file": "\\udcff.png"}'  # a name that is no UTF-8
    assert as_json({"a": 1}, indent=2) == '{\n  "a": 1\n}'
    for encoding, text in (
        ("utf-8", '{"file": "ä.png"}'),
        ("UTF8", '{"file": "ä.png"}'),
        ("ascii", '{"file": "\\u00e4.png"}'),
    ):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        assert stdout_json({"file": "ä.png"}) == text
