"""Build the small network: a narrow stack of convolutions for gray slices, with 1/400 of VGG16's operations.

It is trained on one gray channel, with batch normalization after each convolution. Both are folded into the weights of
the exported network, which has plain 3-channel convolutions with bias and ReLU: operators that every engine runs fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.errors import UsageError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import RecipeSpec

from .network import Backbone, Network, StudentNetwork
from .weights import BackboneWeights


@dataclass(frozen=True)
class Convolution:
    """A convolution with padding "same" and ReLU: output channels, side of the kernel, stride."""

    channels: int
    size: int
    stride: int


# Chosen by measurement among stacks of the same cost. 128 x 128 pixels shrink to 32 x 32 before there are many
# channels, and to 8 x 8 at the end, which is the resolution of a heatmap. Channels are multiples of 8, the block
# size of the 8-bit kernels of XNNPACK and MLAS.
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


def build_trainable(recipe: RecipeSpec, classes: int, seed: int) -> Any:
    """Build the network to train: it maps gray float32 (N, height, width, 1), 0 to 1, to probabilities (N, classes)."""
    keras = load_keras("train")
    keras.utils.set_random_seed(seed)
    pictures = tensor = keras.Input((recipe.preprocessing.height, recipe.preprocessing.width, 1))
    for convolution in STACK:
        tensor = keras.layers.Conv2D(
            convolution.channels, convolution.size, convolution.stride, "same", use_bias=False
        )(tensor)
        tensor = keras.layers.BatchNormalization()(tensor)
        tensor = keras.layers.ReLU()(tensor)
    tensor = keras.layers.GlobalAveragePooling2D()(tensor)
    tensor = keras.layers.Dropout(recipe.head.dropout, seed=seed)(tensor)
    return keras.Model(pictures, keras.layers.Dense(classes, activation="softmax")(tensor))


def build_shipped(recipe: RecipeSpec, classes: int) -> Network:
    """Build the network to export, without weights; it takes normalized pictures float32 (N, height, width, 3)."""
    keras = load_keras("train")
    size = recipe.preprocessing
    pictures = tensor = keras.Input((size.height, size.width, 3), name="image")
    for number, convolution in enumerate(STACK, start=1):
        tensor = keras.layers.Conv2D(
            convolution.channels,
            convolution.size,
            convolution.stride,
            "same",
            activation="relu",
            name=f"convolution_{number}",
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
    """Set the weights of ``shipped`` so that it computes what ``trained`` computes on gray pictures.

    Batch normalization becomes part of kernel and bias, and the one gray channel becomes the mean of three.
    """
    keras = load_keras("train")
    layers = [layer for layer in trained.layers if layer.weights]
    plain: list[_Weights] = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, keras.layers.Conv2D):
            plain.append(_fold_normalization(layer.get_weights()[0], following.get_weights(), following.epsilon))
        elif isinstance(layer, keras.layers.Dense):
            plain.append(layer.get_weights())
    plain[0][0] = plain[0][0].repeat(3, axis=2) / np.float32(3)
    targets = [layer for layer in shipped.whole.layers if layer.weights]
    for layer, weights in zip(targets, plain, strict=True):
        layer.set_weights(weights)


def _fold_normalization(kernel: NDArray[np.float32], statistics: _Weights, epsilon: float) -> _Weights:
    gain, shift, mean, variance = statistics
    factor = gain / np.sqrt(variance + epsilon)
    return [kernel * factor, shift - mean * factor]


def describe(recipe: RecipeSpec) -> dict[str, Any]:
    """Describe the network for the manifest, in plain types."""
    return {"convolutions": [asdict(convolution) for convolution in STACK], "dropout": recipe.head.dropout}


def _build_backbone(weights: BackboneWeights | None, height: int, width: int) -> Any:
    raise UsageError("the small network has no pretrained backbone", "Distill it: --recipe small --teacher BUNDLE")


def _load_weights(source: str, say: Callable[[str], None]) -> BackboneWeights:
    raise UsageError("the small network has no pretrained backbone", "Distill it: --recipe small --teacher BUNDLE")


SMALL_CNN = Backbone(
    title="small convolutional network",
    build=_build_backbone,
    load_weights=_load_weights,
    stages=tuple(f"convolution_{number}" for number in range(1, len(STACK) + 1)),
    preprocessing=Preprocessing(),
    feature_stride=16,
    feature_channels=STACK[-1].channels,
    student=StudentNetwork(build_trainable, build_shipped, fold, describe),
)
