"""OpenVINO IR, int8: the quantization of onnx-int8, with weights of 7 bits, because it runs on the same CPUs."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET
from mri_edge.export.onnx.openvino_ir import to_openvino
from mri_edge.export.onnx.quantize import quantize

FILE = "model.int8.openvino.zip"
FORMAT = "openvino"
PRECISION: Precision = "int8"
CALIBRATED = True
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "openvino")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the archive, and facts about how it was made.

    The heatmap outputs are left out, see ``formats.openvino``.
    """
    content, facts = quantize(conversion.plain_onnx, conversion.calibration())
    return to_openvino(content), {"opset": OPSET, **facts}
