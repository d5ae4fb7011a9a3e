"""Models in the format of Keras 2 can be opened and exported, and give the same answers.

Keras 3 saves the files, and the tests rewrite their description in the form of TF-Keras 2.16.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from mri_edge.authoring.keras_models.keras2 import to_keras3
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.errors import BundleError
from mri_edge.export.sources.keras_model import load

SIZE = 32


def with_statistics(model: keras.Model) -> keras.Model:
    """The same model with running means and variances as after training."""
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if "variance" in variable.name:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "mean" in variable.name or variable.name == "beta":
            variable.assign(rng.normal(0, 0.1, variable.shape))
    for layer in model.layers:
        for inner in getattr(layer, "layers", [layer]):
            if isinstance(inner, keras.layers.Normalization):
                inner.finalize_state()
    return model


def mobilenet() -> keras.Model:
    return with_statistics(keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, weights=None, classes=2))


def efficientnet() -> keras.Model:
    return with_statistics(keras.applications.EfficientNetB0(input_shape=(SIZE, SIZE, 3), weights=None, classes=2))


def inverted_residual() -> keras.Model:
    """One block of MobileNetV2 with its stem and top."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    stem = layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(entry)
    stem = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3, momentum=0.999)(stem))
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(48, 1, use_bias=False)(stem)))
    hidden = layers.DepthwiseConv2D(3, use_bias=False, padding="same")(hidden)
    hidden = layers.ReLU(6.0)(layers.BatchNormalization()(hidden))
    hidden = layers.Add()([stem, layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(hidden))])
    padded = layers.ZeroPadding2D(((0, 1), (0, 1)))(hidden)
    hidden = layers.DepthwiseConv2D(3, 2, use_bias=False, padding="valid")(padded)
    hidden = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(layers.BatchNormalization()(hidden)))
    return with_statistics(keras.Model(entry, layers.Dense(2, activation="softmax")(hidden)))


def squeeze_and_excitation() -> keras.Model:
    """One block of EfficientNet with its preprocessing, stem and top."""
    layers = keras.layers
    entry = keras.Input((SIZE, SIZE, 3))
    scaled = layers.Rescaling([1 / 0.229, 1 / 0.224, 1 / 0.225])(
        layers.Normalization()(layers.Rescaling(1 / 255)(entry))
    )
    padded = layers.ZeroPadding2D(((0, 1), (0, 1)))(scaled)
    stem = layers.Conv2D(8, 3, 2, padding="valid", use_bias=False)(padded)
    stem = layers.Activation("swish")(layers.BatchNormalization()(stem))
    hidden = layers.DepthwiseConv2D(5, padding="same", use_bias=False)(stem)
    hidden = layers.Activation("swish")(layers.BatchNormalization()(hidden))
    squeezed = layers.Reshape((1, 1, 8))(layers.GlobalAveragePooling2D()(hidden))
    squeezed = layers.Conv2D(2, 1, padding="same", activation="swish")(squeezed)
    squeezed = layers.Conv2D(8, 1, padding="same", activation="sigmoid")(squeezed)
    hidden = layers.Conv2D(8, 1, padding="same", use_bias=False)(layers.multiply([hidden, squeezed]))
    hidden = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(layers.BatchNormalization()(hidden))
    hidden = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(layers.add([hidden, stem])))
    return with_statistics(keras.Model(entry, layers.Dense(2, activation="softmax")(hidden)))


def transfer() -> keras.Model:
    """``preprocess_input`` and a nested model, as in TensorFlow's tutorial on transfer learning."""
    body = keras.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, weights=None, include_top=False)
    pixels = keras.Input((SIZE, SIZE, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, name="tf.math.truediv")(pixels)
    shifted = keras.layers.Rescaling(1, offset=-1, name="tf.math.subtract")(scaled)
    hidden = keras.layers.GlobalAveragePooling2D()(body(shifted, training=False))
    return with_statistics(keras.Model(pixels, keras.layers.Dense(2, activation="softmax")(hidden)))


def half() -> keras.Model:
    """Layers that compute in float16 with weights in float32."""
    entry = keras.Input((SIZE, SIZE, 3))
    hidden = keras.layers.SeparableConv2D(4, 3, activation="swish", dtype="mixed_float16")(entry)
    hidden = keras.layers.GlobalAveragePooling2D(dtype="mixed_float16")(hidden)
    return keras.Model(entry, keras.layers.Dense(2, activation="softmax")(hidden))


def sequential() -> keras.Model:
    """A Sequential that contains a model with a Normalization."""
    entry = keras.Input((SIZE, SIZE, 3))
    body = keras.Model(entry, keras.layers.DepthwiseConv2D(3)(keras.layers.Normalization()(entry)))
    layers = keras.layers
    small = layers.Rescaling(1 / 255)  # keeps the softmax from saturating
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")]
    return with_statistics(keras.Sequential([keras.Input((SIZE, SIZE, 3)), small, body, *pooled]))


OPERATIONS = {"tf.math.truediv": ("math.truediv", 127.5), "tf.math.subtract": ("math.subtract", 1.0)}


def as_keras2(item: Any) -> Any:
    """Convert a description of Keras 3 to the form of Keras 2."""
    if isinstance(item, list):
        return [as_keras2(part) for part in item]
    if not isinstance(item, dict):
        return item
    name, inner = item.get("class_name"), item.get("config")
    if name == "DTypePolicy":
        policy = {"module": "keras.mixed_precision", "class_name": "Policy", "config": inner, "registered_name": None}
        return "float32" if inner == {"name": "float32"} else policy
    item = {key: as_keras2(value) for key, value in item.items()}
    inner = item.get("config")
    if name == "InputLayer":
        inner["batch_input_shape"] = inner.pop("batch_shape")
        inner.pop("optional", None)
    elif name in ("DepthwiseConv2D", "SeparableConv2D"):
        inner["groups"] = 1
    elif name == "BatchNormalization":
        inner["axis"] = [inner["axis"]]
        for key in ("synchronized", "renorm", "renorm_clipping", "renorm_momentum"):
            inner.pop(key, None)
    elif name == "Functional":
        nested = {layer["name"] for layer in inner["layers"] if "layers" in layer["config"]}
        for layer in inner["layers"]:
            layer["inbound_nodes"] = [_call(node, nested) for node in layer["inbound_nodes"]]
            _as_operation(layer)
        inner["input_layers"], inner["output_layers"] = [inner["input_layers"]], [inner["output_layers"]]
    return item


def _call(node: dict[str, Any], nested: set[str]) -> list[Any]:
    tensors = node["args"][0] if isinstance(node["args"][0], list) else node["args"]
    histories = [tensor["config"]["keras_history"] for tensor in tensors]
    given = {key: value for key, value in node["kwargs"].items() if key == "training"}
    return [[name, call + (name in nested), index, given] for name, call, index in histories]


def _as_operation(layer: dict[str, Any]) -> None:
    if layer["name"] in OPERATIONS:
        function, number = OPERATIONS[layer["name"]]
        [[source]] = layer["inbound_nodes"]
        layer["inbound_nodes"] = [[*source[:3], {"y": number, "name": None}]]
        layer["class_name"] = "TFOpLambda"
        kept = {key: layer["config"][key] for key in ("name", "trainable", "dtype")}
        layer["config"] = kept | {"function": function}


def saved_as_keras2(model: keras.Model, path: Path) -> Path:
    model.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(as_keras2(json.loads(file.attrs["model_config"])))
        file.attrs["keras_version"] = file["model_weights"].attrs["keras_version"] = "2.16.0"
    return path


@pytest.mark.parametrize("make", [mobilenet, efficientnet, inverted_residual, transfer, half, sequential])
def test_opened_model_gives_the_answers_of_the_saved_one(make: Callable[[], keras.Model], tmp_path):
    model = make()
    opened = load(saved_as_keras2(model, tmp_path / "model.h5"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(opened(pixels, training=False), model(pixels, training=False), atol=1e-6)


@pytest.mark.parametrize("make", [inverted_residual, sequential])
def test_keras_3_cannot_open_the_file_itself(make, tmp_path):
    """Otherwise the test above would prove nothing."""
    path = saved_as_keras2(make(), tmp_path / "model.h5")
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path, compile=False)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_description_of_keras_3_is_not_changed(name, tmp_path):
    inverted_residual().save(tmp_path / name)
    if name.endswith("keras"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            config = json.loads(archive.read("config.json"))
    else:
        with h5py.File(tmp_path / name) as file:
            config = json.loads(file.attrs["model_config"])
    config.pop("compile_config", None)
    assert to_keras3(config) == config


@pytest.mark.parametrize("operation", ["math.abs", "io.write_file"])
def test_an_operation_without_an_equivalent_layer_is_refused(operation, tmp_path):
    path = saved_as_keras2(transfer(), tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace("math.truediv", operation)
    with pytest.raises(BundleError, match="TFOpLambda"):
        load(path)


@pytest.mark.parametrize("make", [inverted_residual, squeeze_and_excitation])
def test_a_model_of_keras_2_is_exported(make, pictures, tmp_path):
    path = saved_as_keras2(make(), tmp_path / "model.h5")
    preprocessing = '{"height": 32, "width": 32, "scale": 1}'
    if make is inverted_residual:
        preprocessing = '{"height": 32, "width": 32, "scale": 0.00784313725, "mean": [1, 1, 1]}'
    out = tmp_path / "out"
    arguments = ["--from", str(path), "--labels", "no,yes", "--preprocessing", preprocessing, "--data", str(pictures)]
    assert run(["export", str(out), *arguments, "--formats", "onnx,tflite"]) == 0
    bundle = Bundle.open(out)
    bundle.verify()
    made = {artifact.file: artifact for artifact in bundle.manifest.artifacts}
    assert set(made) == {"model.keras", "model.onnx", "model.tflite"}
    assert max(made[name].parity.max_difference for name in ("model.onnx", "model.tflite")) < 1e-4
    # The bundle contains a .keras file that exports again.
    assert run(["export", str(out), "--data", str(pictures), "--formats", "tflite-fp16"]) == 0
