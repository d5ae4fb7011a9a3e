"""TFLite, integers only: int8 probabilities, a batch size of 1 and fixed shapes, for the Edge TPU and other NPUs."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.tflite.static import quantize_for_accelerators

FILE = "model.int8-full.tflite"
FORMAT = "tflite"
PRECISION: Precision = "int8"
CALIBRATED = True
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the TFLite file, and facts about how it was made."""
    return quantize_for_accelerators(conversion.float_tflite, conversion.calibration())
