"""Static int8 quantization of an ONNX model as TensorRT builds it for GPUs.

TensorRT quantizes what QuantizeLinear nodes tell it to quantize. It refuses zero points other than 0, so activations
are signed, and a DequantizeLinear of int32, so biases stay in float. Only a Cast may read uint8. The inputs of layers
with weights are quantized, and their outputs are not, so that TensorRT fuses them with the ReLU or addition after them
(docs.nvidia.com: TensorRT, "Explicit Quantization"). Nothing here was tested with TensorRT.

Weights use 8 bits: GPUs add the products in 32 bits, unlike the CPUs that ``quantize`` is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

from onnx import ModelProto

from mri_edge.export.calibration.calibrator import Calibrator, Recipe
from mri_edge.export.calibration.observation import Method, Observation
from mri_edge.export.formats import Converted

from .convert import cast_pixels_first, finalize, number_tensors
from .quantize import WEIGHTED, correct_biases, first, head, insert_qdq, observer


def quantize_symmetric(model: ModelProto, calibrator: Calibrator) -> Converted:
    """The int8 QDQ file of a float model, and facts about how it was made.

    The classifying layer stays in float, as in ``quantize``.
    """
    ordered = cast_pixels_first(model)
    observed = calibrator.observe(observer(ordered), channel_axis=1)

    def build(recipe: Recipe) -> Converted:
        keep = [*([first(ordered)] if recipe.first_in_float else ()), *head(ordered)]
        return _quantize_with(ordered, observed, recipe.method, keep)

    return calibrator.build_best(build, model.SerializeToString(), ".onnx")


def _quantize_with(
    model: ModelProto, observed: Mapping[str, Observation], method: Method, keep_float: Sequence[str]
) -> Converted:
    from onnxruntime.quantization import QuantType

    corrected = deepcopy(model)
    correct_biases(corrected, observed, keep_float, levels=127)
    result = insert_qdq(
        corrected,
        {name: observation.range(method) for name, observation in observed.items()},
        WEIGHTED,
        QuantType.QInt8,
        weight_bits=8,
        keep_float=keep_float,
        options={
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        },
    )
    return number_tensors(finalize(result)).SerializeToString(), {
        "weights": "int8 per channel, 8 bits, bias corrected",
        "activations": "int8 per tensor, symmetric",
        "float_nodes": list(keep_float),
    }
