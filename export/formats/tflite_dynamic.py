"""TFLite, dynamic range: int8 weights, activations are quantized at run time; needs no calibration."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.tflite.convert import to_tflite

FILE = "model.dynamic.tflite"
FORMAT = "tflite"
PRECISION: Precision = "dynamic"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the TFLite file, and facts about how it was made."""
    facts = {"weights": "int8 per channel", "activations": "int8, ranges of each run"}
    return to_tflite(conversion.graph, "int8", layers=conversion.layers), facts
