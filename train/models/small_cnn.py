"""The small network: a narrow stack of convolutions for grey slices, a four-hundredth of VGG16's work.

It trains on one grey channel with batch normalisation behind each convolution. What ships has both
folded away: plain 3-channel convolutions with bias and ReLU, the operators that every engine runs fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.train.loops.keras import load_keras
from mri_edge.train.recipes.base import Recipe

from .vgg16 import Network

ARCHITECTURE = "small convolutional network"


@dataclass(frozen=True)
class Convolution:
    """A convolution with padding "same" and ReLU: output channels, side of the kernel, stride."""

    channels: int
    size: int
    stride: int


# Chosen by measurement among stacks of the same cost. 128 x 128 pixels become 32 x 32 before they are many
# channels, and 8 x 8 at the end: the places that a heatmap tells apart. Channels are multiples of 8, which the
# 8-bit kernels of XNNPACK and MLAS take at a time.
STACK = (
    Convolution(24, 5, 4),
    Convolution(32, 3, 2),
    Convolution(32, 3, 1),
    Convolution(48, 3, 2),
    Convolution(48, 3, 1),
    Convolution(64, 3, 1),
    Convolution(64, 3, 1),
)

_Weights = list[NDArray[np.float32]]


def build_trainable(recipe: Recipe, classes: int, seed: int) -> Any:
    """The network as it trains: float32 (N, height, width, 1), grey from 0 to 1 -> probabilities (N, classes)."""
    keras = load_keras()
    keras.utils.set_random_seed(seed)
    pictures = tensor = keras.Input((recipe.preprocessing.height, recipe.preprocessing.width, 1))
    for one in STACK:
        tensor = keras.layers.Conv2D(one.channels, one.size, one.stride, "same", use_bias=False)(tensor)
        tensor = keras.layers.BatchNormalization()(tensor)
        tensor = keras.layers.ReLU()(tensor)
    tensor = keras.layers.GlobalAveragePooling2D()(tensor)
    tensor = keras.layers.Dropout(recipe.dropout, seed=seed)(tensor)
    return keras.Model(pictures, keras.layers.Dense(classes, activation="softmax")(tensor))


def build_shipped(recipe: Recipe, classes: int) -> Network:
    """The network as it ships, with weights yet to be set: normalised pictures float32 (N, height, width, 3)."""
    keras = load_keras()
    size = recipe.preprocessing
    pictures = tensor = keras.Input((size.height, size.width, 3), name="image")
    for number, one in enumerate(STACK, start=1):
        tensor = keras.layers.Conv2D(
            one.channels, one.size, one.stride, "same", activation="relu", name=f"convolution_{number}"
        )(tensor)
    backbone = keras.Model(pictures, tensor, name="backbone")
    features = keras.Input(backbone.output_shape[1:], name="features")
    stack = [
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(classes, activation="softmax", name="dense"),
    ]
    inside, after = features, backbone.output
    for layer in stack:
        inside, after = layer(inside), layer(after)
    return Network(backbone, keras.Model(features, inside, name="head"), keras.Model(pictures, after, name="mri_edge"))


def fold(trained: Any, shipped: Network) -> None:
    """Give ``shipped`` the weights that make it compute what ``trained`` does on grey pictures.

    Batch normalisation becomes part of kernel and bias; the one grey channel becomes the mean of three.
    """
    keras = load_keras()
    layers = [layer for layer in trained.layers if layer.weights]
    plain: list[_Weights] = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, keras.layers.Conv2D):
            plain.append(_with_normalisation(layer.get_weights()[0], following.get_weights(), following.epsilon))
        elif isinstance(layer, keras.layers.Dense):
            plain.append(layer.get_weights())
    plain[0][0] = plain[0][0].repeat(3, axis=2) / 3
    targets = [layer for layer in shipped.whole.layers if layer.weights]
    for layer, weights in zip(targets, plain, strict=True):
        layer.set_weights(weights)


def _with_normalisation(kernel: NDArray[np.float32], statistics: _Weights, epsilon: float) -> _Weights:
    gain, shift, mean, variance = statistics
    factor = gain / np.sqrt(variance + epsilon)
    return [kernel * factor, shift - mean * factor]
