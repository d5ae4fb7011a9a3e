"""The export command: its output, the errors it reports, and that an interrupted export leaves the bundle intact."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.teacher import TEACHER, TeacherAnswers
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Split
from mri_edge.cli import run
from mri_edge.errors import UsageError
from mri_edge.export.calibration import calibrator
from mri_edge.export.calibration.calibrator import choose_calibration
from mri_edge.export.calibration.images import digest, read_resized
from mri_edge.export.options import parse_description, positive_index
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import sha256_of

SMALL = Preprocessing(32, 32)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from mri_edge.cli import main; main()", "export", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def staging_of(bundle: Path) -> list[Path]:
    return list(bundle.parent.glob(f".{bundle.name}.*"))


def wait_for_staging(process: subprocess.Popen[str], bundle: Path, file: str) -> None:
    deadline = time.monotonic() + 120
    while not any((folder / file).exists() for folder in staging_of(bundle)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def noise(tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(rng.integers(0, 9, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_quantize_prints_a_table_and_writes_four_artifacts(bundle, pictures, capfd):
    assert run(["export", str(bundle), "--quantize", "--data", str(pictures)]) == 0
    printed, messages = capfd.readouterr()
    for file in ("model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite"):
        assert file in printed
        assert (bundle / file).is_file()
    *steps, report, next_step = messages.splitlines()
    # One line per step, with figures and times for each artifact. No log line of TensorFlow, tf2onnx or XNNPACK.
    assert all(re.match(r"\d+:\d\d  \w", line) for line in steps), messages
    figures = r"accuracy [01]\.\d{3} \([01]\.\d{3} to [01]\.\d{3}\)  0 of 60 labels change  met"
    times = r"\d+:\d\d elapsed, about \d+:\d\d left"
    assert re.search(rf"model\.onnx  \d\.\d MB  {figures}  artifact 1 of 4, {times}", messages)
    assert report == f"report: {bundle / 'report' / 'parity.html'}"
    assert (bundle / "report" / "parity.html").is_file()
    assert next_step == f"next: mri-edge predict scan.jpg --model {bundle}"
    Bundle.open(bundle).verify()


def test_artifacts_of_a_student_are_compared_with_its_teacher(bundle, pictures):
    images = len(Split.from_json((bundle / "split.json").read_bytes()).of("test"))
    answers = TeacherAnswers(("big (robust, seed 0)",), (1,) * images, ((0.25, 0.75),) * images)
    with rewrite_bundle(Bundle.open(bundle)) as writer:
        writer.add_document(TEACHER, answers.to_json())
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(pictures)]) == 0
    teacher = json.loads((bundle / "parity.json").read_text())["artefacts"]["model.onnx"]["teacher"]
    assert teacher["teachers"] == ["big (robust, seed 0)"]
    assert teacher["accuracy"]["value"] == 0.5  # its answer is always positive
    assert 0 < teacher["changed"] < images
    assert "Beside the teacher, big (robust, seed 0)" in (bundle / "report" / "parity.html").read_text()


def test_a_second_export_adds_and_replaces_artifacts(bundle, pictures):
    for formats in ("onnx,onnx-int8", "onnx-int8,tflite"):
        assert run(["export", str(bundle), "--formats", formats, "--data", str(pictures)]) == 0
    files = ("model.onnx", "model.int8.onnx", "model.tflite")
    assert [artifact.file for artifact in Bundle.open(bundle).manifest.artifacts] == [
        "model.keras",
        "model.onnx",
        *files[1:],
    ]
    assert set(json.loads((bundle / "parity.json").read_text())["artefacts"]) == set(files)
    Bundle.open(bundle).verify()


def test_an_artifact_that_fails_the_gate_leaves_the_bundle_unchanged(bundle, pictures, noise, capfd):
    assert run(["export", str(bundle), "--formats", "onnx-int8", "--data", str(pictures)]) == 0
    before = contents(bundle)
    arguments = ["--quantize", "--data", str(pictures), "--calibration", str(noise)]
    assert run(["export", str(bundle), *arguments]) == 5
    printed, messages = capfd.readouterr()
    assert "not met" in printed
    assert "mean |Δp|" in messages
    assert contents(bundle) == before
    assert not staging_of(bundle)


@pytest.mark.parametrize(("option", "value"), [("--max-difference", "0"), ("--mean-difference", "0")])
def test_options_set_the_limits_of_the_gate(bundle, pictures, option, value):
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(pictures), option, value]) == 5


def test_a_test_image_in_the_calibration_folder_is_refused(bundle, pictures, tmp_path, capfd):
    folder = tmp_path / "calibration"
    folder.mkdir()
    shutil.copy(pictures / "yes" / "45.png", folder / "copy.png")
    arguments = ["--formats", "onnx-int8", "--data", str(pictures), "--calibration", str(folder)]
    assert run(["export", str(bundle), *arguments]) == 2
    assert "copy.png: is the test image" in capfd.readouterr().err


@pytest.mark.parametrize("as_bytes", [True, False], ids=["same bytes", "same pixels"])
def test_a_training_copy_of_a_test_image_is_not_used_for_calibration(split, pictures, tmp_path, as_bytes):
    """The reference implementation's split puts duplicates in both roles; calibration must leave them out."""
    from mri_edge.export.exporter import Settings

    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    training_image, test_image = data / "no" / "00.png", data / "no" / "59.png"
    Image.open(test_image).save(training_image, compress_level=0)
    if as_bytes:
        shutil.copy(test_image, training_image)
    leaky = Split(tuple(replace(image, sha256=sha256_of(data / image.file)) for image in split.images))
    tests = {digest(read_resized(path, SMALL)): path for path, _ in leaky.locate(data, "test")}
    settings = Settings(("onnx-int8",), data, calibration_images=60)
    chosen = choose_calibration(leaky, SMALL, settings, tests)
    assert training_image not in chosen.files
    assert len(chosen.files) == chosen.record.images == 59


def test_identical_pictures_get_the_same_role(three_folders):
    from mri_edge.export.sources.external_model import split_pictures

    split = split_pictures(three_folders, {"a": ["a"], "b": ["b"], "c": ["c"]}, 0)  # the pictures of c are those of a
    roles = {
        image.sha256: {copy.role for copy in split.images if copy.sha256 == image.sha256} for image in split.images
    }
    assert all(len(roles_of_picture) == 1 for roles_of_picture in roles.values())
    assert len(split.of("test")) < len(split.of("train"))


@pytest.mark.parametrize("folder", [None, "all"], ids=["training images", "a folder"])
def test_held_out_images_cover_every_class_and_are_not_used_for_calibration(split, pictures, monkeypatch, folder):
    from mri_edge.export.exporter import Settings

    monkeypatch.setattr(calibrator, "HELD_OUT", 20)  # of 35; the first 20 are nearly all of one class
    trained = Split(tuple(image for image in split.images if image.role == "train"))
    calibration = pictures if folder else None
    settings = Settings(("onnx-int8",), pictures, calibration=calibration, calibration_images=25, search=True)
    chosen = choose_calibration(trained, SMALL, settings, {})
    labels = [path.parent.name for path in chosen.held_out]
    assert (len(labels), abs(labels.count("no") - labels.count("yes")) <= 2) == (20, True)
    assert not {sha256_of(file) for file in chosen.held_out} & {sha256_of(file) for file in chosen.files}


def test_every_label_has_a_test_image(tmp_path):
    from mri_edge.export.sources.external_model import split_pictures

    for label, count in (("many", 50), ("few", 2)):
        (tmp_path / label).mkdir()
        for index in range(count):
            (tmp_path / label / f"{index}.png").write_text(f"{label} {index}")
    labels = [image.label for image in split_pictures(tmp_path, {"many": ["many"], "few": ["few"]}, 0).of("test")]
    assert (labels.count(0), labels.count(1)) == (10, 1)


def test_what_is_no_file_is_no_picture(tmp_path):
    from mri_edge.export.sources.external_model import split_pictures

    folder = tmp_path / "no"
    (folder / "album.png").mkdir(parents=True)
    for name in ("1.png", "2.png", "album.png/3.png"):
        (folder / name).write_text(name)
    (folder / "dangling.png").symlink_to("nothing.png")
    os.mkfifo(folder / "pipe.png")
    images = split_pictures(tmp_path, {"no": ["no"]}, 0).images
    assert [image.file for image in images] == ["no/1.png", "no/2.png", "no/album.png/3.png"]


def test_what_cannot_be_read_is_named(tmp_path, as_user):
    unreadable = ["1.png", "sub", "sub/2.png"]
    for place, name in enumerate(unreadable):
        folder = tmp_path / str(place) / "no"
        (folder / "sub").mkdir(parents=True)
        for file in ("1.png", "sub/2.png"):
            (folder / file).write_text(file)
        (folder / name).chmod(0)
    code = f"""
from pathlib import Path
from mri_edge.errors import DataError
from mri_edge.export.sources.external_model import split_pictures
for place in "012":
    try:
        split_pictures(Path({str(tmp_path)!r}, place), {{"no": ["no"]}}, 0)
    except DataError as error:
        print(error)
"""
    done = subprocess.run([*as_user, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    for place, (name, line) in enumerate(zip(unreadable, done.stdout.splitlines(), strict=True)):
        path = tmp_path / str(place) / "no" / name
        path.chmod(0o700)
        assert line.startswith(f"{path}: cannot read (Permission denied)")


def test_search_chooses_the_recipe_with_the_smallest_difference_on_training_images(bundle, pictures):
    arguments = ["--formats", "onnx-int8", "--data", str(pictures), "--search", "--calibration-images", "40"]
    assert run(["export", str(bundle), *arguments]) == 0
    manifest = Bundle.open(bundle).manifest
    made = manifest.artifact("model.int8.onnx").made_with
    tried = made["search"]["tried"]
    assert made["search"]["images"] == 20  # of 60 training images, 40 are used for calibration
    assert len(tried) == 6
    best = min(tried, key=lambda candidate: candidate["mean_difference"])
    assert {name: best[name] for name in made["recipe"]} == made["recipe"]
    assert manifest.calibration.method == "search"
    assert run(["export", str(bundle), "--formats", "onnx-fp16", "--data", str(pictures)]) == 0  # changes no int8 range
    assert Bundle.open(bundle).manifest.calibration == manifest.calibration
    assert run(["export", str(bundle), "--formats", "tflite-int8", "--data", str(pictures)]) == 0
    methods = {
        files[0]: calibration.method for calibration, files in Bundle.open(bundle).manifest.calibrations().items()
    }
    assert methods == {"model.int8.onnx": "search", "model.int8.tflite": "minmax"}


def test_search_without_held_out_images_is_refused(bundle, pictures, capfd):
    arguments = ["--formats", "onnx-int8", "--data", str(pictures), "--search", "--calibration-images", "60"]
    assert run(["export", str(bundle), *arguments]) == 2
    assert "--calibration-images" in capfd.readouterr().err


def test_a_killed_export_leaves_the_bundle_intact_and_the_next_one_cleans_up(bundle, pictures, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert run(["export", str(bundle), "--formats", "onnx", "--data", str(pictures)]) == 0
    before = contents(bundle)
    process = start(bundle, "--quantize", "--data", pictures)
    wait_for_staging(process, bundle, "model.int8.onnx")
    process.kill()
    process.communicate()
    assert contents(bundle) == before
    Bundle.open(bundle).verify()
    assert staging_of(bundle), "the process was killed too late"
    assert list(temporary.iterdir()), "the process was killed too late"
    # The next export removes the folders that the killed one left beside the bundle and in TMPDIR.
    assert run(["export", str(bundle), "--formats", "tflite", "--data", str(pictures)]) == 0
    assert not staging_of(bundle)
    assert not list(temporary.iterdir())


def test_an_interrupted_export_leaves_the_bundle_intact(bundle, pictures):
    before = contents(bundle)
    process = start(bundle, "--quantize", "--data", pictures)
    wait_for_staging(process, bundle, "model.onnx")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, reason, command = messages.splitlines()
    assert reason == f"mri-edge: interrupted; {bundle} is as it was before. To export again:"
    assert command == f"  mri-edge export {bundle} --quantize --data {pictures}"
    assert contents(bundle) == before
    assert not staging_of(bundle)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB, which can hold the tiny bundle but not its artifacts."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_the_bundle_intact(trained, small_disk, pictures, capfd):
    bundle = Path(shutil.copytree(trained, small_disk / "bundle"))
    before = contents(bundle)
    assert run(["export", str(bundle), "--all", "--data", str(pictures)]) == 6
    assert "cannot write (No space left on device)" in capfd.readouterr().err
    assert contents(bundle) == before
    assert not staging_of(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "missing"),
        (lambda data: (data / "yes" / "40.png").unlink(), "40.png"),
        (lambda data: (data / "yes" / "40.png").write_bytes(b"other"), "differs"),
    ],
    ids=["no data", "one image missing", "one image changed"],
)
def test_data_that_differs_from_the_training_data_is_refused(bundle, pictures, tmp_path, capfd, change, message):
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    change(data)
    assert run(["export", str(bundle), "--data", str(data)]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "onnx,coreml"], "unknown format 'coreml'"),
        (["--formats", "onnx", "--all"], "exclude one another"),
        (["--formats", " , "], "--formats names no format"),
        (["--formats", "onnx-int8", "--seed", "-1"], "'--seed': -1 is not in the range 0<=x<=2147483647"),
        (["--labels", "no,yes"], "--labels applies only to a model made elsewhere"),
        (["--positive", "yes"], "--positive applies only to a model made elsewhere"),
        (["--preprocessing", "{}"], "--preprocessing applies only to a model made elsewhere"),
        (["--activation", "softmax"], "--activation applies only to a model made elsewhere"),
        (["--overwrite"], "--overwrite applies only to a model made elsewhere. Add --from MODEL"),
        (["--calibration", "."], "--calibration is about calibration, and no format is calibrated (onnx, tflite)"),
        (["--formats", "tflite-fp16", "--search"], "--search is about calibration"),
        (
            ["--formats", "onnx-fp16", "--search"],
            "--search is about the ranges of int8, and no format is int8 (onnx-fp16)",
        ),
        (
            ["--formats", "onnx-fp16", "--calibration-method", "entropy"],
            "--calibration-method is about the ranges of int8",
        ),
        (["--flip-rate", "0"], "--flip-rate"),  # no number of images can show that the rate is 0
        (["--from", "x.keras"], "--labels"),
        (["--from", "x.keras", "--labels", "a,b"], "--preprocessing"),
        (["--from", "x.keras", "--labels", "a,b", "--preprocessing", "none.json"], "cannot read"),
        (["--from", "x.keras", "--labels", "a,b", "--preprocessing", "{}"], "which label is the positive one?"),
        (["--from", "x.keras", "--labels", "a,b", "--preprocessing", "{}", "--positive", "c"], "no label 'c'"),
    ],
)
def test_usage_errors_are_reported(bundle, pictures, capfd, arguments, message):
    assert run(["export", str(bundle), "--data", str(pictures), *arguments]) == 2
    assert message in capfd.readouterr().err


def test_the_positive_label_is_given_or_known():
    assert positive_index(("no", "yes"), None) == 1
    assert positive_index(("Glioma", "notumor"), None) == 0
    assert positive_index(("no", "yes"), "no") == 0
    with pytest.raises(UsageError, match="which label"):
        positive_index(("glioma", "pituitary"), None)


def test_more_than_two_labels_need_no_positive_one():
    assert positive_index(("notumor", "glioma", "pituitary"), None) is None
    assert positive_index(("notumor", "glioma", "pituitary"), "glioma") == 1


PLAIN = '{"height": 32, "width": 32, "scale": 1}'


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    """A folder of models: two that can be exported, of three classes and of one sigmoid, and some that cannot."""
    import keras

    keras.utils.set_random_seed(1)
    layers, folder = keras.layers, tmp_path_factory.mktemp("external")
    entry = keras.Input((32, 32, 3))
    body = layers.Conv2D(4, 3, strides=2)(layers.Rescaling(1 / 127.5, offset=-1)(entry))
    body = layers.GlobalAveragePooling2D()(layers.ReLU(6)(layers.BatchNormalization()(body)))
    three = keras.Model(entry, layers.Dense(3, activation="softmax")(body))
    three.save(folder / "three.keras")
    three.export(folder / "three", verbose=False)
    keras.Model(entry, layers.Dense(1, activation="sigmoid")(body)).save(folder / "sigmoid.keras")
    keras.Model(entry, layers.Dense(3)(body)).save(folder / "logits.keras")
    keras.Model(entry, layers.Dense(3, activation="softmax")(layers.Lambda(lambda x: x * 2)(body))).save(
        folder / "code.keras"
    )
    (folder / "text.keras").write_text("not a model")
    (folder / "pointer.h5").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    return folder


@pytest.fixture
def three_folders(pictures, tmp_path):
    data = tmp_path / "three"
    for label, source in (("a", "no"), ("b", "yes"), ("c", "no")):
        shutil.copytree(pictures / source, data / label)
    return data


@pytest.mark.parametrize("name", ["three.keras", "three"])
def test_an_external_model_is_exported(external, three_folders, tmp_path, name):
    out = tmp_path / "new"
    arguments = ["--from", str(external / name), "--labels", "a,b,c", "--preprocessing", PLAIN, "--quantize"]
    arguments += ["--positive", "b", "--flip-rate", "0.5"]
    assert run(["export", str(out), *arguments, "--data", str(three_folders)]) == 0
    bundle = Bundle.open(out)
    bundle.verify()
    assert (bundle.manifest.labels, bundle.manifest.positive) == (("a", "b", "c"), 1)
    made = [artifact for artifact in bundle.manifest.artifacts if artifact.format != "keras"]
    assert [artifact.output.shape for artifact in made] == [(None, 3)] * 4
    assert max(artifact.parity.max_difference for artifact in made if artifact.precision == "float32") < 1e-5


def test_folders_with_other_names_are_mapped_to_the_labels(external, three_folders, tmp_path, capfd):
    (three_folders / "other").mkdir()
    out = tmp_path / "new"
    arguments = ["--from", str(external / "sigmoid.keras"), "--preprocessing", PLAIN, "--formats", "onnx"]
    arguments += ["--labels", "a=healthy,b=tumor,c=healthy", "--positive", "tumor", "--data", str(three_folders)]
    assert run(["export", str(out), *arguments]) == 0
    line = "labels: healthy = a, c; tumor = b (positive: tumor); folders not used: other"
    assert capfd.readouterr().err.startswith(f"{line}\n")
    manifest = Bundle.open(out).manifest
    assert (manifest.labels, manifest.positive) == (("healthy", "tumor"), 1)
    assert manifest.training.classes == {"healthy": ["a", "c"], "tumor": ["b"]}
    split = Split.from_json((out / "split.json").read_bytes())
    assert {(image.file[0], image.label) for image in split.images} == {("a", 0), ("b", 1), ("c", 0)}


def test_every_folder_is_a_label(external, three_folders, tmp_path, capfd):
    out = tmp_path / "new"
    arguments = ["--from", str(external / "three.keras"), "--preprocessing", PLAIN, "--formats", "onnx"]
    assert run(["export", str(out), *arguments, "--labels", "folders", "--data", str(three_folders)]) == 0
    assert capfd.readouterr().err.startswith("labels: a; b; c (no positive label)\n")
    assert (Bundle.open(out).manifest.labels, Bundle.open(out).manifest.positive) == (("a", "b", "c"), None)


@pytest.mark.parametrize("labels", ["a=x,b=x", "a=x,a=y", "a,a", "a", "=x,b", "folders"])
def test_labels_that_cannot_be_told_apart_are_refused(external, three_folders, tmp_path, capfd, labels):
    (tmp_path / "empty").mkdir()
    data = tmp_path / "empty" if labels == "folders" else three_folders
    arguments = ["--from", str(external / "sigmoid.keras"), "--preprocessing", PLAIN, "--labels", labels]
    assert run(["export", str(tmp_path / "new"), *arguments, "--data", str(data)]) == 2
    assert "at least two different --labels" in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["{data}/a", ".", "..", "../three/a", "./a", "a/../b", "a\\b", "C:a"])
def test_a_folder_of_a_label_is_inside_the_data(three_folders, tmp_path, capfd, folder):
    labels = f"{folder.format(data=three_folders)}=no,b=yes"
    arguments = ["--from", "m.keras", "--preprocessing", PLAIN, "--labels", labels, "--data", str(three_folders)]
    assert run(["export", str(tmp_path / "new"), *arguments]) == 2
    assert f"does not name a folder inside {three_folders}" in capfd.readouterr().err


@pytest.mark.parametrize("labels", ["a=no,a/b=yes", "a/b/c=no,d=yes,a=yes", "a/b/,a"])
def test_a_folder_inside_another_one_is_refused(three_folders, tmp_path, capfd, labels):
    """Its images would have two labels."""
    arguments = ["--from", "m.keras", "--preprocessing", PLAIN, "--labels", labels, "--data", str(three_folders)]
    assert run(["export", str(tmp_path / "new"), *arguments]) == 2
    assert "is a part of 'a'" in capfd.readouterr().err


@pytest.mark.parametrize("labels", ["folders", "no,yes"])
@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_data_that_is_no_folder_is_refused(tmp_path, capfd, labels, name):
    (tmp_path / "file").write_text("")
    arguments = ["--from", "m.keras", "--preprocessing", PLAIN, "--labels", labels, "--data", str(tmp_path / name)]
    assert run(["export", str(tmp_path / "new"), *arguments]) == 2
    assert f"--data: {tmp_path / name}: cannot read (" in capfd.readouterr().err


def test_folders_may_end_in_a_slash(three_folders):
    described = parse_description("new", three_folders, ("a/", "b/=yes"), "yes", PLAIN)
    assert described.classes == {"a": ["a"], "yes": ["b"]}


def test_an_external_model_with_one_sigmoid_is_exported(external, pictures, tmp_path, monkeypatch):
    out = tmp_path / "new"
    arguments = [
        "--from",
        str(external / "sigmoid.keras"),
        "--labels",
        "no,yes",
        "--preprocessing",
        PLAIN,
        "--quantize",
    ]
    arguments += ["--flip-rate", "0.5", "--seed", "3", "--data", str(pictures)]
    monkeypatch.setattr(sys, "argv", ["mri-edge", "export", str(out), *arguments])
    assert run(["export", str(out), *arguments]) == 0
    manifest = Bundle.open(out).manifest
    made = [artifact for artifact in manifest.artifacts if artifact.format != "keras"]
    assert [artifact.output.shape for artifact in made] == [(None, 2)] * 4
    assert manifest.name == out.name
    assert manifest.training.seed == 3  # which drew the split
    assert "export PATH --from PATH --labels no,yes" in manifest.creation.command
    assert str(tmp_path) not in manifest.to_json()
    assert str(pictures) not in manifest.to_json()


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("logits.keras", "a,b,c", "not probabilities"),
        ("code.keras", "a,b,c", "Lambda layer"),
        ("text.keras", "a,b,c", "Keras cannot open it"),
        ("three.keras", "a,b", "gives 3 classes"),
        ("missing.keras", "a,b,c", "missing.keras"),
        ("pointer.h5", "a,b,c", "Run 'git lfs pull'"),
    ],
)
def test_an_unsuitable_external_model_is_refused(external, three_folders, tmp_path, capfd, name, labels, message):
    out = tmp_path / "new"
    arguments = ["--from", str(external / name), "--labels", labels, "--preprocessing", PLAIN, "--positive", "a"]
    assert run(["export", str(out), *arguments, "--data", str(three_folders)]) == 3
    errors = capfd.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert not staging_of(out)


@pytest.mark.parametrize("damage", ["truncated", "another file"])
def test_a_bundle_with_a_damaged_model_is_refused(bundle, pictures, capfd, damage):
    """The hash in the manifest is correct, because the model was damaged before the bundle was made."""
    path = bundle / "model.keras"
    path.write_bytes(path.read_bytes()[:3000] if damage == "truncated" else b"PK\x03\x04 and no more")
    opened = json.loads((bundle / "manifest.json").read_text())
    entry = next(artifact for artifact in opened["artefacts"] if artifact["file"] == "model.keras")
    entry.update(size_bytes=path.stat().st_size, sha256=sha256_of(path))
    (bundle / "manifest.json").write_text(json.dumps(opened))
    before = contents(bundle)
    assert run(["export", str(bundle), "--data", str(pictures), "--formats", "onnx"]) == 3
    assert "Keras cannot open it" in capfd.readouterr().err
    assert contents(bundle) == before
