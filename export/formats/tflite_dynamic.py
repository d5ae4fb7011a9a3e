"""TFLite, dynamic range: int8 weights, activations are quantized at run time; needs no calibration."""

from __future__ import annotations

from typing import Any

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion

NAME = "tflite-dynamic"
FILE = "model.dynamic.tflite"
FORMAT = "tflite"
PRECISION: Precision = "dynamic"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the TFLite file, and facts about how it was made."""
    import tensorflow as tf

    from mri_edge.export.tflite import convert as tflite_graph

    content = tflite_graph.convert(conversion.graph, optimizations=[tf.lite.Optimize.DEFAULT])
    return tflite_graph.finalize(content), {
        "weights": "int8 per channel",
        "activations": "int8, ranges of each run",
    }
