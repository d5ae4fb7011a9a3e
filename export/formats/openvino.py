"""OpenVINO IR, float32: for OpenVINO's tools, servers and devices, which need no ONNX importer for it."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET
from mri_edge.export.onnx.openvino_ir import to_openvino

FILE = "model.openvino.zip"
FORMAT = "openvino"
PRECISION: Precision = "float32"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "openvino")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the archive, and facts about how it was made.

    The heatmap outputs are left out, because OpenVINO computes all outputs on every run.
    """
    return to_openvino(conversion.plain_onnx.SerializeToString()), {"opset": OPSET}
