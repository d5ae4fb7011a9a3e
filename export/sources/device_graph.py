"""Put a Keras model behind its preprocessing in one frozen graph: uint8 pixels in, probabilities out.

If the network starts with a convolution, channel order, scale and deviation are folded into its kernel,
and the mean becomes a subtraction before it. The mean cannot be folded: a convolution pads its *input*
with zeros, and a bias in place of the mean would be wrong at the borders, where the padding has no
mean. Otherwise the same steps become operations of the graph.

Two steps use private APIs of TensorFlow 2.21 and Keras 3.15.1, because no public one does the same. To freeze the
graph, TensorFlow's public function needs a session of TensorFlow 1, and tf2onnx's ``convert.from_function`` gives nodes
other names, which would change every ONNX file. To find the layer that reads the pixels, ``Layer.input`` names only the
first use of a layer, and ``Model.layers`` does not say which layer reads which tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
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


def device_graph(model: Any, preprocessing: Preprocessing) -> Any:
    """Freeze a Keras model behind its preprocessing.

    Returns a TensorFlow function from uint8 (N, height, width, 3) RGB to float32 (N, classes); N is dynamic.

    Parameters
    ----------
    model
        Keras model from float32 (N, height, width, 3), as ``Preprocessing.normalize`` gives it, to probabilities
        (N, classes), or (N, 1) for the probability of the second of two classes.

    Raises
    ------
    ConversionError
        The model has other inputs or outputs, or TensorFlow does not take a name in it.
    """
    size = (preprocessing.height, preprocessing.width)
    check_classifier(model, preprocessing)
    convolution = first_convolution(model)
    with _fold_preprocessing(convolution, preprocessing) as offset:

        def probabilities(pixels: Any) -> Any:
            values = tf.cast(pixels, tf.float32)
            if convolution is None:
                values = _normalize(values, preprocessing)
            elif np.any(offset):
                values -= tf.constant(offset, tf.float32)
            answer = model(values, training=False)
            answer = tf.cast(answer, tf.float32)  # does nothing unless the last layer computes in float16
            if answer.shape[1] == 1:
                answer = tf.concat([1 - answer, answer], axis=1)
            return tf.identity(answer, name=OUTPUT)

        with _inlined_functions():
            try:
                traced = tf.function(probabilities).get_concrete_function(
                    tf.TensorSpec((None, *size, 3), tf.uint8, name=INPUT)
                )
            except ValueError as error:
                refused = re.search(r"'.*' is not a valid (root )?scope name", str(error))
                if refused is None:
                    raise
                raise ConversionError(
                    f"TensorFlow cannot trace this model: {refused[0]}",
                    "Rename the model or layer, with only ASCII letters, digits, _ and -, and save it again",
                ) from error
        return convert_variables_to_constants_v2(traced)


def first_convolution(model: keras.Model) -> keras.layers.Conv2D | None:
    """The only layer that reads the model's input, possibly in a nested model, if it is a plain convolution.

    None if several layers read the input, or if the layer is used twice, grouped or not a ``Conv2D``, because
    factors of the input can only be folded into the kernel of a plain convolution.
    """
    while isinstance(model, keras.Model) and len(model.inputs or ()) == 1:
        # A Sequential keeps its graph in an inner Functional model; the nodes in its layers may be outdated.
        depths = getattr(model, "_functional", model)._nodes_by_depth
        nodes = [node for depth in depths.values() for node in depth]
        users = [node for node in nodes if any(tensor is model.inputs[0] for tensor in node.input_tensors)]
        if len(users) != 1 or sum(node.operation is users[0].operation for node in nodes) != 1:
            return None
        model = users[0].operation
    plain = type(model) is keras.layers.Conv2D and model.groups == 1 and model.data_format == "channels_last"
    return model if plain else None


def check_classifier(model: Any, preprocessing: Preprocessing) -> None:
    """Raise ConversionError unless a Keras model takes one preprocessed image and gives one row of classes."""
    height, width = preprocessing.height, preprocessing.width
    if len(model.inputs) != 1 or tuple(model.inputs[0].shape[1:]) != (height, width, 3):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in model.inputs)
        raise ConversionError(
            f"{model.name}: must take one input (N, {height}, {width}, 3), as its preprocessing says. "
            f"Received: {shapes}"
        )
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2 or not model.outputs[0].shape[1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in model.outputs)
        raise ConversionError(f"{model.name}: must give one output (N, classes). Received: {shapes}")


def _normalize(values: Any, preprocessing: Preprocessing) -> Any:
    """``Preprocessing.normalize`` as TensorFlow operations, without operations that have no effect."""
    if preprocessing.channel_order == "BGR":
        values = tf.gather(values, [2, 1, 0], axis=3)
    if preprocessing.scale != 1:
        values *= tf.constant(preprocessing.scale, tf.float32)
    if any(preprocessing.mean):
        values -= tf.constant(preprocessing.mean, tf.float32)
    if any(value != 1 for value in preprocessing.deviation):
        values /= tf.constant(preprocessing.deviation, tf.float32)
    return values


@contextmanager
def _inlined_functions() -> Iterator[None]:
    """Trace functions inside the traced one as part of it until the block ends.

    Keras compiles a grouped convolution with XLA, in a function of its own, which TensorFlow never inlines later.
    Converters do not know its call, ``StatefulPartitionedCall``.
    """
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eager)


@contextmanager
def _fold_preprocessing(convolution: Any | None, preprocessing: Preprocessing) -> Iterator[NDArray[np.float64]]:
    """Fold channel order, scale and deviation into the kernel until the block ends.

    Yields the offset that the graph must still subtract from the pixels, float64 (3,), R G B.
    """
    deviation, mean = np.asarray(preprocessing.deviation), np.asarray(preprocessing.mean)
    # (scale * x - mean) / deviation = (x - mean / scale) * (scale / deviation)
    factor, offset = preprocessing.scale / deviation, mean / preprocessing.scale
    if convolution is None:
        yield offset
        return
    order = slice(None, None, -1 if preprocessing.channel_order == "BGR" else 1)
    original = convolution.kernel.numpy()
    folded = original.astype(np.float64) * factor[None, None, :, None]
    convolution.kernel.assign(folded[:, :, order].astype(original.dtype))
    try:
        yield offset[order]
    finally:
        convolution.kernel.assign(original)
