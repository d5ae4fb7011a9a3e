"""ONNX, int8 for TensorRT: static QDQ with zero points of 0, biases in float, and pixels that a Cast reads."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET
from mri_edge.export.onnx.symmetric import quantize_symmetric

FILE = "model.int8-symmetric.onnx"
FORMAT = "onnx"
PRECISION: Precision = "int8"
CALIBRATED = True
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the ONNX file, and facts about how it was made.

    The heatmap outputs are left out, because TensorRT computes all outputs on every run.
    """
    content, facts = quantize_symmetric(conversion.plain_onnx, conversion.calibration())
    return content, {"opset": OPSET, "target": "tensorrt", **facts}
