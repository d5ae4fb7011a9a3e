"""Read and write a TFLite file as Python objects, by the schema that LiteRT ships, and access its tensors."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

BuiltinOperator = schema.BuiltinOperator
_FILE_IDENTIFIER = b"TFL3"


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
