"""From a Keras model and its Preprocessing to one frozen graph: uint8 pixels in, probabilities out.

Where the network begins with a convolution, channel order, scale and deviation are folded into its
kernel, and the mean becomes a subtraction before it. The mean must stay outside the kernel: a
convolution pads its *input* with zeros, and a bias that stands for the mean would be added at the
borders too, where the padding has none. Everywhere else the same steps are written out as operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from mri_edge.errors import ConversionError
from mri_edge.scans.preprocessing import Preprocessing

INPUT = "pixels"
OUTPUT = "probabilities"


@dataclass(frozen=True)
class DeviceGraph:
    """A frozen TensorFlow function, uint8 (N, height, width, 3) RGB -> float32 (N, classes); N is dynamic."""

    function: Any
    height: int
    width: int
    classes: int


def device_graph(model: keras.Model, preprocessing: Preprocessing) -> DeviceGraph:
    """Freeze ``model`` behind ``preprocessing``.

    Parameters
    ----------
    model
        float32 (N, height, width, 3) as ``Preprocessing.normalise`` gives it -> probabilities
        (N, classes), or (N, 1) for the probability of the second of two classes.

    Raises
    ------
    ConversionError
        The model has other inputs or outputs.
    """
    size = (preprocessing.height, preprocessing.width)
    classes = _check(model, size)
    convolution = first_convolution(model)
    with _folded(convolution, preprocessing) as offset:

        def probabilities(pixels: tf.Tensor) -> tf.Tensor:
            values = tf.cast(pixels, tf.float32)
            if convolution is None:
                values = _normalise(values, preprocessing)
            elif np.any(offset):
                values -= tf.constant(offset, tf.float32)
            answer = model(values, training=False)
            if answer.shape[1] == 1:
                answer = tf.concat([1 - answer, answer], axis=1)
            return tf.identity(answer, name=OUTPUT)

        traced = tf.function(probabilities).get_concrete_function(tf.TensorSpec((None, *size, 3), tf.uint8, name=INPUT))
        return DeviceGraph(convert_variables_to_constants_v2(traced), *size, classes)


def _check(model: keras.Model, size: tuple[int, int]) -> int:
    """Number of classes; ConversionError for a model that is no single-image classifier."""
    if len(model.inputs) != 1 or tuple(model.inputs[0].shape[1:]) != (*size, 3):
        shapes = ", ".join(str(tuple(one.shape)) for one in model.inputs)
        raise ConversionError(
            f"{model.name}: must take one input (N, {size[0]}, {size[1]}, 3), as its preprocessing says. "
            f"Received: {shapes}"
        )
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2 or not model.outputs[0].shape[1]:
        shapes = ", ".join(str(tuple(one.shape)) for one in model.outputs)
        raise ConversionError(f"{model.name}: must give one output (N, classes). Received: {shapes}")
    return max(2, int(model.outputs[0].shape[1]))


def _normalise(values: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """``Preprocessing.normalise`` as TensorFlow operations, leaving out those that change nothing."""
    if preprocessing.channel_order == "BGR":
        values = tf.gather(values, [2, 1, 0], axis=3)
    if preprocessing.scale != 1:
        values *= tf.constant(preprocessing.scale, tf.float32)
    if any(preprocessing.mean):
        values -= tf.constant(preprocessing.mean, tf.float32)
    if any(one != 1 for one in preprocessing.deviation):
        values /= tf.constant(preprocessing.deviation, tf.float32)
    return values


def first_convolution(model: keras.Model) -> keras.layers.Conv2D | None:
    """The convolution that alone sees the model's input, also inside nested models; None if there is none.

    Only a plain ``Conv2D`` that is used once qualifies: its kernel can then take factors of the input.
    """
    while isinstance(model, keras.Model) and len(model.inputs or ()) == 1:
        # A Sequential keeps its graph in a Functional of its own; its layers' own lists hold older graphs too.
        depths = getattr(model, "_functional", model)._nodes_by_depth
        nodes = [node for depth in depths.values() for node in depth]
        users = [node for node in nodes if any(tensor is model.inputs[0] for tensor in node.input_tensors)]
        if len(users) != 1 or sum(node.operation is users[0].operation for node in nodes) != 1:
            return None
        model = users[0].operation
    plain = type(model) is keras.layers.Conv2D and model.groups == 1 and model.data_format == "channels_last"
    return model if plain else None


@contextmanager
def _folded(convolution: keras.layers.Conv2D | None, preprocessing: Preprocessing) -> Iterator[NDArray[np.float64]]:
    """Put order, scale and deviation into the kernel while the block lasts.

    Yields what remains to be subtracted from the 8-bit values, float64 (3,), R G B.
    """
    deviation, mean = np.asarray(preprocessing.deviation), np.asarray(preprocessing.mean)
    # scale * x - mean over deviation is (x - mean / scale) * (scale / deviation).
    factor, offset = preprocessing.scale / deviation, mean / preprocessing.scale
    if convolution is None:
        yield offset
        return
    turn = slice(None, None, -1 if preprocessing.channel_order == "BGR" else 1)
    original = convolution.kernel.numpy()
    folded = original.astype(np.float64) * factor[None, None, :, None]
    convolution.kernel.assign(folded[:, :, turn].astype(original.dtype))
    try:
        yield offset[turn]
    finally:
        convolution.kernel.assign(original)
