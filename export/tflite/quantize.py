"""Integer quantization of a TFLite model with given ranges.

TensorFlow's quantizer reads the range of each tensor from the file. Its calibrator has only the min-max method and
runs one operator at a time, so the ranges are written into the file here.

``mlir_quantize`` is that quantizer. It has no public name: ``tf.lite.TFLiteConverter`` always runs its own
calibrator first. Tested with TensorFlow 2.21.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python.convert import mlir_quantize

from mri_edge.device.cpu import available_cpus
from mri_edge.errors import ConversionError, first_line
from mri_edge.export.calibration.calibrator import Calibrator, Observer, Recipe
from mri_edge.export.calibration.observation import PIXELS, PROBABILITIES, Method, Observation, mean_rounding_error
from mri_edge.export.formats import Converted

from .convert import (
    BuiltinOperator,
    constant,
    float_activations,
    operator_code,
    read,
    set_constant,
    set_exact_integers,
    set_range,
    write,
)

_ACTIVATIONS = (BuiltinOperator.SOFTMAX, BuiltinOperator.LOGISTIC)
_WEIGHTED = (BuiltinOperator.CONV_2D, BuiltinOperator.DEPTHWISE_CONV_2D, BuiltinOperator.FULLY_CONNECTED)


def quantize(content: bytes, calibrator: Calibrator) -> Converted:
    """The full-integer file of a float one, and facts about how it was made.

    The classifying layer and softmax stay in float: they have a few hundred weights and much influence.
    """
    observed = calibrator.observe(observer(content), channel_axis=-1)

    def build(recipe: Recipe) -> Converted:
        keep = [*head(content), *(first(content) if recipe.first_in_float else ())]
        return quantize_with(content, observed, recipe.method, keep)

    return calibrator.build_best(build, content, ".tflite")


def quantize_with(
    content: bytes,
    observed: Mapping[str, Observation],
    method: Method,
    keep_float: Sequence[str] = (),
    *,
    for_accelerators: bool = False,
) -> Converted:
    """Quantize with given observations; ``keep_float`` names the output tensors of operators that stay in float.

    ``for_accelerators`` gives the kernel of a dense layer one scale, and the probabilities as int8.
    """
    model = read(content)
    [subgraph] = model.subgraphs
    ranges = {name: observation.range(method) for name, observation in observed.items()}
    _correct_biases(model, observed, keep_float, dense_per_tensor=for_accelerators)
    for operator in subgraph.operators:
        if operator_code(model, operator) == BuiltinOperator.CAST and operator.inputs[0] == subgraph.inputs[0]:
            ranges[_output_name(subgraph, operator)] = PIXELS
    # A sum of several probabilities, which a model averages, is larger than 1.
    ranges |= {name: PROBABILITIES for name in _after_last_activation(content) if ranges[name][1] <= 1}
    for index in float_activations(model):
        set_range(subgraph.tensors[index], *ranges[subgraph.tensors[index].name.decode()])
    try:
        result = bytes(
            mlir_quantize(
                write(model),
                output_data_type=tf.int8 if for_accelerators else tf.float32,
                denylisted_nodes=[name.encode() for name in keep_float],
                disable_per_channel_for_dense_layers=for_accelerators,
            )
        )
    except Exception as error:  # the native quantizer raises subclasses of RuntimeError
        raise ConversionError(
            f"TensorFlow cannot quantize this model: {first_line(error)}",
            "Choose other formats with --formats",
        ) from error
    return _read_pixels_as_integers(result), {
        "weights": "int8 per channel, 8 bits, bias corrected",
        "activations": "int8 per tensor",
        "float_nodes": list(keep_float),
    }


def observer(content: bytes) -> Observer:
    """A function that runs uint8 batches and returns every float tensor by name.

    The tensors become outputs of the model, because XNNPACK discards others.
    """
    from ai_edge_litert.interpreter import Interpreter

    model = read(content)
    [subgraph] = model.subgraphs
    observed = float_activations(model)
    names = [subgraph.tensors[index].name.decode() for index in observed]
    subgraph.outputs = observed
    model.signatureDefs = None
    interpreter = Interpreter(model_content=write(model), num_threads=available_cpus())
    pixels = interpreter.get_input_details()[0]["index"]
    outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def observe(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        interpreter.resize_tensor_input(pixels, batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(pixels, batch)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in zip(names, outputs, strict=True)}

    return observe


def first(content: bytes) -> list[str]:
    """Output tensors of all operators up to and including the first with weights, without the cast of the pixels."""
    operators = [(name, code) for name, code in _operators(content) if code != BuiltinOperator.CAST]
    last = next(index for index, (_, code) in enumerate(operators) if code in _WEIGHTED)
    return [name for name, _ in operators[: last + 1]]


def head(content: bytes) -> list[str]:
    """Output tensors of the last operator with weights and of all after it: the classifying layer and the softmax."""
    operators = _operators(content)
    start = max(index for index, (_, code) in enumerate(operators) if code in _WEIGHTED)
    return [name for name, _ in operators[start:]]


def _after_last_activation(content: bytes) -> list[str]:
    """Output tensors of the operators after the last softmax or sigmoid, which hold probabilities."""
    operators = _operators(content)
    last = max((index for index, (_, code) in enumerate(operators) if code in _ACTIVATIONS), default=len(operators))
    return [name for name, _ in operators[last + 1 :]]


def _operators(content: bytes) -> list[tuple[str, int]]:
    """Output tensor and code of each operator."""
    model = read(content)
    [subgraph] = model.subgraphs
    return [(_output_name(subgraph, operator), operator_code(model, operator)) for operator in subgraph.operators]


def _output_name(subgraph: Any, operator: Any) -> str:
    return str(subgraph.tensors[int(operator.outputs[0])].name.decode())


def _correct_biases(
    model: Any, observed: Mapping[str, Observation], keep_float: Sequence[str], *, dense_per_tensor: bool
) -> None:
    """Subtract from each bias the average error that rounding the kernel causes."""
    [subgraph] = model.subgraphs
    readers = Counter(int(index) for operator in subgraph.operators for index in operator.inputs)
    for operator in subgraph.operators:
        output = _output_name(subgraph, operator)
        if operator_code(model, operator) not in _WEIGHTED or output in keep_float or len(operator.inputs) < 3:
            continue
        if readers[int(operator.inputs[2])] > 1:  # a bias that two operators share cannot be corrected for both
            continue
        entry, kernel, bias = (subgraph.tensors[int(index)] for index in operator.inputs[:3])
        weights, offsets = (constant(model, tensor) for tensor in (kernel, bias))
        observation = observed.get(entry.name.decode())
        if (
            observation is None
            or weights is None
            or offsets is None
            or weights.shape[-1] != len(observation.channel_means)
        ):
            continue
        if operator_code(model, operator) == BuiltinOperator.DEPTHWISE_CONV_2D:  # (1, height, width, outputs)
            taps = weights.reshape(1, -1, weights.shape[-1]).transpose(2, 0, 1)
        else:  # (outputs, height, width, inputs) or (outputs, inputs)
            taps = weights.reshape(weights.shape[0], -1, weights.shape[-1]).transpose(0, 2, 1)
        per_tensor = dense_per_tensor and operator_code(model, operator) == BuiltinOperator.FULLY_CONNECTED
        error = mean_rounding_error(taps, observation.channel_means, levels=127, per_tensor=per_tensor)
        set_constant(model, bias, offsets - error)


def _read_pixels_as_integers(content: bytes) -> bytes:
    """If pixels are cast to float only to be quantized, drop the cast and quantize the integers."""
    model = read(content)
    [subgraph] = model.subgraphs
    cast = subgraph.operators[0]
    readers = [operator for operator in subgraph.operators if int(cast.outputs[0]) in map(int, operator.inputs)]
    if operator_code(model, cast) != BuiltinOperator.CAST or len(readers) != 1:
        return content
    [quantizer] = readers
    if operator_code(model, quantizer) != BuiltinOperator.QUANTIZE:
        return content
    set_exact_integers(subgraph.tensors[int(subgraph.inputs[0])])
    quantizer.inputs = [int(subgraph.inputs[0])]
    subgraph.operators.remove(cast)
    return write(model)
