"""The frozen graph as a lean ONNX model, and the few rewrites that make it so."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from mri_edge.errors import ConversionError, OutputError, first_line
from mri_edge.export.sources.device_graph import INPUT, OUTPUT, DeviceGraph

# Old enough for what devices run (ONNX Runtime 1.13, OpenVINO 2022.3, TensorRT 8.6), new enough
# for per-channel QDQ (13). onnx.ai: "ONNX versioning", onnxruntime.ai: "Compatibility".
OPSET = 17

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def float_model(graph: DeviceGraph) -> ModelProto:
    """Convert with tf2onnx, simplify, and check.

    Raises
    ------
    ConversionError
        tf2onnx does not know an operation of the model.
    """
    import tf2onnx

    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph.function.graph.as_graph_def(),
            input_names=[f"{INPUT}:0"],
            output_names=[graph.function.outputs[0].name],
            opset=OPSET,
        )
    except Exception as error:  # tf2onnx raises plain ValueError, KeyError and more
        raise ConversionError(
            f"tf2onnx {tf2onnx.__version__} cannot convert this model: {first_line(error)}",
            "An operation of the model has no ONNX form; versions that work: pip install 'mri-edge[export]'",
        ) from error
    _rename_ends(model)
    model = fuse(model)
    _settle_reshapes(model)
    _transpose_pixels_first(model)
    _fold_flatten_order(model)
    return finished(fuse(model))


def fuse(model: ModelProto) -> ModelProto:
    """ONNX Runtime's basic optimisation, offline: constants folded, batch norm and bias fused.

    Only this level is free of operators and layouts that belong to one runtime or one CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        content = model.SerializeToString()
        free = shutil.disk_usage(folder).free
        if free < 2 * len(content):
            raise OutputError(f"{folder}: {free / 1e6:.0f} MB free, too little for a copy of the model", "Set TMPDIR")
        try:
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kin of RuntimeError for every cause
            raise ConversionError(f"onnxruntime cannot optimise the model: {first_line(error)}") from error
        return onnx.load(options.optimized_model_filepath)


def finished(model: ModelProto) -> ModelProto:
    """Drop what is not used, state the batch as dynamic, and check the model in full."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    _sort(model)
    domains = {node.domain for node in model.graph.node}
    opsets = [one for one in model.opset_import if one.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.name, model.producer_name, model.producer_version = "classifier", "mri-edge", ""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ConversionError(f"the ONNX model is not valid: {first_line(error)}") from error
    return model


def constants(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    """The initializers as arrays, by name."""
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def set_constant(model: ModelProto, name: str, value: NDArray[np.generic]) -> None:
    """Add an initializer, or replace the one of that name."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for one in model.graph.initializer:
        if one.name == name:
            one.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def consumers(model: ModelProto, name: str) -> list[NodeProto]:
    """The nodes that read a tensor."""
    return [node for node in model.graph.node if name in node.input]


def rewire(model: ModelProto, old: str, new: str) -> None:
    """Let every reader of ``old`` read ``new``."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def permutation(node: NodeProto) -> tuple[int, ...] | None:
    """Axis order of a Transpose; None for another node."""
    if node.op_type != "Transpose":
        return None
    return tuple(next(helper.get_attribute_value(one) for one in node.attribute if one.name == "perm"))


def _rename_ends(model: ModelProto) -> None:
    """Call the graph's ends by our names, whatever the converter made of them."""
    [entry], [exit_] = model.graph.input, model.graph.output
    rewire(model, entry.name, INPUT)
    entry.name = INPUT
    if exit_.name == OUTPUT:
        return
    for node in model.graph.node:
        node.output[:] = [OUTPUT if name == exit_.name else name for name in node.output]
    rewire(model, exit_.name, OUTPUT)
    exit_.name = OUTPUT


def _settle_reshapes(model: ModelProto) -> None:
    """Give a Reshape that computes its target from the batch size the constant (-1, rest) instead."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {one.name: one.type.tensor_type.shape.dim for one in inferred.graph.value_info}
    fixed = {one.name for one in model.graph.initializer}
    for node in model.graph.node:
        dims = shapes.get(node.output[0], ())
        rest = [one.dim_value for one in dims[1:]]
        if node.op_type == "Reshape" and node.input[1] not in fixed and rest and all(rest):
            name = f"{node.output[0]}/shape"
            set_constant(model, name, np.array([-1, *rest], np.int64))
            node.input[1] = name
    _drop_dead_nodes(model)


def _drop_dead_nodes(model: ModelProto) -> None:
    while True:
        needed = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
        dead = [node for node in model.graph.node if not needed.intersection(node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)


def _transpose_pixels_first(model: ModelProto) -> None:
    """Move the NHWC to NCHW transpose from behind cast and arithmetic to the 8-bit pixels: a quarter of the bytes."""
    values, steps, name = constants(model), [], INPUT
    while True:
        readers = consumers(model, name)
        if len(readers) != 1:
            return
        [node] = readers
        if permutation(node) == _TO_NCHW:
            break
        arithmetic = node.op_type in ("Sub", "Mul", "Div") and values.get(node.input[1], np.empty(0)).shape in (
            (),
            (3,),
        )
        if node.op_type != "Cast" and not arithmetic:
            return
        steps.append(node)
        name = node.output[0]
    if not steps:
        return
    for step in steps:
        if step.op_type != "Cast" and values[step.input[1]].ndim:
            turned = f"{step.output[0]}/by_channel"
            set_constant(model, turned, values[step.input[1]].reshape(-1, 1, 1))
            step.input[1] = turned
    rewire(model, node.output[0], name)
    node.input[0], steps[0].input[0] = INPUT, node.output[0]
    _sort(model)


def _sort(model: ModelProto) -> None:
    """Order the nodes so that each comes after those it reads from."""
    waiting = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    known = {"", model.graph.input[0].name} | {one.name for one in model.graph.initializer}
    del model.graph.node[:]
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ConversionError(f"the ONNX model reads {waiting[0].input[0]!r}, which nothing makes")
        model.graph.node.extend(ready)
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]


def _fold_flatten_order(model: ModelProto) -> None:
    """Drop the NCHW to NHWC transpose before a flatten, and order the rows of the dense kernel instead."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in inferred.graph.value_info}
    values = constants(model)
    for transpose in [node for node in model.graph.node if permutation(node) == _TO_NHWC]:
        reshape = _only_reader(model, transpose, "Reshape")
        dense = reshape and _only_reader(model, reshape, "MatMul", "Gemm")
        if not reshape or not dense or any(one.name.startswith("trans") and one.i for one in dense.attribute):
            continue
        channels, height, width = shapes[transpose.input[0]][1:]
        kernel = values.get(dense.input[1])
        if kernel is None or kernel.shape[0] != channels * height * width:
            continue
        rows = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        set_constant(model, dense.input[1], rows)
        reshape.input[0] = transpose.input[0]
        model.graph.node.remove(transpose)


def _only_reader(model: ModelProto, node: NodeProto, *kinds: str) -> NodeProto | None:
    """The one node that reads what ``node`` makes, if there is one only and of these kinds."""
    readers = consumers(model, node.output[0])
    return readers[0] if len(readers) == 1 and readers[0].op_type in kinds else None
