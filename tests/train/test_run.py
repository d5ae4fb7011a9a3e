"""Test complete trainings: bundle and report, resuming after a kill, and other Keras backends."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")
h5py = pytest.importorskip("h5py", reason="needs the extra 'train'")

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Split
from mri_edge.errors import DataError, OutputError, UsageError
from mri_edge.storage.atomic import fingerprint
from mri_edge.train import bundle as record
from mri_edge.train import pipeline
from mri_edge.train.data.folder import find_scans
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.evaluate import evaluate
from mri_edge.train.loops import checkpoint as unfinished
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.recipes.robust import ROBUST

from . import small_run


def command(*arguments):
    return [sys.executable, small_run.__file__, *map(str, arguments)]


def head_weights(bundle, folder):
    """Read the arrays of the head in ``model.keras`` without Keras, so that the backend does not matter."""
    import zipfile

    with zipfile.ZipFile(bundle / "model.keras") as archive:
        archive.extract("model.weights.h5", folder)
    found = {}

    def keep(name, one):
        if "dense" in name and isinstance(one, h5py.Dataset):
            found[name] = one[()]

    with h5py.File(folder / "model.weights.h5") as file:
        file["layers"].visititems(keep)
    return found


@pytest.mark.slow
def test_killed_and_resumed_training_ends_with_the_same_weights(folders, weights_file, tmp_path):
    epochs = 6
    recipe = small_run.RECIPE.with_epochs(epochs)
    chosen = {"backbone_weights": str(weights_file), "seed": small_run.SEED}
    pipeline.train_bundle(folders, tmp_path / "whole", recipe, **chosen)

    checkpoint = tmp_path / ".broken.training" / "checkpoint.npz"
    process = subprocess.Popen(command(folders, tmp_path / "broken", weights_file, epochs))
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "broken").exists(), "the training ended before it was killed"
    assert 1 <= len(unfinished.facts_in(checkpoint)) < epochs
    pipeline.train_bundle(folders, tmp_path / "broken", recipe, **chosen, resume=True)

    whole, resumed = (head_weights(tmp_path / name, tmp_path / f"{name}-h5") for name in ("whole", "broken"))
    assert len(whole) == 4
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name])
    assert not checkpoint.parent.exists()
    histories = [json.loads((tmp_path / name / "metrics.json").read_text())["history"] for name in ("whole", "broken")]
    assert histories[0] == histories[1]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_training_works_with_other_keras_backends(backend, folders, weights_file, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    arguments = command(folders, tmp_path / "bundle", weights_file, 6)
    subprocess.run(arguments, check=True, timeout=300, env=environment)
    history = json.loads((tmp_path / "bundle" / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.fixture(scope="module")
def trained(shared_folders, small_recipe, weights_file, tmp_path_factory):
    """Train a small network; return the result, the bundle and the messages."""
    root = tmp_path_factory.mktemp("run")
    said = []
    result = pipeline.train_bundle(
        shared_folders,
        root / "bundle",
        small_recipe,
        backbone_weights=str(weights_file),
        seed=1,
        excluded=["no/no03.png"],
        split="stratified",
        say=said.append,
    )
    return result, Bundle.open(root / "bundle"), said


def test_bundle_of_a_training_is_complete(trained, small_recipe):
    result, bundle, _ = trained
    bundle.verify()
    manifest = bundle.manifest
    split = Split.from_json((bundle.folder / "split.json").read_text())
    assert manifest.training.split_fingerprint == split.split_fingerprint
    assert [image.file for image in split.of("excluded")] == ["no/no03.png"]
    assert (manifest.training.train_images, manifest.training.test_images) == (23, 6)
    assert manifest.training.split == "stratified"
    assert manifest.preprocessing == small_recipe.preprocessing
    assert manifest.labels == ("no tumour", "tumour")
    assert "with and without a visible tumour" in manifest.intended_use
    assert "public" not in (bundle.folder / "MODEL_CARD.md").read_text(), "these data are not known to be public"
    assert manifest.metrics["accuracy"].low <= manifest.metrics["accuracy"].value <= manifest.metrics["accuracy"].high
    measured = json.loads((bundle.folder / "metrics.json").read_text())
    assert len(measured["history"]) == small_recipe.schedule.epochs
    np.testing.assert_array_equal([image["probabilities"] for image in measured["test"]], result.probabilities.tolist())


def test_intended_use_depends_on_the_labels():
    assert record.intended_use(Labels(("bleeding", "clear"), 0, {})).startswith(
        "Sorts pictures of the kind that it was trained on by label: bleeding, clear."
    )


def test_saved_model_reproduces_the_recorded_probabilities(trained, shared_folders, small_recipe):
    import keras

    from mri_edge.scans.readers import picture

    result, bundle, _ = trained
    model = keras.saving.load_model(bundle.path_of(bundle.artifact("model.keras")))
    scans = [shared_folders / image.file for image in result.split.of("test")]
    pixels = np.stack([small_recipe.preprocessing.resize_picture(picture.load(path)) for path in scans])
    # The saved model is another graph with the same float32 weights.
    np.testing.assert_allclose(
        model.predict(small_recipe.preprocessing.normalize(pixels), verbose=0), result.probabilities, atol=1e-5
    )


def test_report_is_self_contained(trained):
    _, bundle, _ = trained
    page = (bundle.folder / "report" / "index.html").read_text()
    maps = [path.name for path in (bundle.folder / "report").glob("*.png")]
    assert len(maps) == 18
    assert all(name.startswith("activation-") for name in maps)
    plots = {path.stem: path.read_text() for path in (bundle.folder / "report").glob("*.svg")}
    assert set(plots) == {"confusion-matrix", "roc", "accuracy", "loss", "model"}
    assert page.count('<svg role="img" aria-label="') == page.count("<svg") == len(plots)
    assert page.count("data:image/png;base64,") == 1 + len(maps)  # the scan above its maps
    assert page.count("<img alt=") == page.count("<img")
    assert "http" not in page
    assert "<script" not in page
    without_command = re.sub(r"<code>.*?</code>", "", page)
    assert "reference" not in without_command.replace("recipe reference", ""), "not the images of the reference"
    for fact in ("Research use only", "6 (3 no tumour, 3 tumour)", "seed 1", "stratified", "mri-edge", "tensorflow"):
        assert fact in page
    assert "tumour called no tumour" in page, "the confusion matrix names its labels"


def test_picture_of_a_scan_is_not_passed_on(trained, tmp_path):
    """A slim bundle has no report, and a full bundle is not packed."""
    from mri_edge.cli import run

    _, bundle, _ = trained
    assert (
        run(["bundle", "slim", str(bundle.folder), "--artifact", "model.keras", "--out", str(tmp_path / "slim")]) == 0
    )
    assert not (tmp_path / "slim" / "report").exists()
    assert run(["bundle", "pack", str(bundle.folder), "--out", str(tmp_path / "full.mribundle")]) == 3


def test_plots_are_readable_on_both_backgrounds(trained):
    """Every color of a plot is a variable, which a plot in a file of its own defines for both backgrounds."""
    _, bundle, _ = trained
    for path in (bundle.folder / "report").glob("*.svg"):
        svg = path.read_text()
        drawn = svg[svg.index("</style>") :]
        assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", drawn), path.name
        assert "prefers-color-scheme:dark" in svg
        xml.etree.ElementTree.fromstring(svg)  # noqa: S314 (our own file)


def test_report_shows_what_the_reference_published(trained):
    """Curves that were not published are not drawn: the plots say so, and show the published points."""
    from mri_edge.train.evaluation.metrics import roc
    from mri_edge.train.reports.plots import RocCurve
    from mri_edge.train.reports.report import _history_plot, _roc

    result, _, _ = trained
    curve = RocCurve("tumour", roc(result.truth == 1, result.probabilities[:, 1]))
    plot = _roc([curve], None, compare=True)
    assert plot.svg.count("reference: answers of") == 4  # twice in the legend, twice in the text for screen readers
    assert "reference: AUC 0.97, curve not published" in plot.svg
    assert "reference: loss not published" in _history_plot(result.history, "loss", compare=True).svg
    assert "test images, reference" in _history_plot(result.history, "accuracy", compare=True).svg


def test_reference_figures_are_shown_only_for_its_data_and_split(folders, small_recipe, monkeypatch):
    scans, _ = find_scans(folders)
    assert not pipeline.repeats_reference(small_recipe, "reference", scans)
    monkeypatch.setattr(reference, "DATA", fingerprint(scan.sha256 for scan in scans))
    assert pipeline.repeats_reference(small_recipe, "reference", scans)
    assert not pipeline.repeats_reference(small_recipe, "stratified", scans)
    assert not pipeline.repeats_reference(small_recipe, "reference", scans[1:])
    assert not pipeline.repeats_reference(dataclasses.replace(small_recipe, name="robust"), "reference", scans)


@pytest.mark.usefixtures("eager")
def test_no_split_divides_patients(folders, toy_reference, tmp_path):
    """Each patient has four pictures. Two patients share a picture, so they must be on the same side."""
    shutil.copy(folders / "yes" / "yes00.png", folders / "yes" / "yes15.png")
    files = [f"{name}/{name}{index:02}.png" for name, count in (("no", 14), ("yes", 16)) for index in range(count)]
    patient = {file: f"{file[:2]}{int(file[-6:-4]) // 4}" for file in files}
    csv = tmp_path / "patients.csv"
    csv.write_text("file,group\n" + "".join(f"{file},{one}\n" for file, one in patient.items()))
    out = tmp_path / "bundle"
    recipe = toy_reference.with_epochs(1)
    chosen = {"backbone_weights": "none", "seed": 1, "groups": csv}
    split = pipeline.train_bundle(folders, out, recipe, **chosen).split
    patients_by_role = {role: {patient[image.file] for image in split.of(role)} for role in ("train", "test")}
    assert patients_by_role["train"] | patients_by_role["test"] == set(patient.values())
    assert not patients_by_role["train"] & patients_by_role["test"]
    assert any({"ye0", "ye3"} <= patients for patients in patients_by_role.values())
    training = Bundle.open(out).manifest.training
    assert training.split == "grouped by patients in patients.csv, joined with near-duplicates"
    assert training.details["grouping"] == "patients in patients.csv, joined with near-duplicates"
    # The evaluation of these images says the same as the training, with the recorded groups and with the file.
    trained = Bundle.open(out).manifest.metrics
    area = trained["auc"]
    assert f"({area.low:.3f} to {area.high:.3f})" in (out / "report" / "roc.svg").read_text()
    for groups in (None, csv):
        record = evaluate(Bundle.open(out), folders, groups=groups)
        assert record["data"]["grouping"] == training.details["grouping"]
        for name, metric in record["metrics"].items():
            expected = trained[name]
            # Keras computes other batches, which changes the last digits of the probabilities.
            assert (metric["low"], metric["high"]) == pytest.approx((expected.low, expected.high), abs=1e-5), name
            assert metric["method"] == expected.method
    measured = json.loads((out / "metrics.json").read_text())
    assert [folder["method"] for folder in measured["folders"]] == [folder["method"] for folder in record["folders"]]


@pytest.mark.parametrize("recipe", [REFERENCE, ROBUST], ids=["reference", "robust"])
def test_training_rejects_a_split_that_would_divide_patients(recipe, folders, tmp_path):
    chosen = {"backbone_weights": "none", "seed": 1, "groups": "blocks", "split": "reference"}
    with pytest.raises(UsageError, match="--groups blocks:40 keeps groups of scans together, and split 'reference'"):
        pipeline.train_bundle(folders, tmp_path / "out", recipe, **chosen)


def test_missing_space_and_unfinished_work_are_reported_first(
    folders, small_recipe, weights_file, tmp_path, monkeypatch
):
    chosen = {"backbone_weights": str(weights_file), "seed": 1}
    monkeypatch.setattr(unfinished.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OutputError, match="5 MB free, this training needs 200 MB"):
        pipeline.train_bundle(folders, tmp_path / "out", small_recipe, **chosen)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"out: has no interrupted training\. Train without --resume"):
        pipeline.train_bundle(folders, tmp_path / "out", small_recipe, **chosen, resume=True)
    (tmp_path / ".out.training").mkdir(exist_ok=True)
    (tmp_path / ".out.training" / "identity").write_text("another")
    (tmp_path / ".out.training" / "checkpoint.npz").touch()
    with pytest.raises(OutputError, match=r"unfinished training.*--resume"):
        pipeline.train_bundle(folders, tmp_path / "out", small_recipe, **chosen)
    with pytest.raises(OutputError, match=r"another recipe, seed, data, backbone.* --overwrite without --resume"):
        pipeline.train_bundle(folders, tmp_path / "out", small_recipe, **chosen, resume=True)


def test_state_of_another_version_is_not_resumed(tmp_path, monkeypatch):
    work = unfinished.work_folder(tmp_path / "out", ["facts"], overwrite=False, resume=False)
    (work / "checkpoint.npz").touch()
    assert unfinished.work_folder(tmp_path / "out", ["facts"], overwrite=False, resume=True) == work
    monkeypatch.setattr(unfinished, "__version__", "0.0.1")
    with pytest.raises(OutputError, match="backbone or version of mri-edge"):
        unfinished.work_folder(tmp_path / "out", ["facts"], overwrite=False, resume=True)


@pytest.mark.parametrize("recipe", [REFERENCE, ROBUST], ids=["reference", "robust"])
def test_failed_checks_leave_nothing_that_blocks_the_next_training(
    recipe, folders, weights_file, tmp_path, monkeypatch
):
    """After invalid data, the next training needs neither --resume nor --overwrite."""
    (folders / "no" / "broken.png").write_bytes(b"hello")
    chosen = {"backbone_weights": str(weights_file), "seed": 1}
    with pytest.raises(DataError, match=r"1 of 31 scans cannot be read: no/broken\.png"):
        pipeline.train_bundle(folders, tmp_path / "out", recipe, **chosen)
    (folders / "no" / "broken.png").unlink()
    monkeypatch.setattr(unfinished.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OutputError, match="5 MB free"):
        pipeline.train_bundle(folders, tmp_path / "out", recipe, **chosen)


def test_single_class_is_rejected(small_recipe, weights_file, folders, tmp_path):
    for path in (folders / "yes").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no pictures in yes"):
        pipeline.train_bundle(folders, tmp_path / "out", small_recipe, backbone_weights=str(weights_file), seed=0)
