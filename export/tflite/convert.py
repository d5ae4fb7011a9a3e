"""The frozen graph as a TFLite file with a dynamic batch, and access to its tensors.

TensorFlow's flatbuffer tools read a file into plain objects and write them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from mri_edge.errors import ConversionError, first_line
from mri_edge.export.sources.device_graph import INPUT, OUTPUT, DeviceGraph


def float_model(graph: DeviceGraph) -> bytes:
    """Convert with TensorFlow's converter and simplify. Raises ConversionError for an unknown operation."""
    return finished(convert(graph))


def convert(graph: DeviceGraph, optimizations: Sequence[Any] = (), supported_types: Sequence[Any] = ()) -> bytes:
    """Run TensorFlow's converter, which gives these settings the same names; built-in TFLite operations only."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph.function])
    converter.optimizations = list(optimizations)
    converter.target_spec.supported_types = list(supported_types)
    try:
        return bytes(converter.convert())
    except Exception as error:  # ConverterError, and plain ValueError and RuntimeError
        raise ConversionError(
            f"TensorFlow {tf.__version__} cannot convert this model to TFLite: {first_line(error)}",
            "An operation of the model has no TFLite form",
        ) from error


def read(content: bytes) -> Any:
    """The file as a ``ModelT`` object."""
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(content))


def write(model: Any) -> bytes:
    """The file's bytes from a ``ModelT`` object."""
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def finished(content: bytes) -> bytes:
    """Constant reshapes, our names for the ends, nothing left over."""
    model = read(content)
    [subgraph] = model.subgraphs
    _settle_reshapes(model, subgraph)
    for index, name in ((subgraph.inputs[0], INPUT), (subgraph.outputs[0], OUTPUT)):
        subgraph.tensors[index].name = name.encode()
    for signature in model.signatureDefs or ():
        signature.inputs[0].name, signature.outputs[0].name = INPUT.encode(), OUTPUT.encode()
    return write(model)


def operator_code(model: Any, operator: Any) -> int:
    """The built-in operator's number, as ``schema.BuiltinOperator`` lists them."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def float_activations(model: Any) -> list[int]:
    """Indices of the float tensors that operators pass on, constants left out."""
    [subgraph] = model.subgraphs
    touched = {int(index) for one in subgraph.operators for index in (*one.inputs, *one.outputs) if index >= 0}
    return sorted(
        index
        for index in touched
        if subgraph.tensors[index].type == schema.TensorType.FLOAT32
        and model.buffers[subgraph.tensors[index].buffer].data is None
    )


def constant(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """Values of a float32 constant; None for another tensor."""
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)


def set_constant(model: Any, tensor: Any, values: NDArray[np.generic]) -> None:
    """Give a constant new values in a buffer of its own: equal constants may share one."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def _settle_reshapes(model: Any, subgraph: Any) -> None:
    """Reshape to the constant (-1, rest) where the target is packed from the batch size and constants.

    XNNPACK takes only reshapes with a constant target; a computed one would split the graph.
    """
    makers = {int(one.outputs[0]): one for one in subgraph.operators if len(one.outputs) == 1}
    for reshape in subgraph.operators:
        if operator_code(model, reshape) != schema.BuiltinOperator.RESHAPE or len(reshape.inputs) != 2:
            continue
        pack = makers.get(int(reshape.inputs[1]))
        if pack is None or operator_code(model, pack) != schema.BuiltinOperator.PACK:
            continue
        first, *rest = (int(index) for index in pack.inputs)
        sizes = [model.buffers[subgraph.tensors[index].buffer].data for index in rest]
        if first not in makers or any(one is None for one in sizes):
            continue
        target = np.array([-1, *(int(np.frombuffer(bytes(one), np.int32)[0]) for one in sizes)], np.int32)
        set_constant(model, subgraph.tensors[int(reshape.inputs[1])], target)
        subgraph.operators.remove(pack)
    _drop_dead_operators(subgraph)


def _drop_dead_operators(subgraph: Any) -> None:
    while True:
        needed = {int(index) for one in subgraph.operators for index in one.inputs} | set(map(int, subgraph.outputs))
        dead = [one for one in subgraph.operators if not needed.intersection(map(int, one.outputs))]
        if not dead:
            return
        for one in dead:
            subgraph.operators.remove(one)
