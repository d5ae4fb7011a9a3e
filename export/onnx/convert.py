"""Convert the frozen graph to ONNX with tf2onnx, simplify it, and edit ONNX graphs."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from mri_edge.errors import ConversionError, OutputError, first_line
from mri_edge.export.sources.device_graph import INPUT, OUTPUT
from mri_edge.export.sources.layers import unsupported

# Old enough for what devices run (ONNX Runtime 1.13, OpenVINO 2022.3, TensorRT 8.6), new enough
# for per-channel QDQ (13). onnx.ai: "ONNX versioning", onnxruntime.ai: "Compatibility".
OPSET = 17

_COUNTED = re.compile(r"__\d+(?=$|:)")  # the number of a name by tf2onnx
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)


def float_model(graph: Any, layers: Iterable[str] = ()) -> ModelProto:
    """Convert a function of ``device_graph`` with tf2onnx, simplify, and check.

    Parameters
    ----------
    layers
        Names of the layers of the Keras model, which an error names.

    Raises
    ------
    ConversionError
        tf2onnx does not know an operation of the model.
    """
    import tf2onnx
    import tf2onnx.rewriter

    # tf2onnx counts the nodes that it adds in a process, from 2 after its imports, and names them by their numbers.
    # Without this, a second export in the same process would give another file.
    tf2onnx.utils.INTERNAL_NAME = 2
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph.graph.as_graph_def(),
            input_names=[f"{INPUT}:0"],
            output_names=[graph.outputs[0].name],
            opset=OPSET,
            custom_op_handlers={"Erfc": (_convert_erfc, [])},
        )
    except Exception as error:  # tf2onnx lets ValueError, KeyError and more through
        raise ConversionError(
            f"tf2onnx {tf2onnx.__version__} cannot convert this model: {first_line(error)}",
            "An operation of the model has no ONNX form; versions that work: pip install 'mri-edge[export]'",
        ) from error
    # tf2onnx only logs which operations it does not know, and copies them into the ONNX graph.
    unknown = [(node.name, node.op_type) for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)]
    if unknown:
        raise unsupported(unknown, layers, f"which tf2onnx {tf2onnx.__version__} cannot convert to ONNX")
    _rename_input_and_output(model)
    model = _fuse(model)
    _make_reshapes_constant(model)
    _transpose_pixels_first(model)
    _fold_flatten_order(model)
    model = _fuse(model)
    _number_by_order(model)
    return finalize(model)


def _convert_erfc(context: Any, node: Any, _name: str, _arguments: Any) -> None:
    """Convert TensorFlow's erfc(x), which GELU uses, to 1 - erf(x). tf2onnx knows only erf."""
    node.type = "Erf"
    dtype = context.get_dtype(node.output[0])
    one = context.make_const(f"{node.name}/one", np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtype)))
    context.insert_new_node_on_output("Sub", node.output[0], inputs=[one.output[0], node.output[0]])


def _number_by_order(model: ModelProto) -> None:
    """Number names that tf2onnx numbered, such as ``Conv__297``, by their order in the graph.

    tf2onnx walks over sets, so its numbers, and which of several equal constants it keeps, vary from process to
    process.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    numbers: dict[str, int] = {}

    def renamed(name: str) -> str:
        found = _COUNTED.search(name)
        if found is None:
            return name
        number = f"__{numbers.setdefault(found[0], len(numbers))}"
        return f"constant{number}" if name in known else f"{name[: found.start()]}{number}{name[found.end() :]}"

    _sort(model)
    for node in model.graph.node:
        node.name = renamed(node.name)
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in model.graph.initializer:
        tensor.name = renamed(tensor.name)


def _fuse(model: ModelProto) -> ModelProto:
    """ONNX Runtime's basic optimization, offline: constants folded, batch norm and bias fused.

    Higher levels add operators and layouts that only one runtime or CPU knows.
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
            raise OutputError(f"{folder}: {free / 1e6:.0f} MB free, not enough for a copy of the model", "Set TMPDIR")
        try:
            onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own subclass of RuntimeError for each cause
            raise ConversionError(f"onnxruntime cannot optimize the model: {first_line(error)}") from error
        return onnx.load(options.optimized_model_filepath)


def finalize(model: ModelProto) -> ModelProto:
    """Remove unused constants, sort constants and nodes, declare the batch size as dynamic, and check the model."""
    used = {name for node in model.graph.node for name in node.input}
    # tf2onnx and ONNX Runtime keep constants in hash tables, so that their order varies from run to run.
    kept = sorted((tensor for tensor in model.graph.initializer if tensor.name in used), key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    _sort(model)
    domains = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
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


def number_tensors(model: ModelProto) -> ModelProto:
    """Replace the names of inner tensors by numbers. Nodes keep theirs, which profilers show. ``model`` is modified.

    The names that tf2onnx and the quantizer of ONNX Runtime make up take a tenth of the file of a small int8 model.
    """
    names = {value.name: value.name for value in (*model.graph.input, *model.graph.output)} | {"": ""}
    made = (name for node in model.graph.node for name in node.output)
    for name in (*(tensor.name for tensor in model.graph.initializer), *made):
        names.setdefault(name, str(len(names)))
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    return model


def cast_pixels_first(model: ModelProto) -> ModelProto:
    """A copy in which the pixels become floats before they are transposed, for TensorRT.

    TensorRT lets only a Cast read uint8 (github.com/NVIDIA/TensorRT, issue 3985). On a CPU the transpose of floats
    takes longer.
    """
    moved = deepcopy(model)
    transposes = consumers(moved, INPUT)
    casts = consumers(moved, transposes[0].output[0])
    if [node.op_type for node in (*transposes, *casts)] == ["Transpose", "Cast"]:
        [transpose], [cast] = transposes, casts
        between, last = transpose.output[0], cast.output[0]
        cast.input[0], cast.output[0] = INPUT, between
        transpose.input[0], transpose.output[0] = between, last
    return finalize(moved)


def constants(model: ModelProto) -> dict[str, NDArray[Any]]:
    """The initializers as arrays, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def set_constant(model: ModelProto, name: str, value: NDArray[np.generic]) -> None:
    """Add an initializer, or replace the one of that name."""
    tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)  # ascontiguousarray makes scalars vectors
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def consumers(model: ModelProto, name: str) -> list[NodeProto]:
    """Nodes that read a tensor."""
    return [node for node in model.graph.node if name in node.input]


def _rewire(model: ModelProto, old: str, new: str) -> None:
    """Make every node that reads ``old`` read ``new``."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _permutation(node: NodeProto) -> tuple[int, ...] | None:
    """Axis order of a Transpose; None for another node."""
    if node.op_type != "Transpose":
        return None
    return tuple(next(attribute.ints for attribute in node.attribute if attribute.name == "perm"))


def shapes(model: ModelProto) -> dict[str, list[int]]:
    """Inferred shapes of the tensors inside the graph, by name; 0 for a dynamic length."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return {
        value.name: [length.dim_value for length in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }


def _rename_input_and_output(model: ModelProto) -> None:
    """Give the graph's input and output the names of ``device_graph``."""
    [entry], [exit_] = model.graph.input, model.graph.output
    _rewire(model, entry.name, INPUT)
    entry.name = INPUT
    if exit_.name == OUTPUT:
        return
    for node in model.graph.node:
        node.output[:] = [OUTPUT if name == exit_.name else name for name in node.output]
    _rewire(model, exit_.name, OUTPUT)
    exit_.name = OUTPUT


def _make_reshapes_constant(model: ModelProto) -> None:
    """Replace the target of a Reshape that is computed from the batch size by the constant (-1, rest)."""
    inferred = shapes(model)
    fixed = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        rest = inferred.get(node.output[0], [])[1:]
        if node.op_type == "Reshape" and node.input[1] not in fixed and rest and all(rest):
            name = f"{node.output[0]}/shape"
            set_constant(model, name, np.array([-1, *rest], np.int64))
            node.input[1] = name
    _drop_dead_nodes(model)


def _drop_dead_nodes(model: ModelProto) -> None:
    while True:
        needed = {name for node in model.graph.node for name in node.input} | {
            output.name for output in model.graph.output
        }
        dead = [node for node in model.graph.node if not needed.intersection(node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)


def _transpose_pixels_first(model: ModelProto) -> None:
    """Move the NHWC to NCHW transpose before cast and arithmetic, because uint8 pixels are a quarter of the bytes."""
    values, steps, name = constants(model), [], INPUT
    while True:
        readers = consumers(model, name)
        if len(readers) != 1:
            return
        [node] = readers
        if _permutation(node) == _TO_NCHW:
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
    _rewire(model, node.output[0], name)
    node.input[0], steps[0].input[0] = INPUT, node.output[0]
    _sort(model)


def _sort(model: ModelProto) -> None:
    """Order the nodes so that each comes after those it reads from."""
    waiting = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    known = {"", model.graph.input[0].name} | {tensor.name for tensor in model.graph.initializer}
    del model.graph.node[:]
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ConversionError(f"the ONNX model reads {waiting[0].input[0]!r}, which no node makes")
        model.graph.node.extend(ready)
        known.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not known.issuperset(node.output)]


def _fold_flatten_order(model: ModelProto) -> None:
    """Remove the NCHW to NHWC transpose before a flatten, and reorder the rows of the dense kernel instead."""
    inferred, values = shapes(model), constants(model)
    for transpose in [node for node in model.graph.node if _permutation(node) == _TO_NHWC]:
        reshape = _only_reader(model, transpose, "Reshape")
        dense = reshape and _only_reader(model, reshape, "MatMul", "Gemm")
        if (
            not reshape
            or not dense
            or any(attribute.name.startswith("trans") and attribute.i for attribute in dense.attribute)
        ):
            continue
        channels, height, width = inferred[transpose.input[0]][1:]
        kernel = values.get(dense.input[1])
        if kernel is None or kernel.shape[0] != channels * height * width:
            continue
        rows = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        set_constant(model, dense.input[1], rows)
        reshape.input[0] = transpose.input[0]
        model.graph.node.remove(transpose)


def _only_reader(model: ModelProto, node: NodeProto, *kinds: str) -> NodeProto | None:
    """The node that reads the output of ``node``, if it is the only one and of one of these kinds."""
    readers = consumers(model, node.output[0])
    return readers[0] if len(readers) == 1 and readers[0].op_type in kinds else None
