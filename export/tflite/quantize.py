"""Full-integer quantisation of a TFLite model, by our own ranges.

TensorFlow's quantiser reads the range of each tensor from the file. Its own calibrator knows min-max
only, and runs operator by operator; ours writes the ranges of any method into the file instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert import mlir_quantize

from mri_edge.device.cpu import available_cpus
from mri_edge.errors import ConversionError, first_line
from mri_edge.export.calibration.calibrate import Calibrator, Method, Observation, Observe, Range, Recipe
from mri_edge.export.calibration.rounding import mean_shift
from mri_edge.export.calibration.search import best

from .convert import constant, float_activations, operator_code, read, set_constant, write

_OPERATOR = schema.BuiltinOperator
PIXELS: Range = (0.0, 255.0)
_DENSE = (_OPERATOR.CONV_2D, _OPERATOR.FULLY_CONNECTED)
_WEIGHTED = (_OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D, _OPERATOR.FULLY_CONNECTED)


def quantise(content: bytes, calibrator: Calibrator) -> tuple[bytes, dict[str, Any]]:
    """Full-integer file from the float one, and facts about how it was made.

    The classifying layer and softmax stay in float: some hundred weights that decide the last digits.
    """
    observed = calibrator.observe(observer(content), channel_axis=-1)

    def build(recipe: Recipe) -> tuple[bytes, dict[str, Any]]:
        keep = [*head(content), *(first(content) if recipe.first_in_float else ())]
        return quantised(content, observed, recipe.method, keep)

    return best(calibrator, build, content, ".tflite")


def quantised(
    content: bytes, observed: Mapping[str, Observation], method: Method, keep_float: Sequence[str]
) -> tuple[bytes, dict[str, Any]]:
    """As ``quantise``, from given observations; ``keep_float`` names output tensors of operators."""
    model = read(content)
    [subgraph] = model.subgraphs
    ranges = {name: one.range(method) for name, one in observed.items()}
    _correct_biases(model, observed, keep_float)
    for operator in subgraph.operators:
        if operator_code(model, operator) == _OPERATOR.CAST and operator.inputs[0] == subgraph.inputs[0]:
            ranges[subgraph.tensors[int(operator.outputs[0])].name.decode()] = PIXELS
    for index in float_activations(model):
        low, high = ranges[subgraph.tensors[index].name.decode()]
        limits = schema.QuantizationParametersT()
        limits.min, limits.max = [low], [high]
        subgraph.tensors[index].quantization = limits
    try:
        result = bytes(mlir_quantize(write(model), denylisted_nodes=[name.encode() for name in keep_float]))
    except Exception as error:  # plain RuntimeError kin of the native quantiser
        raise ConversionError(
            f"TensorFlow cannot quantise this model: {first_line(error)}",
            "Choose other formats with --formats",
        ) from error
    return _feed_pixels_directly(result), {
        "weights": "int8 per channel, 8 bits, bias corrected",
        "activations": "int8 per tensor",
        "float_nodes": list(keep_float),
    }


def observer(content: bytes) -> Observe:
    """A function that runs uint8 batches and shows every float tensor by name.

    The tensors are declared as outputs, so that XNNPACK keeps them.
    """
    from ai_edge_litert.interpreter import Interpreter

    model = read(content)
    [subgraph] = model.subgraphs
    shown = float_activations(model)
    names = [subgraph.tensors[index].name.decode() for index in shown]
    subgraph.outputs = shown
    model.signatureDefs = None
    interpreter = Interpreter(model_content=write(model), num_threads=available_cpus())
    entry = interpreter.get_input_details()[0]["index"]
    exits = [one["index"] for one in interpreter.get_output_details()]

    def observe(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        interpreter.resize_tensor_input(entry, batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry, batch)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in zip(names, exits, strict=True)}

    return observe


def first(content: bytes) -> list[str]:
    """Output tensors of the operators up to the first with weights, that one included, without the cast of pixels."""
    model = read(content)
    [subgraph] = model.subgraphs
    operators = [one for one in subgraph.operators if operator_code(model, one) != _OPERATOR.CAST]
    weighted = [index for index, one in enumerate(operators) if operator_code(model, one) in _WEIGHTED]
    return [subgraph.tensors[int(one.outputs[0])].name.decode() for one in operators[: weighted[0] + 1]]


def head(content: bytes) -> list[str]:
    """Output tensors of the last operator with weights and of all after it: classifying layer and softmax."""
    model = read(content)
    [subgraph] = model.subgraphs
    weighted = [i for i, one in enumerate(subgraph.operators) if operator_code(model, one) in _WEIGHTED]
    return [subgraph.tensors[int(one.outputs[0])].name.decode() for one in subgraph.operators[weighted[-1] :]]


def _correct_biases(model: Any, observed: Mapping[str, Observation], keep_float: Sequence[str]) -> None:
    """Take back from each bias what rounding the kernel shifts on average."""
    [subgraph] = model.subgraphs
    readers = Counter(int(index) for one in subgraph.operators for index in one.inputs)
    for operator in subgraph.operators:
        output = subgraph.tensors[int(operator.outputs[0])].name.decode()
        if operator_code(model, operator) not in _DENSE or output in keep_float or len(operator.inputs) < 3:
            continue
        if readers[int(operator.inputs[2])] > 1:  # a bias that two operators share cannot be right for both
            continue
        entry, kernel, bias = (subgraph.tensors[int(index)] for index in operator.inputs[:3])
        weights, offsets = (constant(model, one) for one in (kernel, bias))
        seen = observed.get(entry.name.decode())
        if seen is None or weights is None or offsets is None or weights.shape[-1] != len(seen.channel_means):
            continue
        # (outputs, height, width, inputs) or (outputs, inputs)
        taps = weights.reshape(weights.shape[0], -1, weights.shape[-1]).transpose(0, 2, 1)
        set_constant(model, bias, offsets - mean_shift(taps, seen.channel_means, levels=127))


def _feed_pixels_directly(content: bytes) -> bytes:
    """Quantise the 8-bit pixels as integers: drop the cast to float between input and quantisation."""
    model = read(content)
    [subgraph] = model.subgraphs
    cast = subgraph.operators[0]
    readers = [one for one in subgraph.operators if int(cast.outputs[0]) in map(int, one.inputs)]
    if operator_code(model, cast) != _OPERATOR.CAST or len(readers) != 1:
        return content
    [quantiser] = readers
    if operator_code(model, quantiser) != _OPERATOR.QUANTIZE:
        return content
    exact = schema.QuantizationParametersT()
    exact.scale, exact.zeroPoint = [1.0], [0]
    subgraph.tensors[int(subgraph.inputs[0])].quantization = exact
    quantiser.inputs = [int(subgraph.inputs[0])]
    subgraph.operators.remove(cast)
    return write(model)
