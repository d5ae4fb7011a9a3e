"""Write the float32 twin of a static int8 ONNX model: the same network and weights, computed in float.

Weights are scaled back, and each pair of quantize and dequantize becomes a clip to the range of the integers (often
that clip is the ReLU). It is what `mri-edge export` makes from Keras, without TensorFlow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_float_twin(quantized: Path, target: Path) -> None:
    """Write the twin of ``quantized`` to ``target``; inputs and outputs are the same."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(quantized)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    nodes, added = [], []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
            continue
        source, scale = node.input[0], constants[node.input[1]].astype(np.float64)
        zero = constants[node.input[2]].astype(np.float64)
        if source in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            values = constants[source]
            shape = [-1 if index == axis else 1 for index in range(values.ndim)] if scale.ndim else []
            real = (values - zero.reshape(shape or zero.shape)) * scale.reshape(shape or scale.shape)
            added.append(numpy_helper.from_array(real.astype(np.float32), node.output[0]))
        elif source in quantizers:
            limits = np.iinfo(constants[node.input[2]].dtype)
            names = [f"{node.output[0]}/{side}" for side in ("least", "most")]
            for name, limit in zip(names, (limits.min, limits.max), strict=True):
                added.append(numpy_helper.from_array(np.float32((limit - zero) * scale), name))
            nodes.append(helper.make_node("Clip", [quantizers[source].input[0], *names], [node.output[0]]))
        else:  # the 8-bit pixels of the input
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in (("node", nodes), ("initializer", [*kept, *added])):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    onnx.checker.check_model(model)
    onnx.save(model, target)
