"""The lower stages of EfficientNet-Lite0 (Tan and Le 2019; R. Liu 2020), with batch normalization folded.

Without squeeze-and-excitation and with ReLU6, all its layers have fast int8 kernels. Each convolution includes the
batch normalization that followed it, because fine-tuning would keep its statistics, and a step of the training takes
half the time without it. The network ends with the expansion of the first block that it leaves out, because the output
of a block is linear, and its large values keep a classifier from learning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans.preprocessing import Preprocessing

from .efficientnet_weights import State, folded, load_weights
from .network import Backbone, ignore_color
from .weights import BackboneWeights


@dataclass(frozen=True)
class _Stage:
    """Blocks of one size: kernel, stride of the first block, factor of the expansion, channels, and their number."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    blocks: int


# tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py, _DEFAULT_BLOCKS_ARGS
_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
_STEM = 32  # channels
_USED = 6  # stages


@dataclass(frozen=True)
class _Convolution:
    """A convolution by the name of its layer, and the names of its tensors in the checkpoint."""

    name: str
    kernel: int
    stride: int
    channels: int | None  # None for a depthwise convolution
    active: bool  # whether ReLU6 follows
    tensors: tuple[str, str]


def _block(stage: int, index: int, number: int, channels_in: int) -> Iterator[_Convolution]:
    """Yield the convolutions of one block; ``number`` counts the blocks of all stages."""
    spec, name, source = _STAGES[stage], f"stage{stage + 1}_block{index + 1}", f"_blocks.{number}."
    if spec.expansion > 1:
        yield _Convolution(
            f"{name}_expand", 1, 1, channels_in * spec.expansion, True, (f"{source}_expand_conv", f"{source}_bn0")
        )
    stride = 1 if index else spec.stride
    yield _Convolution(
        f"{name}_depthwise", spec.kernel, stride, None, True, (f"{source}_depthwise_conv", f"{source}_bn1")
    )
    yield _Convolution(f"{name}_project", 1, 1, spec.channels, False, (f"{source}_project_conv", f"{source}_bn2"))


def _blocks() -> Iterator[tuple[bool, list[_Convolution]]]:
    """Yield for each block whether its input is added to its output, and its convolutions."""
    yield False, [_Convolution("stem", 3, 2, _STEM, True, ("_conv_stem", "_bn0"))]
    number, channels = 0, _STEM
    for stage, spec in enumerate(_STAGES[:_USED]):
        for index in range(spec.blocks):
            yield index > 0, list(_block(stage, index, number, channels))
            number, channels = number + 1, spec.channels
    yield False, list(_block(_USED, 0, number, channels))[:1]


def _layers(state: State) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    return tuple(folded(state, *convolution.tensors) for _, block in _blocks() for convolution in block)


def build_backbone(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Build the frozen backbone; it maps float32 (N, height, width, 3) to (N, height // 32, width // 32, 1152).

    ``None`` keeps the random initial weights.
    """
    keras = load_keras("train")
    pictures = tensor = keras.Input((height, width, 3))
    convolutions = []
    for has_shortcut, block in _blocks():
        entry = tensor
        for convolution in block:
            layer = _layer(keras.layers, convolution)
            convolutions.append(layer)
            tensor = layer(tensor)
        if has_shortcut:
            tensor = keras.layers.Add(name=block[0].name.replace("expand", "add"))([tensor, entry])
    backbone = keras.Model(pictures, tensor, name="efficientnet_lite0")
    if weights is not None:
        for layer, arrays in zip(convolutions, weights.arrays, strict=True):
            layer.set_weights(arrays)
    backbone.trainable = False
    return backbone


def _layer(layers: Any, convolution: _Convolution) -> Any:
    size, stride = convolution.kernel, convolution.stride
    activation = "relu6" if convolution.active else None
    if convolution.channels is None:
        return layers.DepthwiseConv2D(size, stride, padding="same", activation=activation, name=convolution.name)
    return layers.Conv2D(
        convolution.channels, size, stride, padding="same", activation=activation, name=convolution.name
    )


EFFICIENTNET_LITE0 = Backbone(
    title="EfficientNet-Lite0",
    build=build_backbone,
    load_weights=partial(load_weights, _layers),
    stages=("stem", *(f"stage{number + 1}_" for number in range(_USED + 1))),
    preprocessing=Preprocessing(scale=1 / 255, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5)),
    feature_stride=32,
    feature_channels=_STAGES[_USED - 1].channels * _STAGES[_USED].expansion,
    # With depthwise convolutions a step takes 1.5 times as long in bfloat16 (measured with AVX512-BF16).
    fast_in_bfloat16=False,
    ignore_color=partial(ignore_color, "stem"),
)
