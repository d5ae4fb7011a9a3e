"""Preprocessing inside the graph equals preprocessing outside of it, also at the borders."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.errors import ConversionError
from mri_edge.scans.preprocessing import Preprocessing

SIZE = 16
PREPROCESSINGS = {
    "BGR, scaled": Preprocessing(SIZE, SIZE, channel_order="BGR"),
    "RGB, ImageNet": Preprocessing(SIZE, SIZE, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    "BGR, mean of Caffe": Preprocessing(SIZE, SIZE, channel_order="BGR", scale=1.0, mean=(103.939, 116.779, 123.68)),
    "unscaled": Preprocessing(SIZE, SIZE, scale=1.0),
}
# Both sides sum the same float32 products in different orders; the logits are about 1.
ROUNDING = 2e-5


def network(*first_layers):
    """The given layers, then a dense layer on all positions, so that each pixel of the border has an influence."""
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), *first_layers, layers.Flatten(), layers.Dense(3, activation="softmax")]
    )


def convolution(filters=4, **options):
    import keras

    return keras.layers.Conv2D(filters, 3, padding="same", bias_initializer="ones", **options)


@pytest.fixture
def pixels():
    return np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def run(model, preprocessing, pixels):
    import tensorflow as tf

    from mri_edge.export.sources.device_graph import device_graph

    graph = device_graph(model, preprocessing)
    return graph(tf.constant(pixels))[0].numpy()


def expected(model, preprocessing, pixels):
    return np.asarray(model(preprocessing.normalize(pixels), training=False))


def test_first_convolution_must_be_the_only_reader_of_the_pixels():
    import keras

    from mri_edge.export.sources.device_graph import first_convolution

    shared, body = convolution(filters=3), network_body()
    assert first_convolution(network(plain := convolution())) is plain
    assert first_convolution(network(body, keras.layers.ReLU())) is body.layers[1]
    assert first_convolution(network(shared, keras.layers.ReLU(), shared)) is None
    assert first_convolution(network(keras.layers.ZeroPadding2D(2), convolution())) is None
    assert first_convolution(network(keras.layers.DepthwiseConv2D(3))) is None


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_folded_preprocessing_equals_preprocessing_outside(name, pixels):
    model, preprocessing = network(convolution()), PREPROCESSINGS[name]
    before = model.layers[0].get_weights()
    assert np.abs(run(model, preprocessing, pixels) - expected(model, preprocessing, pixels)).max() < ROUNDING
    assert all(np.array_equal(a, b) for a, b in zip(before, model.layers[0].get_weights(), strict=True))


def test_folding_the_mean_into_the_bias_is_wrong_at_the_borders(pixels):
    """Control for the test above: the difference is far larger than rounding."""
    model, preprocessing = network(convolution()), PREPROCESSINGS["RGB, ImageNet"]
    kernel, bias = model.layers[0].get_weights()
    factor = preprocessing.scale / np.array(preprocessing.deviation)
    offset = np.array(preprocessing.mean) / preprocessing.scale
    folded = kernel * factor[:, None]
    outside = expected(model, preprocessing, pixels)
    model.layers[0].set_weights([folded, bias - (folded * offset[:, None]).sum(axis=(0, 1, 2))])
    assert np.abs(np.asarray(model(pixels.astype(np.float32))) - outside).max() > 100 * ROUNDING


@pytest.mark.parametrize("kind", ["rescaling", "padding", "depthwise", "dense", "shared", "nested"])
def test_preprocessing_before_other_first_layers_equals_preprocessing_outside(kind, pixels):
    import keras

    layers, preprocessing = keras.layers, PREPROCESSINGS["RGB, ImageNet"]
    shared = convolution(filters=3)
    model = {
        "rescaling": lambda: network(layers.Rescaling(0.5), convolution()),
        "padding": lambda: network(layers.ZeroPadding2D(2), convolution()),
        "depthwise": lambda: network(layers.DepthwiseConv2D(3, padding="same"), convolution()),
        "dense": lambda: network(layers.Dense(4)),
        "shared": lambda: network(shared, layers.ReLU(), shared),
        "nested": lambda: network(network_body(), layers.ReLU()),
    }[kind]()
    assert np.abs(run(model, preprocessing, pixels) - expected(model, preprocessing, pixels)).max() < ROUNDING


def network_body():
    import keras

    entry = keras.Input((SIZE, SIZE, 3))
    return keras.Model(entry, convolution(strides=2)(entry))


def test_a_single_sigmoid_becomes_two_probabilities(pixels):
    import keras

    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")])
    answer = run(model, PREPROCESSINGS["BGR, scaled"], pixels)
    positive = expected(model, PREPROCESSINGS["BGR, scaled"], pixels)
    assert np.abs(answer - np.hstack([1 - positive, positive])).max() < ROUNDING


@pytest.mark.parametrize(
    ("size", "layer", "message"), [(8, "flat", "must take one input"), (SIZE, "map", "one output")]
)
def test_other_inputs_and_outputs_are_refused(size, layer, message):
    import keras

    from mri_edge.export.sources.device_graph import device_graph

    entry = keras.Input((size, size, 3))
    model = keras.Model(entry, keras.layers.Flatten()(entry) if layer == "flat" else convolution()(entry))
    with pytest.raises(ConversionError, match=message):
        device_graph(model, PREPROCESSINGS["BGR, scaled"])
