"""TFLite, float32: the model that every other TFLite artifact is made from."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted

FILE = "model.tflite"
FORMAT = "tflite"
PRECISION: Precision = "float32"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the TFLite file, and facts about how it was made."""
    return conversion.float_tflite, {}
