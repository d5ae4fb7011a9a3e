"""The contributions in the ONNX graph equal gradient times activation by automatic differentiation in TensorFlow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

keras = pytest.importorskip("keras", reason="needs mri-edge[export]")
onnxruntime = pytest.importorskip("onnxruntime")

import tensorflow as tf

from mri_edge.errors import ConversionError
from mri_edge.export.calibration.observation import Observation
from mri_edge.export.formats import Conversion
from mri_edge.export.onnx.explanation import with_explanation
from mri_edge.export.onnx.quantize import activations, head, observer, quantize_with
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.scans.preprocessing import Preprocessing

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
    elif head_kind == "mean of 4 x 4":
        hidden = layers.Flatten(name="head")(layers.AveragePooling2D(4)(hidden))
        hidden = layers.Dense(16, activation="relu")(hidden)
    elif head_kind == "overlapping windows":
        hidden = layers.Flatten(name="head")(layers.MaxPooling2D(3, strides=2)(hidden))
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


def contributions(model: keras.Model, label: int) -> np.ndarray:
    """Gradient of the label's log-odds times activation, summed over channels: (N, h, w)."""
    feature_map = keras.Model(model.inputs, model.get_layer("last").output)(PREPROCESSING.normalize(PIXELS))
    head_layers = model.layers[model.layers.index(model.get_layer("last")) + 1 : -1]
    classes = model.get_layer("classes")
    with tf.GradientTape() as tape:
        tape.watch(feature_map)
        hidden = feature_map
        for layer in head_layers:
            hidden = layer(hidden)
        logits = hidden @ classes.kernel + classes.bias
        others = [index for index in range(3) if index != label]
        log_odds = logits[:, label] - tf.reduce_logsumexp(tf.gather(logits, others, axis=1), axis=1)
    return tf.reduce_sum(feature_map * tape.gradient(log_odds, feature_map), axis=3).numpy()


def run(model: bytes) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixels": PIXELS}), strict=True))


def correlations(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Correlation of each pair of maps."""
    return [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("head_kind", ["flatten", "mean of 4 x 4", "average", "kept axes"])
@pytest.mark.parametrize("label", [0, 2])
def test_float_contributions_are_gradient_times_activation(head_kind, label):
    model = network(head_kind)
    out = run(Conversion(device_graph(model, PREPROCESSING), label).float_onnx.SerializeToString())
    np.testing.assert_allclose(out["contributions"], contributions(model, label), rtol=1e-3, atol=1e-5)
    last = keras.Model(model.inputs, model.get_layer("last").output)(PREPROCESSING.normalize(PIXELS))
    np.testing.assert_allclose(out["features"], last.numpy().mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_kind", ["flatten", "mean of 4 x 4", "average", "kept axes"])
def test_without_a_label_contributions_are_about_the_most_probable_label_of_each_image(head_kind):
    model = network(head_kind)
    classes = model.get_layer("classes")
    logits = keras.Model(model.inputs, classes.input)(PREPROCESSING.normalize(PIXELS)) @ classes.kernel
    classes.set_weights([classes.kernel, -np.median(logits, axis=0)])  # so that each label is the best of some images
    out = run(Conversion(device_graph(model, PREPROCESSING), None).float_onnx.SerializeToString())
    best = out["probabilities"].argmax(axis=1)
    assert len(set(best)) > 1
    assert out["explained"].dtype == np.float32
    assert out["explained"].tolist() == best.tolist()
    of_each = np.stack([contributions(model, label) for label in range(3)])
    np.testing.assert_allclose(out["contributions"], of_each[best, np.arange(len(best))], rtol=1e-3, atol=1e-5)


def test_with_a_label_the_graph_has_no_choice_in_it():
    graph = Conversion(device_graph(network("flatten"), PREPROCESSING), 1).float_onnx.graph
    assert {output.name for output in graph.output} == {"probabilities", "features", "contributions"}
    assert not {"ArgMax", "Gather"} & {node.op_type for node in graph.node}


@pytest.mark.parametrize("head_kind", ["flatten", "average"])
def test_int8_contributions_correlate_with_those_of_the_float_network(head_kind):
    model = network(head_kind)
    float_model = Conversion(device_graph(model, PREPROCESSING), 2).float_onnx
    observed = {name: Observation(channel_axis=1) for name in activations(float_model)}
    for name, values in observer(float_model)(PIXELS).items():
        observed[name].add(values)
    int8, _ = quantize_with(float_model, observed, "minmax", keep_float=head(float_model))
    out = run(int8)
    readers = [node for node in onnx.load_from_string(int8).graph.node if node.op_type == "Gemm"]
    kernels = [node.input[1] for node in readers if node.name.startswith("explanation/")]
    assert not [name for name in kernels if "DequantizeLinear" in name], "OpenVINO crashes on these in bfloat16"
    # A ReLU of the head may be active in one model and not in the other, so a tenth of the maps may differ.
    assert np.percentile(correlations(out["contributions"], contributions(model, 2)), 10) >= 0.95


@pytest.mark.parametrize(
    ("head_kind", "operation"),
    [
        ("tanh", "Tanh"),
        ("branches", "Gemm"),
        ("biased branches", "Add"),
        ("pixels", "Reshape"),
        ("dense map", "Reshape"),
        ("overlapping windows", "MaxPool"),
    ],
)
def test_unknown_heads_are_exported_without_an_explanation(head_kind, operation):
    model = network(head_kind)
    conversion = Conversion(device_graph(model, PREPROCESSING), 1)
    assert [output.name for output in conversion.float_onnx.graph.output] == ["probabilities"]
    with pytest.raises(ConversionError, match=f"it contains {operation}"):
        with_explanation(conversion.float_onnx, 1)
