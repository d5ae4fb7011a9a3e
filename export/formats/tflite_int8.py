"""TFLite, full integer: int8 weights per channel and activations, 8-bit pixels in, a float head."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.tflite.quantize import quantize

FILE = "model.int8.tflite"
FORMAT = "tflite"
PRECISION: Precision = "int8"
CALIBRATED = True
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the TFLite file, and facts about how it was made."""
    return quantize(conversion.float_tflite, conversion.calibration())
