"""TFLite, float16 weights: half the size; computed in float32 on CPUs, in float16 by GPU delegates."""

from __future__ import annotations

from typing import Any

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion

NAME = "tflite-fp16"
FILE = "model.fp16.tflite"
FORMAT = "tflite"
PRECISION: Precision = "float16"
CALIBRATED = False
LIBRARIES = ("tensorflow", "keras")


def convert(conversion: Conversion) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the TFLite file, and facts about how it was made."""
    import tensorflow as tf

    from mri_edge.export.tflite import convert as tflite_graph

    settings = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    content = tflite_graph.convert(conversion.graph, supported_types=[tf.float16], **settings)
    return tflite_graph.finalize(content), {"weights": "float16"}
