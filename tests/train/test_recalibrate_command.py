"""``mri-edge recalibrate`` end to end: real engines answer as the new bundle says, and bad input changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.authoring.golden import record
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import BundleError, DataError
from mri_edge.inference.heatmap.caption import caption
from mri_edge.inference.prediction import rescale
from mri_edge.inference.replay import probabilities_of, replay
from mri_edge.storage.atomic import sha256_of

pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")

from mri_edge.train.evaluation import intervals
from mri_edge.train.evaluation.evaluate import evaluate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LARGEST_MIB = 600
SHARPER = 2.5  # the tiny model's log odds times this are those of the truth, so its temperature is 0.4


def picture(rng: np.random.Generator) -> Image.Image:
    """Noise, on which the tiny model's probabilities are between 0.1 and 0.9."""
    return Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, tiny_onnx) -> list[tuple[bytes, bool]]:
    """The files of 240 pictures, and whether each is positive, drawn from the tiny model's sharpened probability."""
    from mri_edge.engines import open_engine
    from mri_edge.scans.preprocessing import Preprocessing

    rng, folder = np.random.default_rng(11), tmp_path_factory.mktemp("drawn")
    paths = [folder / f"{index}.png" for index in range(240)]
    for path in paths:
        picture(rng).save(path)
    prepare = Preprocessing().resize_picture
    tensors = np.stack([prepare(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    engine = open_engine(tiny_onnx, provider="cpu")
    answers = np.concatenate([engine.run(tensors[start : start + 16]) for start in range(0, 240, 16)])
    engine.close()
    odds = np.log(answers[:, 1] / answers[:, 0]) * SHARPER
    positive = rng.random(240) < 1 / (1 + np.exp(-odds))
    return [(path.read_bytes(), bool(flag)) for path, flag in zip(paths, positive, strict=True)]


@pytest.fixture
def data(tmp_path, drawn) -> Path:
    """The pictures in folders ``no`` and ``yes``."""
    folder = tmp_path / "data"
    for index, (content, positive) in enumerate(drawn):
        path = folder / ("yes" if positive else "no") / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 300)


@pytest.fixture
def both_engines(tiny_bundle, tiny_tflite, tiny_artifact) -> Path:
    """The tiny bundle with the same weights as TFLite."""
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.path("model.tflite").write_bytes(tiny_tflite.read_bytes())
        writer.add_artifact(replace(tiny_artifact, file="model.tflite", format="tflite"))
    return tiny_bundle


def recalibrate(capfd, bundle: Path, data: Path, *options: str) -> dict[str, Any]:
    """Run the command with ``--json`` and return what it prints."""
    assert run(["recalibrate", str(bundle), "--data", str(data), "--json", *options]) == 0, capfd.readouterr().err
    printed: dict[str, Any] = json.loads(capfd.readouterr().out)
    return printed


def refused(capfd, *arguments: object) -> tuple[int, str]:
    """Run the command, and return its exit code and its one line of error."""
    code = run(["recalibrate", *map(str, arguments)])
    printed, said = capfd.readouterr()
    assert printed == ""
    errors = [line for line in said.splitlines() if line.startswith("mri-edge: error: ")]
    assert len(errors) == 1, said
    return code, errors[0]


# --- the new bundle


def test_a_new_bundle_says_what_changed_and_what_to_expect(tiny_bundle, data, tmp_path, capfd):
    before = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    found = recalibrate(capfd, tiny_bundle, data, "--prevalence", "0.2", "--out", str(tmp_path / "new"))
    assert {path.name: path.read_bytes() for path in tiny_bundle.iterdir()} == before
    new, old = Bundle.open(tmp_path / "new"), Bundle.open(tiny_bundle)
    new.verify()
    manifest = new.manifest
    assert json.loads(new.manifest_bytes())["schema_version"] == 2
    assert (found["model"], found["original"]) == (manifest.title, old.manifest.title)
    assert manifest.title != old.manifest.title
    assert manifest.artifacts == old.manifest.artifacts
    change = manifest.recalibration
    assert change is not None
    assert 0.2 < change.temperature < 0.8  # 0.4 was put in
    assert change.log_odds_offset == pytest.approx(np.log(0.2 / 0.8))
    assert manifest.threshold == found["threshold"]
    assert sum(change.scans.values()) == 240 == found["data"]["images"]
    assert set(change.metrics) == {"auc", "sensitivity", "specificity", "precision", "negative_predictive_value"}
    assert found["log_loss"]["expected"] < found["log_loss"]["before"]
    assert len(found["folds"]) == 5
    text = (tmp_path / "new" / "recalibration.json").read_text()
    assert len(json.loads(text)["scans"]) == 240
    assert ".png" not in text + new.manifest_bytes().decode()
    assert str(tmp_path) not in text + new.manifest_bytes().decode()


def test_tables_name_the_figures_and_the_missing_signature(tiny_bundle, data, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["recalibrate", str(tiny_bundle), "--data", str(data)]) == 0
    printed, said = capfd.readouterr()
    new = tmp_path / "tiny-recalibrated"
    for words in ("240 scans", "independent", "temperature", "expected", "sensitivity", "log loss", "--prevalence"):
        assert words in printed
    assert f"It is not signed. Sign it with: mri-edge bundle sign {new} --key KEY" in printed
    assert "no split record" in said
    assert run(["info", str(new)]) == 0
    assert "recalibration (figures with 95% intervals)" in capfd.readouterr().out
    assert run(["info", str(new), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((new / "manifest.json").read_text())


def test_the_signature_of_the_original_does_not_cover_it(tiny_bundle, data, tmp_path, capfd):
    pytest.importorskip("cryptography", reason="needs the extra 'sign'")
    key = tmp_path / "key.pem"
    assert run(["bundle", "keygen", str(tmp_path / "key")]) == 0, capfd.readouterr().err
    assert run(["bundle", "sign", str(tiny_bundle), "--key", str(key)]) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "new"))["signed"] is False
    assert Bundle.open(tmp_path / "new").signature_bytes() is None
    assert run(["bundle", "sign", str(tmp_path / "new"), "--key", str(key)]) == 0
    Bundle.open(tmp_path / "new", signed_by=str(key.with_suffix(".pub.pem")))


def test_the_card_labels_the_figures_of_before(tiny_bundle, data, tmp_path, capfd):
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.update(threshold=0.7)
        test = [{"file": "no/a.png", "label": 0, "probabilities": [0.35, 0.65]}]
        writer.add_document("metrics.json", json.dumps({"test": test}))
        writer.add_card()
    recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "new"))
    card = (tmp_path / "new" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Recalibrated on 240 scans" in card
    assert "before the recalibration, at threshold 0.7:" in card
    # The record of the test images holds the artifact's answers, so the threshold before belongs to it.
    assert "It labels all 1 test images" in card


def test_a_slim_or_packed_copy_keeps_it(tiny_bundle, data, tmp_path, capfd):
    new, slim, packed = tmp_path / "new", tmp_path / "slim", tmp_path / "slim.mribundle"
    recalibrate(capfd, tiny_bundle, data, "--out", str(new))
    assert run(["bundle", "slim", str(new), "--artifact", "model.onnx", "--out", str(slim)]) == 0
    assert run(["bundle", "pack", str(slim), "--out", str(packed)]) == 0
    assert Bundle.open(packed).manifest.recalibration == Bundle.open(new).manifest.recalibration


# --- which answers are recalibrated


@pytest.fixture
def changed(both_engines, data, tmp_path, capfd) -> Bundle:
    """The recalibrated bundle, with golden values."""
    out = tmp_path / "new"
    recalibrate(capfd, both_engines, data, "--prevalence", "0.3", "--artifact", "model.onnx", "--out", str(out))
    record(Bundle.open(out), [EXAMPLES / "phantom-2.jpg", EXAMPLES / "mni152-slice-2.jpg"], EXAMPLES / "NOTICE")
    return Bundle.open(out)


def test_every_engine_gives_the_recalibrated_probabilities(changed, both_engines, data):
    change, paths = changed.manifest.recalibration, sorted(data.rglob("*.png"))
    labels = {}
    for artifact in ("model.onnx", "model.tflite"):
        with Classifier.load(both_engines, artifact=artifact) as classifier:
            raw = [list(answer.probabilities.values()) for answer in classifier.predict_batches(paths)]
        with Classifier.load(changed, artifact=artifact) as classifier:
            answers = list(classifier.predict_batches(paths))
        expected = rescale(np.array(raw, np.float32), change.temperature, change.log_odds_offset, 1)
        np.testing.assert_allclose([list(answer.probabilities.values()) for answer in answers], expected, atol=1e-6)
        threshold = changed.manifest.threshold
        labels[artifact] = [answer.label for answer in answers]
        assert labels[artifact] == ["yes" if row[1] >= np.float32(threshold) else "no" for row in expected]
        assert {answer.threshold for answer in answers} == {threshold}
    assert labels["model.onnx"] == labels["model.tflite"]
    assert set(labels["model.onnx"]) == {"no", "yes"}


def test_golden_values_are_those_of_the_artifact_and_labels_those_of_the_bundle(changed, both_engines, monkeypatch):
    report = replay(changed)
    assert report.first_difference is None
    assert report.replayed >= 2
    tensors = np.zeros((1, 128, 128, 3), np.uint8)
    artifact = changed.artifact("model.onnx")
    raw = probabilities_of(changed, artifact, "onnxruntime", tensors)
    np.testing.assert_array_equal(raw, probabilities_of(Bundle.open(both_engines), artifact, "onnxruntime", tensors))

    from mri_edge.inference import replay as module

    seen = []
    decide = module.decide
    monkeypatch.setattr(module, "decide", lambda answers, *rule: seen.append(answers) or decide(answers, *rule))
    replay(changed)
    golden = module._read(changed)
    change = changed.manifest.recalibration
    wanted = rescale(golden.probabilities["model.onnx"], change.temperature, change.log_odds_offset, 1)
    assert any(np.allclose(answers, wanted) for answers in seen)
    assert not any(np.allclose(answers, golden.probabilities["model.onnx"]) for answers in seen)


def test_verify_bench_and_heatmaps_work_on_it(changed, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path / "profiles"))
    assert run(["verify", str(changed.folder)]) == 0
    assert "Recalibrated on 240 scans" in capfd.readouterr().out
    assert run(["verify", str(changed.folder), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["recalibration"]["artefact"] == "model.onnx"
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["bench", str(changed.folder), "--engine", "onnxruntime", "--scans", scan]) == 0, capfd.readouterr().err
    capfd.readouterr()
    assert run(["predict", scan, "--model", str(changed.folder), "--heatmap", str(tmp_path / "why")]) == 0
    assert (tmp_path / "why" / "phantom-1.jpg.png").is_file()
    with Classifier.load(changed) as classifier:
        answer = classifier.predict(scan)
    heading = caption(answer, 0.0, None)[0]
    assert heading[1].endswith(f") = {answer.probability:.3f}")
    assert heading[2] == f"threshold {changed.manifest.threshold:.3f}"


def test_watch_writes_recalibrated_results(changed, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    shutil.copy(EXAMPLES / "phantom-1.jpg", tmp_path / "in")
    model = str(changed.folder)
    command = ["watch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--once", "--model", model]
    assert run(command) == 0, capfd.readouterr().err
    [result] = (tmp_path / "out").rglob("phantom-1*.json")
    written = json.loads(result.read_text())
    with Classifier.load(changed) as classifier:
        assert written["probabilities"] == pytest.approx(classifier.predict(EXAMPLES / "phantom-1.jpg").probabilities)
    assert written["threshold"] == changed.manifest.threshold


def test_evaluation_leaves_out_the_scans_that_chose_the_threshold(changed, data):
    with pytest.raises(DataError, match="all 240 images chose the temperature and threshold"):
        evaluate(changed, data)
    everything = evaluate(changed, data, role="all")
    assert everything["threshold"] == changed.manifest.threshold
    assert "240 of these images chose the temperature and threshold of this bundle." in everything["warnings"]
    rng = np.random.default_rng(12)
    for name in ("no", "yes"):
        picture(rng).save(data / name / "new.png")
    scored = evaluate(changed, data)
    assert [row["file"] for row in scored["predictions"]] == ["no/new.png", "yes/new.png"]
    assert scored["data"]["left_out"] == {"recalibration": 240}
    assert "240 images chose the temperature and threshold of this bundle and are left out." in scored["warnings"]


def test_the_same_scans_may_recalibrate_again(changed, both_engines, data, tmp_path, capfd):
    """The answers of the artifact count, not those that an earlier recalibration changed."""
    first, again = (
        recalibrate(capfd, bundle, data, "--artifact", "model.onnx", "--out", str(tmp_path / name))
        for bundle, name in ((both_engines, "first"), (changed.folder, "again"))
    )
    assert again["temperature"] == first["temperature"]
    assert again["original_threshold"] is None
    assert again["expected"] == first["expected"]
    assert any("240 of the scans recalibrated this bundle before" in line for line in again["warnings"])


def test_it_is_neither_exported_nor_a_teacher(changed):
    from mri_edge.train.loops.distil import BundleTeacher

    labels = type("Labels", (), {"names": ("no", "yes")})
    with pytest.raises(DataError, match="cannot be a teacher"):
        BundleTeacher([changed], labels, changed.manifest.preprocessing)
    exporter = pytest.importorskip("mri_edge.export.exporter")
    with pytest.raises(BundleError, match="is recalibrated"):
        exporter.export(changed, exporter.Settings((), changed.folder))


# --- bad input


def test_scans_known_from_training_are_left_out(tiny_bundle, data, tmp_path, capfd):
    images = [
        SplitImage(path.relative_to(data).as_posix(), sha256_of(path), int(path.parent.name == "yes"), role)
        for role, path in zip(("train", "validation", "test", "excluded"), sorted(data.rglob("*.png")), strict=False)
    ]
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.add_document(SPLIT, Split(tuple(images)).to_json())
    found = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "new"))
    assert found["data"]["left_out"] == {"train": 1, "validation": 1, "test": 1, "excluded": 1}
    assert found["data"]["images"] == 236
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        images = [
            SplitImage(path.relative_to(data).as_posix(), sha256_of(path), 0, "train") for path in data.rglob("*.png")
        ]
        writer.add_document(SPLIT, Split(tuple(images)).to_json())
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert "all 240 images are known from the bundle's training (train 240)" in line
    assert not (tmp_path / "none").exists()


def test_copies_count_once_and_a_copy_with_another_label_is_refused(tiny_bundle, data, tmp_path, capfd):
    first = min((data / "no").iterdir())
    shutil.copy(first, data / "no" / "copy.png")
    found = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "new"))
    assert (found["data"]["images"], found["data"]["left_out"]) == (240, {"copy": 1})
    shutil.copy(first, data / "yes" / "copy.png")
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert "are the same file with two labels" in line


def test_patients_count_once(tiny_bundle, data, tmp_path, capfd):
    files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    rows = "".join(f"{file},{file.partition('/')[0]}-{index // 4}\n" for index, file in enumerate(files))
    (tmp_path / "patients.csv").write_text("file,group\n" + rows)
    groups = ("--groups", str(tmp_path / "patients.csv"))
    one = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "one"))
    several = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "several"), *groups)
    assert sum(several["data"]["independent_by_label"]) <= 62
    for name in ("sensitivity", "specificity"):
        widths = [found["before"][name]["high"] - found["before"][name]["low"] for found in (one, several)]
        assert widths[1] > 1.5 * widths[0]


def test_blocks_of_file_numbers_count_once_where_order_carries_identity(tiny_bundle, data, drawn, tmp_path, capfd):
    plain = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "plain"))
    unordered = recalibrate(capfd, tiny_bundle, data, "--groups", "blocks", "--out", str(tmp_path / "unordered"))
    assert plain["data"]["grouping"] == "near-duplicates"
    assert unordered["data"]["grouping"].startswith("near-duplicates (file order carries no identity")
    for key in ("images", "independent_by_label"):
        assert unordered["data"][key] == plain["data"][key]
    assert unordered["threshold"] == plain["threshold"]
    rng, ordered = np.random.default_rng(3), tmp_path / "ordered"
    for path in data.rglob("*.png"):  # each picture is followed by one that looks like it, but is no near-duplicate
        pixels = np.asarray(Image.open(path)).astype(int)
        similar = (pixels + rng.integers(-50, 51, pixels.shape)).clip(0, 255).astype(np.uint8)
        for number, content in enumerate((pixels.astype(np.uint8), similar), start=2 * int(path.stem)):
            copy = ordered / path.parent.name / f"{number:03}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(copy)
    arguments = ["recalibrate", str(tiny_bundle), "--data", str(ordered), "--groups", "blocks:4", "--json"]
    assert run([*arguments, "--out", str(tmp_path / "blocks")]) == 0
    printed, said = capfd.readouterr()
    found = json.loads(printed)["data"]
    assert found["images"] == 480
    assert sum(found["independent_by_label"]) <= 240
    assert found["grouping"] == "blocks of 4 numbers in no, yes, joined with near-duplicates"
    assert f"groups: {found['grouping']}; 480 scans in " in said


def test_unknown_group_rule_is_refused_before_any_scan_is_read(tiny_bundle, data, tmp_path, capfd):
    code, line = refused(
        capfd, tiny_bundle, "--data", data, "--groups", "patients.csv", "--out", tmp_path / "none", "--json"
    )
    assert code == 2
    assert "--groups: no such rule or file: 'patients.csv'" in line


def test_folders_of_other_names_are_mapped_to_the_labels(tiny_bundle, data, tmp_path, capfd):
    expected = recalibrate(capfd, tiny_bundle, data, "--out", str(tmp_path / "known"))
    for old, new in (("no", "healthy"), ("yes", "lesion")):
        (data / old).rename(data / new)
    code, error = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "new")
    assert code == 2
    assert "--labels" in error
    negative, positive = Bundle.open(tiny_bundle).manifest.labels
    rule = f"healthy={negative},lesion={positive}"
    arguments = ["recalibrate", tiny_bundle, "--data", data, "--out", tmp_path / "new", "--json", "--labels", rule]
    assert run([str(argument) for argument in arguments]) == 0
    printed, said = capfd.readouterr()
    assert f"labels: {negative} = healthy; {positive} = lesion (positive: {positive})" in said
    assert json.loads(printed)["threshold"] == expected["threshold"]


def test_unreadable_scans_are_reported(tiny_bundle, data, tmp_path, capfd):
    (data / "no" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    out = tmp_path / "new"
    assert run(["recalibrate", str(tiny_bundle), "--data", str(data), "--json", "--out", str(out)]) == 1
    printed, said = capfd.readouterr()
    assert [item["file"] for item in json.loads(printed)["unreadable"]] == ["no/broken.png"]
    assert "broken.png: damaged picture" in said
    assert "broken" not in (out / "recalibration.json").read_text()
    for path in data.rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + path.name.encode() + path.parent.name.encode())
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert "none of 241 images can be read" in line


def test_too_few_scans_are_refused(tiny_bundle, data, tmp_path, capfd):
    for name in ("no", "yes"):
        for path in sorted((data / name).iterdir())[1:]:
            path.unlink()
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert "has 1 independent scans, too few" in line
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda data: [shutil.rmtree(folder) for folder in data.iterdir()], "no class folder"),
        (lambda data: shutil.rmtree(data / "yes"), "no scan of 'yes'"),
        (lambda data: [path.unlink() for path in (data / "yes").iterdir()], "no pictures in yes"),
        (lambda data: (data / "yes").rename(data / "maybe"), "'maybe' matches no label"),
    ],
    ids=["no folder", "empty folder", "one label", "empty label", "unknown label"],
)
def test_folders_must_have_every_label(damage, words, tiny_bundle, data, tmp_path, capfd):
    damage(data)
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert words in line


def test_swapped_folders_are_refused(tiny_bundle, data, tmp_path, capfd):
    (data / "no").rename(data / "held")
    (data / "yes").rename(data / "no")
    (data / "held").rename(data / "yes")
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 5
    assert "are the opposite of their labels" in line
    assert not (tmp_path / "none").exists()


def test_answers_that_are_not_finite_are_an_error_of_the_engine(tiny_bundle, tiny_artifact, data, tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_bundle / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "dense":
            nan = np.full((1024, 2), np.nan, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(nan, "dense"))
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.path("model.onnx").write_bytes(model.SerializeToString())
        writer.add_artifact(tiny_artifact)
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none")
    assert code == 4
    assert "not finite" in line
    assert not (tmp_path / "none").exists()


def test_the_output_is_checked_before_any_scan_is_read(tiny_bundle, data, tmp_path, capfd):
    shutil.rmtree(data / "yes")  # found only after the output was checked
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "note").write_text("mine")
    assert refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "filled")[0] == 2
    code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tiny_bundle)
    assert code == 2
    assert "a bundle is there already" in line
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "file")[1]
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        code, line = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "locked" / "new")
        assert code == 6
        assert "read-only" in line


def test_the_output_is_neither_in_the_bundle_nor_in_the_data(tiny_bundle, data, tmp_path, capfd):
    files = sorted(tmp_path.rglob("*"))
    for folder in (tiny_bundle, data, data / "yes"):
        code, line = refused(capfd, tiny_bundle, "--data", data, "--out", folder / "new")
        assert code == 2
        assert "is inside" in line
    assert sorted(tmp_path.rglob("*")) == files


def test_a_bundle_among_the_class_folders_is_named(tiny_bundle, data, tmp_path, capfd):
    inside = shutil.copytree(tiny_bundle, data / "ours")
    code, line = refused(capfd, inside, "--data", data, "--out", tmp_path / "none")
    assert code == 2
    assert "ours: is a bundle, not a folder of scans" in line


def test_a_bundle_is_replaced_only_if_asked(tiny_bundle, data, tmp_path, capfd):
    out = ("--out", str(tmp_path / "new"))
    first = recalibrate(capfd, tiny_bundle, data, *out)
    code, line = refused(capfd, tiny_bundle, "--data", data, *out)
    assert code == 2
    assert "--overwrite" in line
    again = recalibrate(capfd, tiny_bundle, data, *out, "--overwrite", "--prevalence", "0.1")
    assert first["model"] != again["model"] == Bundle.open(tmp_path / "new").manifest.title


@pytest.mark.parametrize(
    "options",
    [
        ["--prevalence", "0"], ["--prevalence", "1"], ["--prevalence", "nan"], ["--prevalence", "2"],
        ["--prevalence", "0.00001"], ["--prevalence", "0.99999"],
        ["--sensitivity", "0"], ["--sensitivity", "1"], ["--sensitivity", "nan"],
        ["--crossval", "crossval.json"], ["--artifact", "none.onnx"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_options_are_usage_errors(options, tiny_bundle, data, tmp_path, capfd):
    code, _ = refused(capfd, tiny_bundle, "--data", data, "--out", tmp_path / "none", *options)
    assert code == 2
    assert not (tmp_path / "none").exists()


def test_nothing_to_recalibrate_with_is_a_usage_error(tiny_bundle, capfd):
    code, line = refused(capfd, tiny_bundle)
    assert code == 2
    assert "--data or --crossval is needed. Received: neither" in line
    for option, value in {
        "--prevalence": "0.1", "--sensitivity": "0.9", "--groups": __file__, "--artifact": "model.onnx",
        "--engine": "onnxruntime", "--provider": "cpu", "--threads": "1",
    }.items():  # fmt: skip
        code, line = refused(capfd, tiny_bundle, "--crossval", "crossval.json", option, value)
        assert code == 2
        assert f"{option} goes with --data" in line


def test_missing_packages_are_one_line(tiny_bundle, data, monkeypatch, capfd):
    from mri_edge.train.cli import recalibrate as command

    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "scipy" else object())
    code, line = refused(capfd, tiny_bundle, "--data", data)
    assert code == 2
    assert "scipy" in line
    assert "pip install 'mri-edge[evaluate]'" in line


def test_keras_and_matplotlib_are_not_needed(tiny_bundle, data, tmp_path):
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'matplotlib', 'onnx'): sys.modules[name] = None\n"
        "from mri_edge.cli import main\n"
        f"main(['recalibrate', {str(tiny_bundle)!r}, '--data', {str(data)!r}, '--out', {str(tmp_path / 'new')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_three_labels_get_a_temperature_and_no_threshold(tmp_path, tiny_manifest, tiny_artifact, tiny_onnx, capfd):
    onnx = pytest.importorskip("onnx")
    from mri_edge.authoring.writer import new_bundle

    model = onnx.load(tiny_onnx)
    for tensor in model.graph.initializer:
        if tensor.name == "dense":
            weights = np.random.default_rng(3).normal(0, 0.2, (1024, 3)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "dense"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    artifact = replace(tiny_artifact, output=replace(tiny_artifact.output, shape=(None, 3)))
    names = ("a", "b", "c")
    classes = replace(tiny_manifest.training, classes={name: [name] for name in names})
    with new_bundle(tmp_path / "three", replace(tiny_manifest, labels=names, training=classes)) as writer:
        writer.path("model.onnx").write_bytes(model.SerializeToString())
        writer.add_artifact(artifact)
    rng = np.random.default_rng(13)
    for index in range(90):
        path = tmp_path / "data" / names[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng).save(path)
    code, line = refused(capfd, tmp_path / "three", "--data", tmp_path / "data", "--prevalence", "0.1")
    assert code == 2
    assert "two labels" in line
    assert run(["recalibrate", str(tmp_path / "three"), "--data", str(tmp_path / "data")]) == 0
    assert "no threshold: the model has more than two labels" in capfd.readouterr().out
    manifest = Bundle.open(tmp_path / "three-recalibrated").manifest
    assert manifest.threshold is None
    assert manifest.recalibration.temperature > 1  # it knows nothing of these labels, so it is too certain
    assert set(manifest.recalibration.metrics) == {"accuracy"}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
def test_ten_thousand_scans_stay_bounded_in_memory(tiny_bundle, drawn, tmp_path):
    """Forty-two files of the same pixels each: the peak must not grow with the pictures, nor with pairs of them."""
    data = tmp_path / "many"
    for index, (content, positive) in enumerate(drawn):
        folder = data / ("yes" if positive else "no")
        folder.mkdir(parents=True, exist_ok=True)
        for copy in range(42):
            (folder / f"{index:03}-{copy:02}.png").write_bytes(content + b"\0" * copy)
    code = (
        "import sys\n"
        "from mri_edge.cli import run\n"
        "code = run(sys.argv[1:])\n"
        # Not ru_maxrss, which counts the memory of the process that started this one.
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    command = ["recalibrate", str(tiny_bundle), "--data", str(data), "--json", "--out", str(tmp_path / "new")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["data"]["images"] == 10_080
    assert sum(found["data"]["independent_by_label"]) == 240
    peak_kib = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[0])
    assert peak_kib < LARGEST_MIB << 10
