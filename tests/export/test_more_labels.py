"""A Keras model with four labels goes through export, predict in every engine, and the heatmap of its answer."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.engines import engine_files, open_engine
from mri_edge.export.formats import find_format, installed_formats
from mri_edge.export.parity.comparison import ReferenceImages, compare
from mri_edge.export.parity.document import document, page
from mri_edge.export.parity.gate import Gate
from mri_edge.scans.preprocessing import Preprocessing

LABELS = ("glioma", "meningioma", "notumor", "pituitary")
SIZE = 32
PREPROCESSING = '{"height": 32, "width": 32, "scale": 0.00392156862745098}'
ONNX_ENGINES = [file.NAME for file in engine_files().values() if ".onnx" in file.SUFFIXES and not file.missing()]
HEATMAPS = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")


@pytest.fixture(scope="module")
def four_folders(tmp_path_factory) -> Path:
    """40 pictures of each label: noise with a bright square in the corner of the label."""
    folder, rng = tmp_path_factory.mktemp("four"), np.random.default_rng(7)
    for index, label in enumerate(LABELS):
        (folder / label).mkdir()
        for number in range(40):
            pixels = rng.normal(60, 20, (SIZE, SIZE))
            row, column = 16 * (index // 2) + rng.integers(0, 6), 16 * (index % 2) + rng.integers(0, 6)
            pixels[row : row + 10, column : column + 10] += 120
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / label / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def exported(four_folders, tmp_path_factory) -> Path:
    """The bundle of a small seeded network with an artifact of every format."""
    import keras

    keras.utils.set_random_seed(2)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(4),
            layers.Conv2D(12, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(4, activation="softmax"),
        ]
    )
    files = [(path, index) for index, label in enumerate(LABELS) for path in sorted((four_folders / label).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(pixels / np.float32(255), np.array([label for _, label in files]), epochs=20, verbose=0)
    folder = tmp_path_factory.mktemp("exported")
    model.save(folder / "four.keras")
    options = ["--labels", ",".join(LABELS), "--preprocessing", PREPROCESSING, "--all", "--data", str(four_folders)]
    options += ["--calibration-images", "40"]
    assert run(["export", str(folder / "bundle"), "--from", str(folder / "four.keras"), *options]) == 0
    return folder / "bundle"


def test_the_bundle_has_no_positive_label_and_every_artifact_meets_its_gate(exported):
    manifest = Bundle.open(exported).manifest
    assert (manifest.labels, manifest.positive, manifest.threshold) == (LABELS, None, None)
    made = [artifact for artifact in manifest.artifacts if artifact.format != "keras"]
    assert {artifact.file for artifact in made} == {find_format(name).FILE for name in installed_formats()}
    assert {artifact.parity.verdict for artifact in made} == {"met"}
    assert {artifact.parity.images for artifact in made} == {120}  # all but the 40 that calibrate
    assert {artifact.parity.flips for artifact in made} == {0}


def test_the_parity_record_has_a_macro_auc_and_no_sensitivity(exported):
    content = json.loads((exported / "parity.json").read_text())
    assert content["positive"] is None
    for row in content["artefacts"].values():
        assert (row["images"], row["test_images"]) == (120, 32)
        assert row["auc"]["reference"] == row["auc"]["artefact"] == 1
        assert set(row["sensitivity"].values()) == set(row["specificity"].values()) == {None}
        best = [max(image["probabilities"]) for image in content["images"]]
        assert row["probabilities"] == pytest.approx(best, abs=0.1)
    html = (exported / "report" / "parity.html").read_text()
    assert "macro AUC" in html
    assert "Labels: glioma, meningioma, notumor, pituitary." in html
    assert "Probability of the label that Keras chose" in html
    assert "sensitivity" not in html
    assert "stroke-dasharray" not in html  # there is no threshold
    assert "Images whose label changes are red." in html  # the plot shows test images only
    assert "Newcombe" not in html


@pytest.mark.parametrize("engine", sorted(set(engine_files()) - {"fake"}))
def test_every_engine_gives_the_right_labels(exported, four_folders, engine, capfd):
    file = engine_files()[engine]
    if reason := file.missing():
        pytest.skip(reason)
    artifacts = [artifact.file for artifact in Bundle.open(exported).manifest.artifacts]
    opened = [name for name in artifacts if name.endswith(file.SUFFIXES)]
    assert opened
    for artifact in opened:
        options = ["--model", str(exported), "--engine", engine, "--artifact", artifact]
        assert run(["predict", str(four_folders), "-r", "--csv", *options]) == 0
        rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
        assert len(rows) == 160
        assert [row["label"] for row in rows] == [Path(row["file"]).parent.name for row in rows]


@pytest.mark.parametrize("artifact", HEATMAPS)
def test_the_heatmap_is_about_the_answer(exported, four_folders, tmp_path, artifact, capfd):
    """The evidence for a label lies in its corner of the picture."""
    for index, label in enumerate(LABELS):
        scan = four_folders / label / "00.png"
        options = ["--model", str(exported), "--artifact", artifact, "--heatmap", str(tmp_path / label)]
        assert run(["predict", str(scan), *options]) == 0
        assert (tmp_path / label / "00.png.png").is_file()
        for engine in ONNX_ENGINES:
            with Classifier.load(exported, artifact=artifact, engine=engine) as classifier:
                prediction = classifier.predict(scan, explain=True)
            assert prediction.explained == label
            quarters = prediction.heatmap.reshape(2, SIZE // 2, 2, SIZE // 2).sum(axis=(1, 3)).ravel()
            assert quarters.argmax() == index


def test_two_labels_with_a_positive_one_explain_that_one(trained, pictures, tmp_path):
    """The graph of two labels has no third output: its heatmap is about the positive label, whatever the answer is."""
    bundle = Path(shutil.copytree(trained, tmp_path / "bundle"))
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(pictures)]) == 0
    engine = open_engine(bundle / "model.onnx", provider="cpu")
    assert [output.name for output in engine.outputs] == ["probabilities", "features", "contributions"]
    engine.close()
    with Classifier.load(bundle, artifact="model.onnx") as classifier:
        predictions = [classifier.predict(pictures / label / "40.png", explain=True) for label in ("no", "yes")]
    assert [prediction.explained for prediction in predictions] == ["yes", "yes"]


def compared(manifest, reference, answer, labels):
    files = tuple(f"{index}.png" for index in range(len(labels)))
    images = ReferenceImages(files, ({},) * len(labels), np.asarray(labels), np.asarray(reference, np.float32))
    return images, compare(
        np.asarray(answer, np.float32), images, manifest, Gate(), engine="fake", provider="none", threads=1
    )


def test_macro_auc_is_that_of_scikit_learn(exported):
    from sklearn.metrics import roc_auc_score

    manifest, rng = Bundle.open(exported).manifest, np.random.default_rng(1)
    reference, answer = rng.dirichlet(np.ones(4), (2, 200)).astype(np.float32)
    labels = rng.integers(0, 4, 200)
    _, found = compared(manifest, reference, answer, labels)
    expected = [roc_auc_score(labels, scores, multi_class="ovr", average="macro") for scores in (reference, answer)]
    assert (found.auc.reference, found.auc.artifact) == pytest.approx(tuple(expected))
    assert found.accuracy.value == np.mean(answer.argmax(axis=1) == labels)
    assert len(found.flips) == np.sum(answer.argmax(axis=1) != reference.argmax(axis=1))
    assert found.max_difference == pytest.approx(np.abs(answer - reference).max())
    _, without = compared(manifest, reference, answer, labels % 3)
    assert without.auc.change is None  # no image has the last label


def test_a_flip_has_the_probability_of_each_answer(exported):
    manifest = Bundle.open(exported).manifest
    reference, answer = [[0.6, 0.2, 0.1, 0.1]], [[0.3, 0.5, 0.1, 0.1]]
    images, found = compared(manifest, reference, answer, [2])
    [flip] = found.flips
    assert (flip.truth, flip.reference_label, flip.artifact_label) == ("notumor", "glioma", "meningioma")
    assert (flip.reference_probability, flip.artifact_probability) == pytest.approx((0.6, 0.5))
    assert found.probabilities == pytest.approx((0.3,))  # of the label that Keras chose
    html = page(document(images, manifest, {"model.onnx": found.to_dict()}, {}), {"model.onnx": 1})
    assert "glioma (0.600)" in html
    assert "meningioma (0.500)" in html


def test_the_preprocessing_is_that_of_the_option(exported):
    assert Bundle.open(exported).manifest.preprocessing == Preprocessing(SIZE, SIZE, scale=1 / 255)
