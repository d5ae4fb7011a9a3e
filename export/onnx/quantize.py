"""Static int8 quantisation of an ONNX model in QDQ form.

Activations are unsigned, weights signed and in 7 bits. x86 CPUs without VNNI add pairs of u8 x s8
products in 16 bits with saturation: 2 x 255 x 127 does not fit, 2 x 255 x 64 does. So the artefact
gives the same answer on every CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from mri_edge.device.cpu import available_cpus
from mri_edge.export.calibration.calibrate import Calibrator, Method, Observation, Observe, Range, Recipe
from mri_edge.export.calibration.rounding import mean_shift
from mri_edge.export.calibration.search import best
from mri_edge.export.sources.device_graph import INPUT

from .convert import constants, consumers, finished, set_constant
from .explanation import PREFIX

QUANTISED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose"),
)
WEIGHTED = ("Conv", "Gemm", "MatMul")
PIXELS: Range = (0.0, 255.0)


def quantise(model: ModelProto, calibrator: Calibrator) -> tuple[bytes, dict[str, Any]]:
    """int8 QDQ file from the float model, and facts about how it was made.

    The classifying layer and what follows it stay in float: some hundred weights that decide the last digits.
    """
    carrying = _one_channel_for_mean(model)
    observed = calibrator.observe(observer(carrying), channel_axis=1)

    def build(recipe: Recipe) -> tuple[bytes, dict[str, Any]]:
        if recipe.first_in_float:  # then it takes the subtraction as it is
            return quantised(model, observed, recipe.method, [first(model), *head(model)])
        return quantised(carrying, observed, recipe.method, head(model))

    return best(calibrator, build, model.SerializeToString(), ".onnx")


def quantised(
    model: ModelProto,
    observed: Mapping[str, Observation],
    method: Method,
    keep_float: Sequence[str],
    *,
    weight_bits: Literal[7, 8] = 7,
) -> tuple[bytes, dict[str, Any]]:
    """As ``quantise``, from given observations; ``keep_float`` names nodes."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {name: one.range(method) for name, one in observed.items()}
    copy = ModelProto()
    copy.CopyFrom(model)
    _correct_biases(copy, observed, keep_float, levels=64 if weight_bits == 7 else 127)
    # What only a ReLU reads takes the ReLU's own range: the quantiser then lets saturation do its work.
    clipped = [node for node in model.graph.node if node.op_type == "Relu" and not _explains(node.name)]
    for node in reversed(clipped):  # a ReLU may read a ReLU
        if node.output[0] in ranges:
            ranges.setdefault(node.input[0], ranges[node.output[0]])
    if cast := _cast_of_pixels(model):
        ranges[cast.output[0]] = PIXELS
    bounds = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantiser = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
        nodes_to_quantize=[],
        nodes_to_exclude=[*keep_float, *(node.name for node in model.graph.node if _explains(node.name))],
        op_types_to_quantize=list(QUANTISED),
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    result = quantiser.quantize_model()
    _feed_pixels_directly(result)
    return finished(result).SerializeToString(), {
        "weights": f"int8 per channel, {weight_bits} bits, bias corrected",
        "activations": "uint8 per tensor",
        "float_nodes": list(keep_float),
    }


def activations(model: ModelProto) -> list[str]:
    """Names of the float tensors whose range is needed: not the outputs, nor what only a ReLU reads or explains."""
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = [one.name for one in inferred.graph.value_info if one.type.tensor_type.elem_type == TensorProto.FLOAT]
    return [
        name for name in floats if not _explains(name) and {node.op_type for node in consumers(model, name)} != {"Relu"}
    ]


def observer(model: ModelProto) -> Observe:
    """A function that runs uint8 batches through ``model`` and shows every tensor of ``activations``."""
    import onnxruntime

    names = activations(model)
    exposed = ModelProto()
    exposed.CopyFrom(model)
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
    """Names of the last node with weights and of all after it: the classifying layer, and what makes probabilities.

    Of a single sigmoid that ends in a Concat, whose output is the model's own: no range is known of it.
    """
    own = [node for node in model.graph.node if not _explains(node.name)]
    last = max(index for index, node in enumerate(own) if node.op_type in WEIGHTED)
    return [node.name for node in own[last:]]


def _explains(name: str) -> bool:
    """Whether a node or tensor belongs to the explanation, which stays in float."""
    return name.startswith(PREFIX)


def _correct_biases(
    model: ModelProto, observed: Mapping[str, Observation], keep_float: Sequence[str], levels: int
) -> None:
    """Take back from each bias what rounding the kernel shifts on average."""
    values = constants(model)
    for node in model.graph.node:
        known = len(node.input) == 3 and {node.input[1], node.input[2]} <= values.keys() and node.input[0] in observed
        # A bias that two nodes share cannot be right for both.
        known = known and len(consumers(model, node.input[2])) == 1
        if node.name in keep_float or _explains(node.name) or not known:
            continue
        kernel = values[node.input[1]]
        means = observed[node.input[0]].channel_means
        if node.op_type == "Conv" and kernel.shape[1] == len(means):  # not grouped
            shift = mean_shift(kernel.reshape(*kernel.shape[:2], -1), means, levels)
        elif node.op_type == "Gemm" and kernel.shape[0] == len(means):
            shift = mean_shift(kernel.T[:, :, None], means, levels)
        else:
            continue
        set_constant(model, node.input[2], values[node.input[2]] - shift)


def _one_channel_for_mean(model: ModelProto) -> ModelProto:
    """A copy where a fourth channel of the constant 255 carries the mean, so that pixels stay the integers they are.

    Its kernel is what the subtraction would have added. Zero padding pads it too, so borders are exact.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    values = constants(copy)
    cast = _cast_of_pixels(copy)
    readers = consumers(copy, cast.output[0]) if cast else []
    if cast is None or [node.op_type for node in readers] != ["Sub"] or readers[0].input[1] not in values:
        return copy
    [subtraction] = readers
    readers = consumers(copy, subtraction.output[0])
    if [node.op_type for node in readers] != ["Conv"] or values[readers[0].input[1]].shape[1] != 3:
        return copy
    [convolution] = readers
    kernel, mean = values[convolution.input[1]], values[subtraction.input[1]].reshape(1, 3, 1, 1)
    carrier = -(kernel * mean).sum(axis=1, keepdims=True) / 255
    set_constant(copy, convolution.input[1], np.concatenate([kernel, carrier], axis=1).astype(np.float32))
    set_constant(copy, "one_more_channel", np.array([0, 0, 0, 0, 0, 1, 0, 0], np.int64))
    set_constant(copy, "full", np.array(255, np.uint8))
    name = f"{cast.input[0]}/with_constant"
    copy.graph.node.append(
        helper.make_node("Pad", [cast.input[0], "one_more_channel", "full"], [name], name="constant_channel")
    )
    cast.input[0], convolution.input[0] = name, cast.output[0]
    copy.graph.node.remove(subtraction)
    return finished(copy)


def _cast_of_pixels(model: ModelProto) -> NodeProto | None:
    """The node that turns 8-bit pixels into float; a Transpose or Pad may lie before it."""
    name = INPUT
    while True:
        readers = consumers(model, name)
        if len(readers) != 1 or readers[0].op_type not in ("Transpose", "Pad", "Cast"):
            return None
        if readers[0].op_type == "Cast":
            return readers[0]
        name = readers[0].output[0]


def _feed_pixels_directly(model: ModelProto) -> None:
    """Where 8-bit pixels are only cast and quantised again (scale 1, zero 0), dequantise them as they are."""
    cast = _cast_of_pixels(model)
    readers = consumers(model, cast.output[0]) if cast else []
    if cast is None or len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return
    [quantiser] = readers
    for reader in consumers(model, quantiser.output[0]):
        reader.input[0] = cast.input[0]
    model.graph.node.remove(cast)
    model.graph.node.remove(quantiser)
