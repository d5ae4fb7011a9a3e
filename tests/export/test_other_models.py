"""Models made elsewhere: gray input, logits, any size, no pictures, and layers that a format does not know."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import KERAS
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.engines import open_engine
from mri_edge.export.formats import installed_formats
from mri_edge.export.sources.layers import layer_of, unsupported

PLAIN = '{"height": 32, "width": 32, "scale": 0.00392156862745098}'
ONNX = {"model.onnx", "model.fp16.onnx", "model.int8.onnx"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of small models, each named after what is special about it."""
    import keras

    keras.utils.set_random_seed(4)
    layers, folder = keras.layers, tmp_path_factory.mktemp("models")

    def build(shape, outputs=2, activation="softmax", inner=lambda hidden: hidden):
        entry = keras.Input(shape)
        hidden = layers.Conv2D(6, 3, strides=2, activation="relu")(entry)
        hidden = layers.GlobalAveragePooling2D()(inner(hidden))
        head = layers.Dense(outputs, activation=activation, kernel_initializer=keras.initializers.RandomNormal(0, 2))
        return keras.Model(entry, head(hidden))

    gray = build((32, 32, 1))
    gray.save(folder / "gray.keras")
    gray.export(folder / "gray", verbose=False)
    build((None, None, 3)).save(folder / "any-size.keras")
    build((None, None, 1), activation=None).save(folder / "gray-logits.h5")
    build((32, 32, 3), activation=None).save(folder / "logits.keras")
    build((32, 32, 3), 1, None).save(folder / "logit.keras")
    build((32, 32, 3), 4, None).save(folder / "four-logits.keras")
    build((32, 32, 3)).save(folder / "probabilities.keras")
    resizing = layers.Resizing(8, 8, interpolation="bicubic", name="smooth")
    build((32, 32, 3), inner=resizing).save(folder / "bicubic.keras")
    resizing = layers.Resizing(8, 8, interpolation="lanczos5", name="sharp")
    build((32, 32, 3), inner=resizing).save(folder / "lanczos.keras")
    return folder


def export(model: Path, out: Path, *arguments: object, labels: str = "no,yes", preprocessing: str = PLAIN) -> int:
    named = ["--labels", labels, "--preprocessing", preprocessing]
    gate = ["--flip-rate", "0.5"] if "--data" in arguments else []  # the networks are too small to be quantized well
    return run(["export", str(out), "--from", str(model), *named, *gate, *map(str, arguments)])


def made(out: Path) -> set[str]:
    return {artifact.file for artifact in Bundle.open(out).manifest.artifacts} - {KERAS}


def run_artifact(path: Path, pixels) -> np.ndarray:
    engine = open_engine(path, provider="cpu")
    answer = engine.run(pixels)
    engine.close()
    return answer


def load(path: Path):
    from mri_edge.export.sources.keras_model import load as load_keras_model

    return load_keras_model(path)


@pytest.fixture
def color_pixels():
    """Noise with more red than blue, because both have the same gray on average otherwise."""
    return np.random.default_rng(0).integers(0, (256, 256, 64), (5, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["gray.keras", "gray"])
def test_a_gray_model_gets_the_gray_values_of_color_pictures(models, pictures, tmp_path, color_pixels, name):
    out = tmp_path / "new"
    assert export(models / name, out, "--formats", "onnx,onnx-int8,tflite", "--data", pictures) == 0
    gray = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in color_pixels])[..., None]
    expected = np.asarray(load(models / "gray.keras")(gray / np.float32(255)))
    for file in ("model.onnx", "model.tflite"):  # Pillow rounds gray values
        assert np.abs(run_artifact(out / file, color_pixels) - expected).max() < 2e-3
    assert run(["predict", str(pictures / "no" / "00.png"), "--model", str(out)]) == 0


def test_a_gray_model_in_bgr_weighs_the_right_channels(models, pictures, tmp_path, color_pixels):
    out = tmp_path / "new"
    bgr = PLAIN.replace("}", ', "channel_order": "BGR"}')
    assert export(models / "gray.keras", out, "--formats", "onnx", "--data", pictures, preprocessing=bgr) == 0
    gray = np.stack([np.asarray(Image.fromarray(row).convert("L")) for row in color_pixels])[..., None]
    expected = np.asarray(load(models / "gray.keras")(gray / np.float32(255)))
    assert np.abs(run_artifact(out / "model.onnx", color_pixels) - expected).max() < 2e-3


def test_a_gray_model_needs_one_mean(models, pictures, tmp_path, capfd):
    means = PLAIN.replace("}", ', "mean": [0.1, 0.2, 0.3]}')
    assert export(models / "gray.keras", tmp_path / "new", "--data", pictures, preprocessing=means) == 3
    assert "Repeat the value of the gray channel three times" in capfd.readouterr().err


def test_the_adapted_model_is_in_the_bundle_and_can_be_exported_again(models, pictures, tmp_path):
    out = tmp_path / "new"
    data = ["--data", str(pictures)]
    assert export(models / "gray-logits.h5", out, "--activation", "softmax", "--formats", "onnx", *data) == 0
    assert run(["export", str(out), "--formats", "tflite", *data]) == 0
    assert made(out) == {"model.onnx", "model.tflite"}
    bundle = Bundle.open(out)
    bundle.verify()
    assert all(bundle.artifact(file).parity for file in made(out))  # the first comparison is kept
    reference = json.loads((out / "parity.json").read_text())["reference"]
    assert reference == {"file": KERAS, "sha256": bundle.artifact(KERAS).sha256}


def test_a_model_of_any_size_gets_that_of_the_preprocessing(models, pictures, tmp_path):
    out = tmp_path / "new"
    assert export(models / "any-size.keras", out, "--formats", "onnx,tflite", "--data", pictures) == 0
    assert Bundle.open(out).artifact("model.onnx").input.shape == (None, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "activation", "labels"),
    [
        ("logits.keras", "softmax", "no,yes"),
        ("logit.keras", "sigmoid", "no,yes"),
        ("four-logits.keras", "softmax", "a,b,c,d"),
    ],
)
def test_an_activation_turns_logits_into_probabilities(models, tmp_path, color_pixels, name, activation, labels):
    out = tmp_path / "new"
    assert export(models / name, out, "--activation", activation, labels=labels) == 0
    logits = np.asarray(load(models / name)(color_pixels / np.float32(255)), np.float64)
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for file in ("model.onnx", "model.tflite"):
        assert run_artifact(out / file, color_pixels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("logits.keras", [], "If they are logits, add --activation softmax"),
        ("logit.keras", [], "If they are logits, add --activation sigmoid"),
        ("logits.keras", ["--activation", "sigmoid"], "Use --activation softmax"),
        ("logit.keras", ["--activation", "softmax"], "Use --activation sigmoid"),
        ("probabilities.keras", ["--activation", "softmax"], "applies softmax already"),
    ],
)
def test_outputs_that_are_not_probabilities_are_refused(models, tmp_path, capfd, name, arguments, message):
    assert export(models / name, tmp_path / "new", *arguments) == 3
    assert message in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_pictures_float_artifacts_are_made_and_not_compared(models, pictures, tmp_path, capfd):
    out = tmp_path / "new"
    assert export(models / "probabilities.keras", out, "--formats", "onnx,tflite,tflite-fp16") == 0
    printed, messages = capfd.readouterr()
    assert messages.startswith("labels: no; yes (positive: yes); no pictures to compare on\n")
    assert printed.count("not compared") == 3
    bundle = Bundle.open(out)
    bundle.verify()
    assert {artifact.parity for artifact in bundle.manifest.artifacts} == {None}
    assert bundle.artifact("model.onnx").made_with["compared"] is False
    assert not {"parity.json", "split.json"} & {document.file for document in bundle.manifest.documents}
    assert run(["info", str(out)]) == 0
    assert capfd.readouterr().out.count("not compared") == 3
    assert run(["predict", str(pictures / "no" / "00.png"), "--model", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["label"] in ("no", "yes")
    assert run(["export", str(out), "--data", str(pictures)]) == 3
    assert "contains no split.json" in capfd.readouterr().err


def test_without_pictures_quantized_formats_are_refused(models, tmp_path, capfd):
    assert export(models / "probabilities.keras", tmp_path / "new", "--formats", "onnx,tflite-dynamic") == 2
    assert "tflite-dynamic needs pictures" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()
    assert export(models / "probabilities.keras", tmp_path / "new", "--all", "--keep-going") == 1
    errors = capfd.readouterr().err
    files = made(tmp_path / "new")
    assert errors.count("\nleft out ") == len(installed_formats()) - len(files)
    assert files >= {"model.onnx", "model.tflite", "model.fp16.tflite"}
    assert not [file for file in files if "int8" in file or "dynamic" in file]


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ('{"std": [0.2, 0.2, 0.2]}', "unknown key 'std'. Keys: height, width, framing"),
        ('{"height": 224}', "height and width belong together. Give both"),
    ],
)
def test_preprocessing_that_would_be_ignored_is_refused(models, tmp_path, capfd, preprocessing, message):
    assert export(models / "probabilities.keras", tmp_path / "new", preprocessing=preprocessing) in (2, 3)
    assert message in capfd.readouterr().err
    described = tmp_path / "preprocessing.json"
    described.write_text(preprocessing)
    assert export(models / "probabilities.keras", tmp_path / "new", preprocessing=str(described)) in (2, 3)
    assert message in capfd.readouterr().err


def test_a_method_of_calibration_is_refused_with_search(models, pictures, tmp_path, capfd):
    options = ["--formats", "onnx-int8", "--data", pictures, "--search", "--calibration-method", "entropy"]
    assert export(models / "probabilities.keras", tmp_path / "new", *options) == 2
    assert "--calibration-method has no effect with --search" in capfd.readouterr().err


def test_without_pictures_options_of_the_gate_are_refused(models, tmp_path, capfd):
    assert export(models / "probabilities.keras", tmp_path / "new", "--flip-rate", "0.01") == 2
    assert "--flip-rate is about a comparison on scans" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_pictures_an_artifact_that_differs_from_keras_is_refused(models, tmp_path, monkeypatch, capfd):
    from mri_edge.export import uncompared
    from mri_edge.export.parity.gate import Gate

    monkeypatch.setitem(uncompared.DEFAULT_GATES, "float32", Gate(max_difference=-1.0))
    assert export(models / "probabilities.keras", tmp_path / "new", "--formats", "onnx") == 5
    assert "onnx: largest |Δp| on generated pictures is" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_labels_from_folders_need_the_folders(models, tmp_path, capfd):
    assert export(models / "probabilities.keras", tmp_path / "new", labels="folders") == 2
    assert "--labels folders needs --data" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["my model", "mein modell ü", "脳", "_model"])
def test_a_saved_model_may_have_any_name(models, tmp_path, name):
    folder = Path(shutil.copytree(models / "gray", tmp_path / name))
    assert export(folder, tmp_path / "new", "--formats", "tflite") == 0


@pytest.mark.parametrize(("model", "layer"), [("my model", "dense"), ("model", "first layer"), ("model", "erste_ä")])
def test_a_name_that_tensorflow_refuses_is_reported(tmp_path, capfd, model, layer):
    import keras

    entry = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(entry)
    head = keras.layers.Dense(2, activation="softmax", name=layer)
    keras.Model(entry, head(pooled), name=model).save(tmp_path / "named.keras")
    try:
        assert export(tmp_path / "named.keras", tmp_path / "new") == 3
    finally:
        keras.utils.clear_session()  # Keras does not leave a scope that it could not enter
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.search(
        r"cannot trace this model: '.*' is not a valid (root )?scope name. Rename the model or layer", error
    )


def test_a_layer_that_does_not_convert_is_named(models, pictures, tmp_path, capfd):
    out = tmp_path / "new"
    assert export(models / "bicubic.keras", out, "--formats", "onnx,tflite", "--data", pictures) == 3
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("mri-edge: error: tflite: the model uses ResizeBicubic of layer 'smooth', which TensorFlow")
    assert not out.exists()


def test_keep_going_loses_only_the_format_that_fails(models, pictures, tmp_path, capfd):
    out = tmp_path / "new"
    formats = "onnx,onnx-fp16,onnx-int8,tflite,tflite-dynamic,tflite-fp16,tflite-int8"
    assert export(models / "bicubic.keras", out, "--formats", formats, "--keep-going", "--data", pictures) == 1
    printed, messages = capfd.readouterr()
    left_out = [line for line in messages.splitlines() if line.startswith("left out ")]
    assert [line.split(":")[0].split()[-1] for line in left_out] == [
        "tflite",
        "tflite-dynamic",
        "tflite-fp16",
        "tflite-int8",
    ]
    assert all("ResizeBicubic of layer 'smooth'" in line for line in left_out)
    assert made(out) == ONNX
    assert all(file in printed for file in ONNX)
    Bundle.open(out).verify()


def test_if_every_format_fails_nothing_is_written(models, pictures, tmp_path, capfd):
    out = tmp_path / "new"
    arguments = ["--formats", "onnx,tflite", "--keep-going", "--data", pictures]
    assert export(models / "lanczos.keras", out, *arguments) == 3
    errors = capfd.readouterr().err
    assert "left out onnx: the model uses ScaleAndTranslate of layer 'sharp', which tf2onnx" in errors
    assert "left out tflite: the model uses ScaleAndTranslate of layer 'sharp', which TensorFlow" in errors
    assert not out.exists()


def test_keep_going_keeps_the_earlier_artifact_of_a_format_that_misses_its_gate(bundle, pictures, capfd):
    data = ["--data", str(pictures)]
    assert run(["export", str(bundle), "--formats", "onnx-int8", *data]) == 0
    before = (bundle / "model.int8.onnx").read_bytes()
    arguments = ["--formats", "onnx,onnx-int8", "--keep-going", "--mean-difference", "1e-4"]
    assert run(["export", str(bundle), *arguments, *data]) == 5
    printed, messages = capfd.readouterr()
    assert "left out onnx-int8: not met: mean |Δp|" in messages
    assert "not met" in printed
    assert (bundle / "model.int8.onnx").read_bytes() == before
    assert made(bundle) == {"model.onnx", "model.int8.onnx"}
    opened = Bundle.open(bundle)
    opened.verify()
    assert {artifact.parity.verdict for artifact in opened.manifest.artifacts if artifact.parity} == {"met"}
    recorded = json.loads((bundle / "parity.json").read_text())["artefacts"]
    assert recorded["model.int8.onnx"]["verdict"] == "met"
    assert opened.manifest.calibration.images == 60  # of the artifact that is there
    arguments[1] = "onnx-int8"
    assert run(["export", str(bundle), *arguments, *data]) == 5
    assert "Nothing was written" in capfd.readouterr().err


def test_the_layer_is_found_on_the_path_of_a_node():
    assert layer_of("functional_4_1/conv2d_1_1/convolution", {"conv2d", "conv2d_1"}) == "conv2d_1"
    assert layer_of("functional/body_1/conv2d_1/Relu", {"conv2d"}) == "conv2d"
    assert layer_of("functional/conv2d_1/Relu", {"conv2d_1"}) == "conv2d_1"
    assert layer_of("Cast", {"conv2d"}) is None


def test_an_error_names_three_layers_at_most():
    operations = [(f"model/layer{index}_1/Op", "Op") for index in range(5)] * 2
    error = unsupported(operations, {f"layer{index}" for index in range(5)}, "which X cannot convert")
    assert str(error).startswith(
        "the model uses Op of layer 'layer0', Op of layer 'layer1', Op of layer 'layer2' and 2 more, which X cannot"
    )
