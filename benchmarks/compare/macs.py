"""How many multiply-adds a network does for one image: counted in its ONNX graph."""

from __future__ import annotations

import math

from mri_edge.bundles.bundle import Bundle

_COUNTED = ("Conv", "Gemm", "MatMul")


def multiply_adds(bundle: Bundle) -> int | None:
    """Of the float ONNX artefact, else of any; None without one. VGG16 at 128 x 128 has 5.013e9.

    A convolution does, for each value that it gives, kernel area x input channels of a group; a matrix product
    rows x columns. What explains the answer (Grad-CAM) and biases are left out.
    """
    import onnx

    files = [one.file for one in bundle.manifest.artefacts if one.file.endswith(".onnx")]
    if not files:
        return None
    file = "model.onnx" if "model.onnx" in files else files[0]
    model = onnx.load(bundle.folder / file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {one.name: list(one.dims) for one in graph.initializer}
    for one in (*graph.value_info, *graph.input, *graph.output):
        dimensions = one.type.tensor_type.shape.dim
        shapes.setdefault(one.name, [size.dim_value for size in dimensions])
    shapes |= {
        node.output[0]: shapes[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes
    }
    total = 0
    for node in graph.node:
        if node.op_type not in _COUNTED or node.name.startswith("explanation") or "explanation" in node.output[0]:
            continue
        weights, given = shapes[node.input[1]], shapes[node.output[0]]
        if node.op_type == "Conv":
            total += math.prod(given[2:]) * math.prod(weights)
        else:
            total += math.prod(weights)
    return total
