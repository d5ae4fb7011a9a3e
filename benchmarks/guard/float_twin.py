"""The float32 twin of a static int8 ONNX model: the same network and numbers, computed in float.

What `mri-edge export` makes from Keras, without TensorFlow: weights are scaled back, and each pair of quantise and
dequantise becomes a clip to the range that the integers can hold (that clip is the ReLU in many places).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_float_twin(quantised: Path, target: Path) -> None:
    """Write the twin of ``quantised`` to ``target``; both take and give the same tensors."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(quantised)
    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    quantisers = {one.output[0]: one for one in graph.node if one.op_type == "QuantizeLinear"}
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
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
            values = constants[source]
            shape = [-1 if one == axis else 1 for one in range(values.ndim)] if scale.ndim else []
            real = (values - zero.reshape(shape or zero.shape)) * scale.reshape(shape or scale.shape)
            added.append(numpy_helper.from_array(real.astype(np.float32), node.output[0]))
        elif source in quantisers:
            limits = np.iinfo(constants[node.input[2]].dtype)
            names = [f"{node.output[0]}/{side}" for side in ("least", "most")]
            for name, limit in zip(names, (limits.min, limits.max), strict=True):
                added.append(numpy_helper.from_array(np.float32((limit - zero) * scale), name))
            nodes.append(helper.make_node("Clip", [quantisers[source].input[0], *names], [node.output[0]]))
        else:  # 8-bit pixels on their way in
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    for field, values in (("node", nodes), ("initializer", [*kept, *added])):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    onnx.checker.check_model(model)
    onnx.save(model, target)
