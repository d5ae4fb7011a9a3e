"""Count the multiply-adds that a network does for one image, from its ONNX graph."""

from __future__ import annotations

import math

from mri_edge.bundles.bundle import Bundle


def multiply_adds(bundle: Bundle) -> int | None:
    """Count in the float ONNX artefact, or else in the first ONNX one; None without one. VGG16 at 128 x 128: 5.013e9.

    For each output value a convolution does kernel area x input channels of a group; a matrix product does
    rows x columns in all. The explanation (Grad-CAM) and biases are not counted.
    """
    import onnx

    files = [artefact.file for artefact in bundle.manifest.artefacts if artefact.file.endswith(".onnx")]
    if not files:
        return None
    model = onnx.load(bundle.folder / ("model.onnx" if "model.onnx" in files else files[0]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {constant.name: list(constant.dims) for constant in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes.setdefault(value.name, [size.dim_value for size in value.type.tensor_type.shape.dim])
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    total = 0
    for node in graph.node:
        is_explanation = node.name.startswith("explanation") or "explanation" in node.output[0]
        if node.op_type in ("Conv", "Gemm", "MatMul") and not is_explanation:
            positions = math.prod(shapes[node.output[0]][2:]) if node.op_type == "Conv" else 1
            total += positions * math.prod(shapes[node.input[1]])
    return total
