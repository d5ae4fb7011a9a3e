"""Grad-CAM in the ONNX graph equals Grad-CAM by automatic differentiation in TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs mri-edge[export]")
onnxruntime = pytest.importorskip("onnxruntime")

import tensorflow as tf

from mri_edge import Bundle
from mri_edge.errors import ConversionError
from mri_edge.export.calibration.observation import Observation
from mri_edge.export.formats import Conversion
from mri_edge.export.onnx.explanation import with_explanation
from mri_edge.export.onnx.quantize import activations, head, observer, quantize_with
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture

PREPROCESSING = Preprocessing(height=32, width=32, channel_order="BGR")
PIXELS = np.random.default_rng(4).integers(0, 256, (40, 32, 32, 3), np.uint8)


def network(head_kind: str) -> keras.Model:
    """Two convolutions and one of several heads. The layer ``last`` gives the last feature map."""
    keras.utils.set_random_seed(5)
    layers = keras.layers
    entry = keras.Input((32, 32, 3))
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu")(entry)
    hidden = layers.MaxPooling2D()(hidden)
    hidden = layers.Conv2D(12, 3, padding="same", activation="relu", name="last")(hidden)
    if head_kind == "flatten":
        hidden = layers.Flatten(name="head")(layers.MaxPooling2D()(hidden))
        hidden = layers.Dense(16, activation="relu")(hidden)
    elif head_kind == "average":
        hidden = layers.GlobalAveragePooling2D(name="head")(hidden)
    elif head_kind == "kept axes":
        hidden = layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True, name="head")(hidden))
    elif head_kind == "tanh":
        hidden = layers.Dense(16, activation="tanh")(layers.Flatten(name="head")(hidden))
    elif head_kind in ("branches", "biased branches"):
        hidden = layers.GlobalAveragePooling2D(name="head")(hidden)
        bias = "ones" if head_kind == "biased branches" else "zeros"  # without biases, the Add becomes part of a Gemm
        straight, bent = (
            layers.Dense(16, activation=activation, bias_initializer=bias)(hidden) for activation in (None, "relu")
        )
        hidden = layers.Add()([straight, bent])
    elif head_kind == "pixels":
        hidden = layers.Flatten(name="head")(entry)
    elif head_kind == "dense map":
        hidden = layers.Flatten(name="head")(layers.Dense(6, activation="relu")(hidden))
    return keras.Model(entry, layers.Dense(3, activation="softmax", name="classes")(hidden))


def grad_cam(model: keras.Model, label: int) -> np.ndarray:
    """Grad-CAM by automatic differentiation: (N, h, w)."""
    feature_map = keras.Model(model.inputs, model.get_layer("last").output)(PREPROCESSING.normalize(PIXELS))
    head_layers = model.layers[model.layers.index(model.get_layer("last")) + 1 : -1]
    classes = model.get_layer("classes")
    with tf.GradientTape() as tape:
        tape.watch(feature_map)
        hidden = feature_map
        for layer in head_layers:
            hidden = layer(hidden)
        logit = (hidden @ classes.kernel + classes.bias)[:, label]
    weights = tf.reduce_mean(tape.gradient(logit, feature_map), axis=(1, 2))
    return tf.nn.relu(tf.einsum("nhwc,nc->nhw", feature_map, weights)).numpy()


def run(model: bytes) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": PIXELS}), strict=True))


def correlations(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Correlation of each pair of maps in which both have positive values."""
    pairs = [(a.ravel(), b.ravel()) for a, b in zip(first, second, strict=True) if a.any() and b.any()]
    assert len(pairs) > len(first) / 2, "too few maps have positive values to compare"
    return [float(np.corrcoef(a, b)[0, 1]) for a, b in pairs]


@pytest.mark.parametrize("head_kind", ["flatten", "average", "kept axes"])
@pytest.mark.parametrize("label", [0, 2])
def test_float_activation_is_grad_cam(head_kind, label):
    model = network(head_kind)
    out = run(Conversion(device_graph(model, PREPROCESSING), label).float_onnx.SerializeToString())
    # The kernel is stored in float16, with 11 bits of mantissa.
    np.testing.assert_allclose(out["activation"], grad_cam(model, label), rtol=2e-3, atol=1e-4)
    last = keras.Model(model.inputs, model.get_layer("last").output)(PREPROCESSING.normalize(PIXELS))
    np.testing.assert_allclose(out["features"], last.numpy().mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_kind", ["flatten", "average"])
def test_int8_activation_correlates_with_grad_cam(head_kind):
    model = network(head_kind)
    float_model = Conversion(device_graph(model, PREPROCESSING), 2).float_onnx
    observed = {name: Observation(channel_axis=1) for name in activations(float_model)}
    for name, values in observer(float_model)(PIXELS).items():
        observed[name].add(values)
    int8, _ = quantize_with(float_model, observed, "minmax", keep_float=head(float_model))
    out = run(int8)
    # A ReLU of the head may be active in one model and not in the other, so a tenth of the maps may differ.
    assert np.percentile(correlations(out["activation"], grad_cam(model, 2)), 10) >= 0.95


@pytest.mark.parametrize(
    ("head_kind", "operation"),
    [
        ("tanh", "Tanh"),
        ("branches", "Gemm"),
        ("biased branches", "Add"),
        ("pixels", "Reshape"),
        ("dense map", "Reshape"),
    ],
)
def test_unknown_heads_are_exported_without_an_explanation(head_kind, operation):
    model = network(head_kind)
    conversion = Conversion(device_graph(model, PREPROCESSING), 1)
    assert [output.name for output in conversion.float_onnx.graph.output] == ["probabilities"]
    with pytest.raises(ConversionError, match=f"it contains {operation}"):
        with_explanation(conversion.float_onnx, 1)


@pytest.mark.data
def test_embedded_model_has_a_heatmap_for_real_scans(scans):
    bundle = Bundle.open()
    artifact = bundle.artifact("model.int8.onnx")
    session = onnxruntime.InferenceSession(str(bundle.path_of(artifact)), providers=["CPUExecutionProvider"])
    paths = sorted(Path(scans, "navoneel", "yes").iterdir())[:8]
    batch = np.stack([bundle.manifest.preprocessing.resize_picture(picture.load(path)) for path in paths])
    probabilities, features, activation = session.run(
        ["probabilities", "features", "activation"], {session.get_inputs()[0].name: batch}
    )
    assert probabilities.shape == (8, 2)
    assert features.shape == (8, 512)
    assert activation.shape == (8, 8, 8)
    assert activation.min() >= 0
    assert (activation.max(axis=(1, 2)) > 0).sum() >= 6, "nearly every tumour scan must have a positive value"
