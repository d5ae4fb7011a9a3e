"""Convert the frozen graph to a TFLite file with a dynamic batch, and edit such files.

A file is edited as Python objects, by the schema that LiteRT ships.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

import flatbuffers
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from mri_edge.errors import ConversionError, first_line
from mri_edge.export.sources.device_graph import INPUT, OUTPUT
from mri_edge.export.sources.layers import unsupported

BuiltinOperator = schema.BuiltinOperator
_FILE_IDENTIFIER = b"TFL3"


def to_tflite(
    graph: Any, weights: Literal["float32", "float16", "int8"] = "float32", *, layers: Iterable[str] = ()
) -> bytes:
    """Convert a function of ``device_graph`` with TensorFlow's converter. Input and output keep their names.

    Parameters
    ----------
    layers
        Names of the layers of the Keras model, which an error names.

    Raises
    ------
    ConversionError
        TFLite has no built-in operation for an operation of the model.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    if weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    try:
        content = bytes(converter.convert())
    except Exception as error:  # ConverterError, ValueError or RuntimeError
        named = set(re.findall(r"\btf\.(\w+)", str(error)))
        unknown = [(node.name, node.op) for node in graph.graph.as_graph_def().node if node.op in named]
        if unknown:
            raise unsupported(unknown, layers, f"which TensorFlow {tf.__version__} cannot convert to TFLite") from error
        raise ConversionError(
            f"TensorFlow {tf.__version__} cannot convert this model to TFLite: {first_line(error)}",
            "An operation of the model has no TFLite form",
        ) from error
    model = read(content)
    [subgraph] = model.subgraphs
    _make_reshapes_constant(model, subgraph)
    for index, name in ((subgraph.inputs[0], INPUT), (subgraph.outputs[0], OUTPUT)):
        subgraph.tensors[index].name = name.encode()
    return write(model)


def read(content: bytes) -> Any:
    """The file as a ``ModelT`` object."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content)))


def write(model: Any) -> bytes:
    """The bytes of the file for a ``ModelT`` object."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), _FILE_IDENTIFIER)
    return bytes(builder.Output())


def operator_code(model: Any, operator: Any) -> int:
    """The operator's number in ``BuiltinOperator``."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def float_activations(model: Any) -> list[int]:
    """Indices of the float tensors that operators read or write, without constants."""
    [subgraph] = model.subgraphs
    touched = {
        int(index) for operator in subgraph.operators for index in (*operator.inputs, *operator.outputs) if index >= 0
    }
    return sorted(
        index
        for index in touched
        if subgraph.tensors[index].type == schema.TensorType.FLOAT32
        and model.buffers[subgraph.tensors[index].buffer].data is None
    )


def constant(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """Values of a float32 constant; None for any other tensor."""
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)


def set_constant(model: Any, tensor: Any, values: NDArray[np.generic]) -> None:
    """Give a constant new values in a new buffer, because equal constants may share one."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1


def set_range(tensor: Any, low: float, high: float) -> None:
    """Record the range of a float tensor, which TensorFlow's quantizer reads."""
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.min, tensor.quantization.max = [low], [high]


def set_exact_integers(tensor: Any) -> None:
    """Declare that the integers of a tensor are its values: scale 1, zero point 0."""
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale, tensor.quantization.zeroPoint = [1.0], [0]


def _make_reshapes_constant(model: Any, subgraph: Any) -> None:
    """Replace reshape targets that are packed from the batch size and constants by the constant (-1, rest).

    XNNPACK accepts only reshapes with a constant target; a computed one would split the graph.
    """
    makers = {int(operator.outputs[0]): operator for operator in subgraph.operators if len(operator.outputs) == 1}
    for reshape in subgraph.operators:
        if operator_code(model, reshape) != BuiltinOperator.RESHAPE or len(reshape.inputs) != 2:
            continue
        pack = makers.get(int(reshape.inputs[1]))
        if pack is None or operator_code(model, pack) != BuiltinOperator.PACK:
            continue
        first, *rest = (int(index) for index in pack.inputs)
        sizes = [model.buffers[subgraph.tensors[index].buffer].data for index in rest]
        if first not in makers or any(size is None for size in sizes):
            continue
        target = np.array([-1, *(int(np.frombuffer(bytes(size), np.int32)[0]) for size in sizes)], np.int32)
        set_constant(model, subgraph.tensors[int(reshape.inputs[1])], target)
        subgraph.operators.remove(pack)
    _drop_dead_operators(subgraph)


def _drop_dead_operators(subgraph: Any) -> None:
    while True:
        needed = {int(index) for operator in subgraph.operators for index in operator.inputs}
        needed |= set(map(int, subgraph.outputs))
        dead = [operator for operator in subgraph.operators if not needed.intersection(map(int, operator.outputs))]
        if not dead:
            return
        for operator in dead:
            subgraph.operators.remove(operator)
