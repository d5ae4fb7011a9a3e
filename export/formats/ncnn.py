"""ncnn, float32: ``.param`` and ``.bin`` in an archive, for phones and boards."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.ncnn_param import to_ncnn

FILE = "model.ncnn.zip"
FORMAT = "ncnn"
PRECISION: Precision = "float32"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ncnn", "pnnx")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the archive, and facts about how it was made."""
    return to_ncnn(conversion.plain_onnx), {}
