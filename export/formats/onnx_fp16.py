"""ONNX, float16: half the size, for GPUs and NPUs; nodes that would overflow stay in float32."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from mri_edge.bundles.manifest import Precision
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.observation import Observation
from mri_edge.export.formats import Conversion
from mri_edge.export.onnx.convert import OPSET, constants, finalize
from mri_edge.export.onnx.quantize import observer

FILE = "model.fp16.onnx"
FORMAT = "onnx"
PRECISION: Precision = "float16"
CALIBRATED = True  # training images show which tensors overflow
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")

# The largest float16 is 65504 (IEEE 754-2019, binary16); the factor 4 is a margin for scans beyond calibration.
_LIMIT = 65504 / 4


def convert(conversion: Conversion) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the ONNX file, and facts about how it was made."""
    model, kept = to_float16(conversion.float_onnx, conversion.calibration())
    return model.SerializeToString(), {"opset": OPSET, "weights": "float16", "float_nodes": kept}


def to_float16(model: ModelProto, calibrator: Calibrator) -> tuple[ModelProto, list[str]]:
    """The model in float16, and the names of the nodes that stay in float32.

    A node stays if one of its constants, or one of its tensors on the calibration images, exceeds the range of
    float16. The softmax stays too, because float16 represents probabilities near 0 and 1 poorly.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    observed = calibrator.observe(observer(model), channel_axis=1)
    large = {name for name, observation in observed.items() if _largest(observation) > _LIMIT}
    # ``initial``: the region of interest of a Resize is empty.
    large |= {
        name
        for name, value in constants(model).items()
        if value.dtype == np.float32 and np.abs(value).max(initial=0) > _LIMIT
    }
    kept = [node.name for node in model.graph.node if node.op_type == "Softmax" or _touches(node, large)]
    return finalize(convert_float_to_float16(deepcopy(model), keep_io_types=True, node_block_list=kept)), kept


def _largest(observation: Observation) -> float:
    low, high = observation.range("minmax")
    return max(-low, high)


def _touches(node: NodeProto, names: set[str]) -> bool:
    return bool(names.intersection(node.input) or names.intersection(node.output))
