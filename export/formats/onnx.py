"""ONNX, float32: the model that every other ONNX artifact is made from."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET

FILE = "model.onnx"
FORMAT = "onnx"
PRECISION: Precision = "float32"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the ONNX file, and facts about how it was made."""
    return conversion.float_onnx.SerializeToString(), {"opset": OPSET}
