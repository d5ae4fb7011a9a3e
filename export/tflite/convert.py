"""Convert the frozen graph to a TFLite file with a dynamic batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mri_edge.errors import ConversionError, first_line
from mri_edge.export.sources.device_graph import INPUT, OUTPUT, DeviceGraph

from .flatbuffer import BuiltinOperator, operator_code, read, set_constant, write


def float_model(graph: DeviceGraph) -> bytes:
    """The float32 TFLite file. Raises ConversionError for an operation that TFLite does not have."""
    return finalize(convert(graph))


def convert(graph: DeviceGraph, optimizations: Sequence[Any] = (), supported_types: Sequence[Any] = ()) -> bytes:
    """Run TensorFlow's converter with its settings of the same names; only built-in TFLite operations are allowed."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph.function])
    converter.optimizations = list(optimizations)
    converter.target_spec.supported_types = list(supported_types)
    try:
        return bytes(converter.convert())
    except Exception as error:  # ConverterError, ValueError or RuntimeError
        raise ConversionError(
            f"TensorFlow {tf.__version__} cannot convert this model to TFLite: {first_line(error)}",
            "An operation of the model has no TFLite form",
        ) from error


def finalize(content: bytes) -> bytes:
    """Make reshape targets constant, name input and output as ``device_graph`` does, and drop what is unused."""
    model = read(content)
    [subgraph] = model.subgraphs
    _make_reshapes_constant(model, subgraph)
    for index, name in ((subgraph.inputs[0], INPUT), (subgraph.outputs[0], OUTPUT)):
        subgraph.tensors[index].name = name.encode()
    for signature in model.signatureDefs or ():
        signature.inputs[0].name, signature.outputs[0].name = INPUT.encode(), OUTPUT.encode()
    return write(model)


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
