"""ONNX, float16: half the size, for GPUs and NPUs; nodes that would overflow stay in float32."""

from __future__ import annotations

from typing import Any

from mri_edge.bundles.manifest import Precision
from mri_edge.export.conversion import Conversion
from mri_edge.export.onnx.convert import OPSET

NAME = "onnx-fp16"
FILE = "model.fp16.onnx"
FORMAT = "onnx"
PRECISION: Precision = "float16"
CALIBRATED = True  # training images show which tensors overflow


def convert(conversion: Conversion) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the ONNX file, and facts about how it was made."""
    from mri_edge.export.onnx.float16 import to_float16

    model, kept = to_float16(conversion.float_onnx, conversion.calibration())
    return model.SerializeToString(), {"opset": OPSET, "weights": "float16", "float_nodes": kept}
