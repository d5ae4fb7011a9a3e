"""TFLite, float16 weights: half the size; computed in float32 on CPUs, in float16 by GPU delegates."""

from __future__ import annotations

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.tflite.convert import to_tflite

FILE = "model.fp16.tflite"
FORMAT = "tflite"
PRECISION: Precision = "float16"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> Converted:
    """The bytes of the TFLite file, and facts about how it was made."""
    return to_tflite(conversion.graph, "float16", layers=conversion.layers), {"weights": "float16"}
