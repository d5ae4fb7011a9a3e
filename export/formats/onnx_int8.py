"""ONNX, int8: static QDQ, weights per channel, activations per tensor, pixels are taken as integers."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET
from mri_edge.export.onnx.quantize import quantize

FILE = "model.int8.onnx"
FORMAT = "onnx"
PRECISION: Precision = "int8"
CALIBRATED = True
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the ONNX file, and facts about how it was made."""
    content, facts = quantize(conversion.float_onnx, conversion.calibration())
    return content, {"opset": OPSET, **facts}
