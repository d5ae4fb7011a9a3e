"""Open TensorFlow's SavedModel as a Keras model, after a check that its graph only computes.

A SavedModel is a program: TensorFlow has operations that read and write files, load word lists and call
Python, and it runs some functions as soon as the model is loaded.

The protobuf class of the file has no public name in TensorFlow, since the public loader opens a model without
a check. ``tensorflow.core.protobuf`` is generated from the file format, and ``tensorflow.python.ops.gen_*_ops`` from
the definitions of the operations. Tested with TensorFlow 2.21.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.ops import (
    gen_array_ops,
    gen_bitwise_ops,
    gen_control_flow_ops,
    gen_functional_ops,
    gen_image_ops,
    gen_linalg_ops,
    gen_list_ops,
    gen_manip_ops,
    gen_math_ops,
    gen_nn_ops,
    gen_special_math_ops,
    gen_spectral_ops,
    gen_stateless_random_ops,
    gen_stateless_random_ops_v2,
    gen_string_ops,
)

from mri_edge.authoring.keras_models.containers import UnsafeModelError, check_unpacked
from mri_edge.errors import BundleError, ConversionError, first_line
from mri_edge.storage.lfs import HINT, is_lfs_pointer

GRAPH = "saved_model.pb"
_LARGEST_GRAPH = 256 << 20  # bytes; weights are not in it
# Operations with a state or side effect that a classifier needs, including its training.
_STATEFUL = re.compile(
    r"VarHandleOp|VarIsInitializedOp|VariableShape|ReadVariableOp|DisableCopyOnRead"
    r"|Assign(Add|Sub)?VariableOp|Resource(Sparse)?(Apply|Gather|Scatter|Strided)\w*|DestroyResourceOp"
    r"|(Stateful)?PartitionedCall|If|While|Case|Assert|CheckNumerics(V2)?|GuaranteeConst|Empty|TensorArray\w*V3"
    r"|Random(Uniform|UniformInt|StandardNormal|Gamma|Poisson|PoissonV2|Shuffle|Crop)|TruncatedNormal|Multinomial"
    r"|Stateful\w*(Uniform|Normal)\w*|RngReadAndSkip|RngSkip"
    r"|StatelessRandomGetAlg"
)
# Operations without a state, by the groups in which TensorFlow defines them. Many outside these groups read files.
_COMPUTING = (
    *(gen_array_ops, gen_bitwise_ops, gen_control_flow_ops, gen_functional_ops, gen_image_ops, gen_linalg_ops),
    *(gen_list_ops, gen_manip_ops, gen_math_ops, gen_nn_ops, gen_special_math_ops, gen_spectral_ops),
    *(gen_stateless_random_ops, gen_stateless_random_ops_v2, gen_string_ops),
)
_NEEDED = {"DynamicPartition", "DynamicStitch"}  # of other groups
# Operations in these groups that end the process or map a file into memory.
_REACHING = {"Abort", "ImmutableConst"}
# Every SavedModel contains functions that save and restore its variables. They are never called here.
_SAVING = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}


def load_saved_model(folder: Path, height: int, width: int, original: Path | None = None) -> keras.Model:
    """Open TensorFlow's SavedModel as a Keras model from float32 (N, height, width, 3 or 1) to its one output.

    Parameters
    ----------
    original
        The folder that messages and the model's name refer to, if ``folder`` is a copy of it.

    Raises
    ------
    BundleError
        It is not a SavedModel, or its graph does more than compute.
    ConversionError
        It has no signature of one image input and one output.
    """
    check_saved_model(folder)
    original = original or folder
    for endpoint in ("serve", "serving_default"):
        try:
            layer = keras.layers.TFSMLayer(str(folder), call_endpoint=endpoint)
            pixels, answer = _call(layer, height, width)
        except Exception as error:  # noqa: BLE001 (Keras lets ValueError, OSError, KeyError, TypeError and more through)
            reason = error
            continue
        outputs = keras.tree.flatten(answer)
        if len(outputs) != 1:
            raise ConversionError(
                f"{original}: its signature {endpoint!r} has {len(outputs)} outputs, one is supported"
            )
        # TensorFlow traces a model only under a name of ASCII letters, digits and some signs.
        name = re.sub(r"[^A-Za-z0-9]+", "-", original.name).strip("-") or None
        return keras.Model(pixels, outputs[0], name=name)
    raise ConversionError(
        f"{original}: no SavedModel with a signature for float32 (N, {height}, {width}, 3) ({first_line(reason)})",
        "Save it with model.export",
    ) from reason


def _call(layer: Any, height: int, width: int) -> tuple[Any, Any]:
    """An input that the layer takes, with 3 channels or else 1, and the layer's output for it."""
    colored = keras.Input((height, width, 3))
    try:
        return colored, layer(colored)
    except Exception as error:  # noqa: BLE001 (as in load_saved_model)
        gray = keras.Input((height, width, 1))
        try:
            return gray, layer(gray)
        except Exception:  # noqa: BLE001 (the first reason is the one to show)
            raise error from None


def check_saved_model(folder: Path) -> None:
    """Check the graph of a SavedModel.

    Raises
    ------
    BundleError
        There is no graph, it is damaged, or it does more than compute.
    """
    path = folder / GRAPH
    if not path.is_file():
        raise BundleError(f"{folder}: not a SavedModel, there is no file {GRAPH} in it", "Save it with model.export")
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_GRAPH + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot read ({error.strerror})", "Copy it again") from error
    if is_lfs_pointer(content[:64]):
        raise BundleError(f"{path}: is a Git LFS pointer, not the model", HINT)
    if len(content) > _LARGEST_GRAPH:
        raise BundleError(f"{path}: refused: more than {_LARGEST_GRAPH:,} bytes", "Save the weights outside the graph")
    try:
        for graph in SavedModel.FromString(content).meta_graphs:
            _check(graph, len(content))
    except UnsafeModelError as error:
        raise BundleError(f"{folder}: refused: {error}", "Save the model again, with only Keras' own layers") from error
    except Exception as error:  # DecodeError of protobuf, or an unknown data type
        raise BundleError(f"{path}: damaged ({type(error).__name__})", "Save it with model.export") from error


def _check(graph: Any, size: int) -> None:
    bodies = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    saving = {name for name, nodes in bodies.items() if any(node.op in _SAVING for node in nodes)}
    for nodes in (graph.graph_def.node, *bodies.values()):
        for node in nodes:
            _check_operation(node.op, bodies)
    check_unpacked(sum(map(_constants, (graph.graph_def.node, *bodies.values()))), size, "the graph")
    called = set(graph.object_graph_def.concrete_functions)
    if not called:
        raise UnsafeModelError("it has no functions that are called by name; TensorFlow 1 saved it")
    if any(name in saving for name in _reached(called, bodies)):
        raise UnsafeModelError("a function of it writes or reads files")


def _check_operation(name: str, bodies: Any) -> None:
    if name in bodies or name in _SAVING:
        return
    try:
        definition = tf.Graph().op_def_for_type(name)
    except Exception as error:  # TensorFlow raises an error of its own for an unknown name
        raise UnsafeModelError(f"its operation {name!r} is not known") from error
    if definition.is_stateful:
        allowed = _STATEFUL.fullmatch(name) is not None
    else:
        allowed = name in _NEEDED or (name not in _REACHING and any(hasattr(group, name) for group in _COMPUTING))
    if not allowed:
        raise UnsafeModelError(f"its operation {name!r} may do more than compute")


def _constants(nodes: Iterable[Any]) -> int:
    """Size in bytes of the constants when unpacked, because one number and a shape can describe gigabytes."""
    tensors = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    return sum(
        tf.as_dtype(tensor.dtype).size * math.prod(max(0, length.size) for length in tensor.tensor_shape.dim)
        for tensor in tensors
    )


def _reached(names: Iterable[str], bodies: Any) -> set[str]:
    """The named functions and all functions that they may call."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in reached or name not in bodies:
            continue
        reached.add(name)
        for node in bodies[name]:
            waiting.append(node.op)
            for attribute in node.attr.values():
                waiting += [attribute.func.name, *(function.name for function in attribute.list.func)]
    return reached
