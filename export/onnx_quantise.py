"""Static int8 quantisation of an ONNX model in QDQ form.

Activations are unsigned, weights signed and in 7 bits. x86 CPUs without VNNI add pairs of u8 x s8
products in 16 bits with saturation: 2 x 255 x 127 does not fit, 2 x 255 x 64 does. So the artefact
gives the same answer on every CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from .calibrate import Calibrator, Range
from .device_graph import INPUT
from .explanation import PREFIX
from .onnx_graph import consumers, finished

QUANTISED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose"),
)
WEIGHTED = ("Conv", "Gemm", "MatMul")
PIXELS: Range = (0.0, 255.0)


def quantise(model: ModelProto, calibrator: Calibrator) -> tuple[ModelProto, dict[str, Any]]:
    """int8 QDQ model from the float one, and facts about how it was made.

    The classifying layer and softmax stay in float: some hundred weights that decide the last digits.
    """
    ranges = calibrator.ranges(observer(model, activations(model)))
    return quantised(model, ranges, keep_float=(head(model),))


def quantised(
    model: ModelProto, ranges: dict[str, Range], keep_float: Sequence[str], *, weight_bits: Literal[7, 8] = 7
) -> tuple[ModelProto, dict[str, Any]]:
    """As ``quantise``, with given ranges by tensor name; ``keep_float`` names nodes."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = ModelProto()
    copy.CopyFrom(model)
    # What only a ReLU reads takes the ReLU's own range: the quantiser then lets saturation do its work.
    clipped = [node for node in model.graph.node if node.op_type == "Relu" and not _explains(node.name)]
    ranges = {node.input[0]: ranges[node.output[0]] for node in clipped} | ranges
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
    return finished(result), {
        "weights": f"int8 per channel, {weight_bits} bits",
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


def observer(model: ModelProto, names: list[str]) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """A function that runs uint8 batches through ``model`` and shows the tensors ``names``."""
    import onnxruntime
    from mri_edge.cpu import available_cpus

    exposed = ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def observe(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return dict(zip(names, session.run(names, {INPUT: batch}), strict=True))

    return observe


def head(model: ModelProto) -> str:
    """Name of the last node with weights: the classifying layer."""
    weighted = [node.name for node in model.graph.node if node.op_type in WEIGHTED and not _explains(node.name)]
    return str(weighted[-1])


def _explains(name: str) -> bool:
    """Whether a node or tensor belongs to the explanation, which stays in float."""
    return name.startswith(PREFIX)


def _cast_of_pixels(model: ModelProto) -> NodeProto | None:
    """The node that turns 8-bit pixels into float."""
    return next((node for node in model.graph.node if node.op_type == "Cast"), None)


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
