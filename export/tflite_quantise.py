"""Full-integer quantisation of a TFLite model, by our own ranges.

TensorFlow's quantiser reads the range of each tensor from the file. Its own calibrator knows min-max
only, and runs operator by operator; ours writes the ranges of any method into the file instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mri_edge.errors import ConversionError
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert import mlir_quantize

from .calibrate import Calibrator, Range
from .tflite_graph import float_activations, operator_code, read, write

_OPERATOR = schema.BuiltinOperator
PIXELS: Range = (0.0, 255.0)
_WEIGHTED = (_OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D, _OPERATOR.FULLY_CONNECTED)


def quantise(content: bytes, calibrator: Calibrator) -> tuple[bytes, dict[str, Any]]:
    """Full-integer file from the float one, and facts about how it was made.

    The classifying layer and softmax stay in float: some hundred weights that decide the last digits.
    """
    observe, close = observer(content)
    try:
        ranges = calibrator.ranges(observe)
    finally:
        close()
    return quantised(content, ranges, keep_float=head(content))


def quantised(content: bytes, ranges: dict[str, Range], keep_float: Sequence[str]) -> tuple[bytes, dict[str, Any]]:
    """As ``quantise``, with given ranges by tensor name; ``keep_float`` names output tensors of operators."""
    model = read(content)
    [subgraph] = model.subgraphs
    for operator in subgraph.operators:
        if operator_code(model, operator) == _OPERATOR.CAST and operator.inputs[0] == subgraph.inputs[0]:
            ranges = {**ranges, subgraph.tensors[int(operator.outputs[0])].name.decode(): PIXELS}
    for index in float_activations(model):
        low, high = ranges[subgraph.tensors[index].name.decode()]
        limits = schema.QuantizationParametersT()
        limits.min, limits.max = [low], [high]
        subgraph.tensors[index].quantization = limits
    try:
        result = bytes(mlir_quantize(write(model), denylisted_nodes=[name.encode() for name in keep_float]))
    except Exception as error:  # plain RuntimeError kin of the native quantiser
        raise ConversionError(
            f"TensorFlow cannot quantise this model: {str(error).strip().splitlines()[0]}",
            "Choose other formats with --formats",
        ) from error
    return _feed_pixels_directly(result), {
        "weights": "int8 per channel",
        "activations": "int8 per tensor",
        "float_nodes": list(keep_float),
    }


def observer(
    content: bytes,
) -> tuple[Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]], Callable[[], None]]:
    """A function that runs uint8 batches and shows every float tensor by name, and one that frees it.

    The tensors are declared as outputs, so that XNNPACK keeps them.
    """
    from ai_edge_litert.interpreter import Interpreter
    from mri_edge.cpu import available_cpus

    model = read(content)
    [subgraph] = model.subgraphs
    shown = float_activations(model)
    names = [subgraph.tensors[index].name.decode() for index in shown]
    subgraph.outputs = shown
    model.signatureDefs = None
    interpreter = Interpreter(model_content=write(model), num_threads=available_cpus())
    entry = interpreter.get_input_details()[0]["index"]
    exits = [one["index"] for one in interpreter.get_output_details()]
    size = 0

    def observe(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        nonlocal size
        if len(batch) != size:
            interpreter.resize_tensor_input(entry, batch.shape)
            interpreter.allocate_tensors()
            size = len(batch)
        interpreter.set_tensor(entry, batch)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in zip(names, exits, strict=True)}

    def close() -> None:
        nonlocal interpreter
        del interpreter

    return observe, close


def head(content: bytes) -> list[str]:
    """Output tensors of the last operator with weights and of all after it: classifying layer and softmax."""
    model = read(content)
    [subgraph] = model.subgraphs
    weighted = [i for i, one in enumerate(subgraph.operators) if operator_code(model, one) in _WEIGHTED]
    return [subgraph.tensors[int(one.outputs[0])].name.decode() for one in subgraph.operators[weighted[-1] :]]


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
