"""Static int8 quantization of an ONNX model in QDQ form, for CPUs.

Activations are unsigned; weights are signed and use 7 bits. x86 CPUs without VNNI add pairs of u8 x s8
products in 16 bits with saturation: 2 x 255 x 127 overflows, 2 x 255 x 64 does not. So the artifact
gives the same answer on every CPU.

``quantize_static`` of ONNX Runtime runs its own calibration. With ``TensorQuantOverrides`` for our ranges it gives
the same numbers in another order of nodes, so files would change. Therefore ``QDQQuantizer`` gets our ranges.
``TensorsData`` comes from its own module. Tested with onnxruntime 1.32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from mri_edge.device.cpu import available_cpus
from mri_edge.export.calibration.calibrator import Calibrator, Observer, Recipe
from mri_edge.export.calibration.observation import PIXELS, Method, Observation, Range, mean_rounding_error
from mri_edge.export.formats import Converted
from mri_edge.export.sources.device_graph import INPUT

from .convert import constants, consumers, finalize, number_tensors, set_constant
from .explanation import PREFIX

QUANTIZED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose"),
)
WEIGHTED = ("Conv", "Gemm", "MatMul")


def quantize(model: ModelProto, calibrator: Calibrator) -> Converted:
    """The int8 QDQ file of a float model, and facts about how it was made.

    The classifying layer and all after it stay in float: they have a few hundred weights and much influence.
    """
    with_channel = _move_mean_to_channel(model)
    observed = calibrator.observe(observer(with_channel), channel_axis=1)

    def build(recipe: Recipe) -> Converted:
        if recipe.first_in_float:  # then the subtraction can stay as well
            return quantize_with(model, observed, recipe.method, [first(model), *head(model)])
        return quantize_with(with_channel, observed, recipe.method, head(model))

    return calibrator.build_best(build, model.SerializeToString(), ".onnx")


def quantize_with(
    model: ModelProto,
    observed: Mapping[str, Observation],
    method: Method,
    keep_float: Sequence[str],
    *,
    weight_bits: Literal[7, 8] = 7,
) -> Converted:
    """Quantize with given observations; ``keep_float`` names the nodes that stay in float."""
    from onnxruntime.quantization import QuantType

    ranges = {name: observation.range(method) for name, observation in observed.items()}
    corrected = deepcopy(model)
    correct_biases(corrected, observed, keep_float, levels=64 if weight_bits == 7 else 127)
    # The input of a ReLU gets the range of its output: saturation then does the work of the ReLU, which is removed.
    clipped = [node for node in model.graph.node if node.op_type == "Relu" and not _is_explanation(node.name)]
    for node in reversed(clipped):  # a ReLU may read a ReLU
        if node.output[0] in ranges:
            ranges.setdefault(node.input[0], ranges[node.output[0]])
    if cast := _find_cast(model):
        ranges[cast.output[0]] = PIXELS
    result = insert_qdq(
        corrected,
        ranges,
        QUANTIZED,
        QuantType.QUInt8,
        weight_bits=weight_bits,
        keep_float=[*keep_float, *(node.name for node in model.graph.node if _is_explanation(node.name))],
        options={"ActivationSymmetric": False},
    )
    _read_pixels_as_integers(result)
    _scale_gradients(result)
    return number_tensors(finalize(result)).SerializeToString(), {
        "weights": f"int8 per channel, {weight_bits} bits, bias corrected",
        "activations": "uint8 per tensor",
        "float_nodes": list(keep_float),
    }


def insert_qdq(
    model: ModelProto,
    ranges: Mapping[str, Range],
    operators: Sequence[str],
    activation_type: Any,
    *,
    weight_bits: Literal[7, 8],
    keep_float: Sequence[str],
    options: Mapping[str, Any],
) -> ModelProto:
    """Insert QuantizeLinear and DequantizeLinear around the given operators with ONNX Runtime's quantizer.

    Weights become int8 per output channel. ``activation_type`` is a ``QuantType``, ``keep_float`` names the nodes to
    leave out, and ``options`` are more ``extra_options`` of the quantizer. ``model`` is modified.
    """
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData

    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=activation_type,
        tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
        nodes_to_quantize=[],
        nodes_to_exclude=list(keep_float),
        op_types_to_quantize=list(operators),
        extra_options={"WeightSymmetric": True, **options},
    )
    result: ModelProto = quantizer.quantize_model()
    return result


def activations(model: ModelProto) -> list[str]:
    """Names of the float tensors that need a range: all but outputs, explanations, and what only a ReLU reads."""
    return [
        value.name
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and not _is_explanation(value.name)
        and {node.op_type for node in consumers(model, value.name)} != {"Relu"}
    ]


def observer(model: ModelProto) -> Observer:
    """A function that runs uint8 batches through ``model`` and returns every tensor of ``activations``."""
    import onnxruntime

    names = activations(model)
    exposed = deepcopy(model)
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def observe(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {INPUT: batch}), strict=True))

    return observe


def first(model: ModelProto) -> str:
    """Name of the first node with weights."""
    return str(next(node.name for node in model.graph.node if node.op_type in WEIGHTED))


def head(model: ModelProto) -> list[str]:
    """Names of the last node with weights and of all after it: the classifying layer and the softmax.

    After a single sigmoid this includes the Concat that gives the output, for which no range is known.
    """
    own = [node for node in model.graph.node if not _is_explanation(node.name)]
    last = max(index for index, node in enumerate(own) if node.op_type in WEIGHTED)
    return [node.name for node in own[last:]]


def _is_explanation(name: str) -> bool:
    """Whether a node or tensor belongs to the heatmap outputs, which stay in float."""
    return name.startswith(PREFIX)


def correct_biases(
    model: ModelProto, observed: Mapping[str, Observation], keep_float: Sequence[str], levels: int
) -> None:
    """Subtract from each bias the average error that rounding the kernel causes."""
    values = constants(model)
    for node in model.graph.node:
        correctable = (
            len(node.input) == 3 and {node.input[1], node.input[2]} <= values.keys() and node.input[0] in observed
        )
        # A bias that two nodes share cannot be corrected for both.
        correctable = correctable and len(consumers(model, node.input[2])) == 1
        if node.name in keep_float or _is_explanation(node.name) or not correctable:
            continue
        kernel = values[node.input[1]]
        means = observed[node.input[0]].channel_means
        depthwise = kernel.shape[:2] == (len(means), 1)
        if node.op_type == "Conv" and (kernel.shape[1] == len(means) or depthwise):  # not grouped otherwise
            error = mean_rounding_error(kernel.reshape(*kernel.shape[:2], -1), means, levels)
        elif node.op_type == "Gemm" and kernel.shape[0] == len(means):
            error = mean_rounding_error(kernel.T[:, :, None], means, levels)
        else:
            continue
        set_constant(model, node.input[2], values[node.input[2]] - error)


def _move_mean_to_channel(model: ModelProto) -> ModelProto:
    """A copy in which a fourth channel of the constant 255 replaces subtracting the mean; pixels stay integers.

    The kernel of that channel adds what the subtraction would have. Zero padding applies to it as well, so
    the borders are exact.
    """
    moved = deepcopy(model)
    values = constants(moved)
    cast = _find_cast(moved)
    readers = consumers(moved, cast.output[0]) if cast else []
    if cast is None or [node.op_type for node in readers] != ["Sub"] or readers[0].input[1] not in values:
        return moved
    [subtraction] = readers
    readers = consumers(moved, subtraction.output[0])
    if [node.op_type for node in readers] != ["Conv"] or values[readers[0].input[1]].shape[1] != 3:
        return moved
    [convolution] = readers
    kernel, mean = values[convolution.input[1]], values[subtraction.input[1]].reshape(1, 3, 1, 1)
    channel = -(kernel * mean).sum(axis=1, keepdims=True) / 255
    set_constant(moved, convolution.input[1], np.concatenate([kernel, channel], axis=1).astype(np.float32))
    set_constant(moved, "one_more_channel", np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64))
    set_constant(moved, "full", np.array(255, np.uint8))
    name = f"{cast.input[0]}/with_constant"
    moved.graph.node.append(
        helper.make_node("Pad", [cast.input[0], "one_more_channel", "full"], [name], name="constant_channel")
    )
    cast.input[0], convolution.input[0] = name, cast.output[0]
    moved.graph.node.remove(subtraction)
    return finalize(moved)


def _scale_gradients(model: ModelProto) -> None:
    """Make the explanation read the integers of a kernel, and multiply its gradient by their scales instead.

    With its default settings OpenVINO 2026.4 crashes on a Gemm that reads a dequantized kernel with one scale for each
    of the values that it adds up.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in [node for node in model.graph.node if node.op_type == "Gemm" and _is_explanation(node.name)]:
        dequantize = makers.get(node.input[1])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        kernel, scales, _ = dequantize.input  # the zero points of weights are 0
        scaled, integers = f"{node.name}/scaled", f"{node.name}/integers"
        model.graph.node.extend(
            [
                helper.make_node("Mul", [node.input[0], scales], [scaled], name=scaled),
                helper.make_node("Cast", [kernel], [integers], name=integers, to=TensorProto.FLOAT),
            ]
        )
        node.input[0], node.input[1] = scaled, integers


def _find_cast(model: ModelProto) -> NodeProto | None:
    """The node that casts the pixels to float, possibly after a Transpose or Pad; None if there is none."""
    name = INPUT
    while True:
        readers = consumers(model, name)
        if len(readers) != 1 or readers[0].op_type not in ("Transpose", "Pad", "Cast"):
            return None
        if readers[0].op_type == "Cast":
            return readers[0]
        name = readers[0].output[0]


def _read_pixels_as_integers(model: ModelProto) -> None:
    """If pixels are cast to float only to be quantized again (scale 1, zero point 0), skip both steps."""
    cast = _find_cast(model)
    readers = consumers(model, cast.output[0]) if cast else []
    if cast is None or len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return
    [quantizer] = readers
    for reader in consumers(model, quantizer.output[0]):
        reader.input[0] = cast.input[0]
    model.graph.node.remove(cast)
    model.graph.node.remove(quantizer)
