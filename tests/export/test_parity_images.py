"""Parity is counted on all images that did not calibrate, accuracy on the test images alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.cli import run
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import record
from mri_edge.export.parity.comparison import ReferenceImages, compare
from mri_edge.export.parity.document import document, page
from mri_edge.export.parity.gate import DEFAULT_GATES
from mri_edge.export.parity.images import Others, add_others, read_tests, run_batches
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

SMALL = Preprocessing(32, 32)
INT8 = DEFAULT_GATES["int8"]
OTHERS = Others(100, 3000, 0, "0" * 64)


def judged(manifest, reference, answer, labels, *, others=OTHERS):
    files = tuple(f"{index}.png" for index in range(len(labels)))
    tests = len(labels) - (others.images if others else 0)
    images = ReferenceImages(files, ({},) * tests, np.asarray(labels), np.asarray(reference, np.float32), others=others)
    answer = np.asarray(answer, np.float32)
    return compare(answer, images, manifest, INT8, engine="fake", provider="none", threads=1), images


def test_a_perfect_artifact_is_met_with_others_and_undecided_without(tiny_manifest):
    reference = np.tile((0.2, 0.8), (151, 1))
    found, _ = judged(tiny_manifest, reference, reference, [1] * 151)
    assert (found.verdict, found.images, found.test_images, found.summary().images) == ("met", 151, 51, 151)
    assert (found.accuracy.value, len(found.probabilities)) == (1, 51)
    alone, _ = judged(tiny_manifest, reference[:51], reference[:51], [1] * 51, others=None)
    assert (alone.verdict, alone.images, alone.test_images) == ("undecided", 51, 51)


def test_labels_that_flip_only_on_other_images_are_not_met(tiny_manifest):
    reference = np.tile((0.49, 0.51), (151, 1))
    answer = reference.copy()
    answer[51:71] = (0.51, 0.49)
    found, images = judged(tiny_manifest, reference, answer, [1] * 151)
    assert found.verdict == "not met"
    assert found.reasons == ("20 of 151 labels change, the limit is 5.0%",)
    assert [flip.file for flip in found.flips] == [f"{index}.png" for index in range(51, 71)]
    # Right and wrong answers are those for the test images, where nothing changes.
    assert (found.accuracy.value, found.mcnemar_p, found.sensitivity.change) == (1, 1, 0)
    assert found.test_flips == 0
    answer[:3] = (0.51, 0.49)
    more, _ = judged(tiny_manifest, reference, answer, [1] * 151)
    assert (len(more.flips), more.test_flips) == (23, 3)
    content = document(images, tiny_manifest, {"model.int8.onnx": found.to_dict()}, {})
    assert len(content["images"]) == 51
    assert content["artefacts"]["model.int8.onnx"]["others"] == {
        "images": 100, "available": 3000, "seed": 0, "fingerprint": "0" * 64
    }  # fmt: skip
    html = page(content, {"model.int8.onnx": 1000})
    assert "20 of 151" in html
    assert "51 test images, where 0 labels change, and 100 of 3,000 others, drawn with seed 0" in html
    assert html.count("<circle") == 51 + 20


def test_differences_of_the_other_images_count(tiny_manifest):
    reference = np.tile((0.2, 0.8), (151, 1))
    answer = reference.copy()
    answer[51:] += (0.04, -0.04)
    found, _ = judged(tiny_manifest, reference, answer, [1] * 151)
    assert found.mean_difference == pytest.approx(0.04 * 100 / 151, abs=1e-6)
    assert found.verdict == "not met"


@pytest.fixture
def data(tmp_path):
    """65 files: 20 test images, 30 for training, 10 for validation, and 5 damaged ones that are excluded."""
    folder, rng, images = tmp_path / "data", np.random.default_rng(0), []
    folder.mkdir()
    roles = ["test"] * 20 + ["train"] * 30 + ["validation"] * 10 + ["excluded"] * 5
    for index, role in enumerate(roles):
        path = folder / f"{index:02}.png"
        if role == "excluded":
            path.write_bytes(b"damaged")
        else:
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        images.append(SplitImage(path.name, sha256_of(path), index % 2, role))
    return folder, Split(tuple(images))


def chosen(data, calibrating=(), **options):
    folder, split = data
    files = tuple(folder / name for name in calibrating)
    calibrator = Calibrator(files, SMALL, record(files, "minmax", 0)) if files else None
    tests = read_tests(split, folder, SMALL)
    return add_others(tests, split, folder, SMALL, calibrator, **{"seed": 0, "step": lambda text: None, **options})


def test_every_role_but_the_excluded_is_compared_and_no_image_that_calibrated(data):
    calibrating = [f"{index:02}.png" for index in range(20, 35)]
    found = chosen(data, calibrating)
    assert found.files[:20] == tuple(f"{index:02}.png" for index in range(20))
    assert set(found.files[20:]) == {f"{index:02}.png" for index in range(35, 60)}
    assert (found.others.images, found.others.available) == (25, 25)
    assert len(found.pixels) == len(found.labels) == len(found.files) == 45
    assert len(found.stages) == 20
    assert str(found) == "45 images: 20 test images and 25 of 25 others that did not calibrate"


@pytest.mark.parametrize("of", ["00.png", "20.png"], ids=["a test image", "a calibration image"])
@pytest.mark.parametrize("as_bytes", [True, False], ids=["same bytes", "same pixels"])
def test_a_copy_is_not_compared(data, of, as_bytes):
    folder, split = data
    if as_bytes:
        shutil.copy(folder / of, folder / "59.png")
    else:
        Image.open(folder / of).save(folder / "59.png", compress_level=0)
    copy = SplitImage("59.png", sha256_of(folder / "59.png"), 1, "validation")
    split = Split(tuple(copy if image.file == copy.file else image for image in split.images))
    found = chosen((folder, split), ["20.png"])
    assert not {"20.png", "59.png"} & set(found.files)
    assert found.others.images == 38


def test_the_number_is_bounded_and_the_seed_draws(data):
    first, again, other = (chosen(data, largest=30, seed=seed) for seed in (0, 0, 1))
    assert (len(first.files), first.others.images, first.others.available) == (30, 10, 40)
    assert first.files == again.files
    assert set(first.files[20:]) != set(other.files[20:])
    assert first.others.fingerprint == again.others.fingerprint != other.others.fingerprint
    assert sorted(first.labels[20:].tolist()) == [0] * 5 + [1] * 5
    assert chosen(data, largest=10).files == first.files[:20]  # test images are never left out


def test_missing_and_changed_files_are_not_compared(data):
    folder, _ = data
    for index in range(20, 58):
        (folder / f"{index}.png").unlink()
    (folder / "58.png").write_bytes(b"changed")
    assert chosen(data).files[20:] == ("59.png",)
    (folder / "59.png").unlink()
    alone = chosen(data)
    assert alone.others is None
    assert str(alone) == "20 test images; the data folder has no others that did not calibrate"


def test_progress_is_reported():
    reports = []
    pixels = np.zeros((1100, 1, 1, 3), np.uint8)
    answers = run_batches(lambda batch: np.zeros((len(batch), 2), np.float32), pixels, 16, reports.append)
    assert answers.shape == (1100, 2)
    assert reports == ["512 of 1,100 images", "1,024 of 1,100 images"]


def test_export_counts_parity_on_training_images_that_did_not_calibrate(bundle, pictures, capfd):
    arguments = ["--formats", "onnx-int8", "--calibration-images", "20", "--data", str(pictures)]
    assert run(["export", str(bundle), *arguments]) == 0
    printed, messages = capfd.readouterr()
    assert "comparing on 100 images: 60 test images and 40 of 40 others that did not calibrate" in messages
    assert re_flips(printed) == "0/100"
    assert "Accuracy on 60 test images; the rest on these and 40 others." in printed
    content = json.loads((bundle / "parity.json").read_text())
    row = content["artefacts"]["model.int8.onnx"]
    assert (row["images"], row["test_images"], row["others"]["images"]) == (100, 60, 40)
    assert len(content["images"]) == len(row["probabilities"]) == 60
    assert Bundle.open(bundle).manifest.artifact("model.int8.onnx").parity.images == 100
    # A second export calibrates with all of the training images. Each artifact keeps its own count.
    assert run(["export", str(bundle), "--formats", "onnx,onnx-fp16", "--data", str(pictures)]) == 0
    printed, _ = capfd.readouterr()
    assert "All figures on 60 test images: --data has no other images that did not calibrate." in printed
    rows = json.loads((bundle / "parity.json").read_text())["artefacts"]
    assert {file: row["images"] for file, row in rows.items()} == {
        "model.int8.onnx": 100, "model.onnx": 60, "model.fp16.onnx": 60
    }  # fmt: skip
    Bundle.open(bundle).verify()


def re_flips(printed: str) -> str:
    [line] = [line for line in printed.splitlines() if line.startswith("model.int8.onnx  ")]
    return line.split()[-2]


def test_a_folder_with_only_the_test_images_is_enough_for_float_formats(bundle, pictures, tmp_path, split, capfd):
    for image in split.of("test"):
        (tmp_path / "tests" / image.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / image.file, tmp_path / "tests" / image.file)
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(tmp_path / "tests")]) == 0
    printed, messages = capfd.readouterr()
    assert "comparing on 60 test images; the data folder has no others that did not calibrate" in messages
    assert "0/60" in printed


def test_a_record_of_an_earlier_release_is_kept(bundle, pictures):
    """Earlier releases compared on the test images alone, without ``test_images`` and ``others``."""
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(pictures)]) == 0
    old = Bundle.open(bundle)
    content = json.loads((bundle / "parity.json").read_text())
    row = content["artefacts"]["model.onnx"]
    del row["test_images"], row["test_flips"], row["others"]
    row["images"] = 60
    copy = bundle.parent / "copy"
    with new_bundle(copy, old.manifest) as writer:
        for entry in old.entries():
            shutil.copy(bundle / entry.file, writer.path(entry.file))
        writer.add_document("parity.json", json.dumps(content))
    assert run(["export", str(copy), "--formats", "tflite", "--data", str(pictures)]) == 0
    rows = json.loads((copy / "parity.json").read_text())["artefacts"]
    assert (rows["model.onnx"]["test_images"], rows["model.onnx"]["others"]) == (60, None)
    assert (rows["model.tflite"]["images"], rows["model.tflite"]["test_images"]) == (120, 60)
    html = (copy / "report" / "parity.html").read_text()
    assert html.count("<td>0 of 60</td>") == 3  # all images of one artifact, the test images of both
    assert html.count("<td>0 of 120</td>") == 1
    assert "Newcombe" in html
    assert "red, also if they are not test images." in html


def test_comparisons_at_another_threshold_are_dropped(bundle, pictures, capfd):
    assert run(["export", str(bundle), "--formats", "onnx,tflite", "--data", str(pictures)]) == 0
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.update(threshold=0.9)
    assert run(["export", str(bundle), "--formats", "tflite", "--data", str(pictures)]) == 0
    parity = json.loads((bundle / "parity.json").read_text())
    assert (parity["threshold"], list(parity["artefacts"])) == (0.9, ["model.tflite"])
    manifest = Bundle.open(bundle).manifest
    assert manifest.artifact("model.onnx").parity is None
    assert manifest.artifact("model.tflite").parity.verdict == "met"
    for content in ("[]", "{"):
        (bundle / "parity.json").write_text(content)
        capfd.readouterr()
        code = run(["export", str(bundle), "--formats", "tflite", "--data", str(pictures)])
        assert code in (0, 3)
        assert "Traceback" not in capfd.readouterr().err


def test_slim_keeps_the_counts_and_replaces_every_name(bundle, pictures, tmp_path):
    arguments = ["--formats", "onnx-int8", "--calibration-images", "20", "--data", str(pictures), "--flip-rate", "0.9"]
    assert run(["export", str(bundle), *arguments]) == 0
    content = json.loads((bundle / "parity.json").read_text())
    other = next(image.file for image in Split.from_json((bundle / SPLIT).read_bytes()).of("train"))
    flip = {"file": other, "truth": "no", "reference_label": "no", "artefact_label": "yes"}
    content["artefacts"]["model.int8.onnx"]["flips"] = [
        flip | {"reference_probability": 0.4, "artefact_probability": 0.6}
    ]
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document("parity.json", json.dumps(content))
    slim = tmp_path / "slim"
    assert run(["bundle", "slim", str(bundle), "--artifact", "model.int8.onnx", "--out", str(slim)]) == 0
    text = (slim / "parity.json").read_text()
    assert ".png" not in text
    row = json.loads(text)["artefacts"]["model.int8.onnx"]
    assert (row["images"], row["test_images"]) == (100, 60)
    assert row["flips"][0]["file"] == sha256_of(Path(pictures) / other)[:16]
    assert run(["verify", str(slim)]) == 0
    assert run(["info", str(slim)]) == 0
