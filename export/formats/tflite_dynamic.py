"""TFLite, dynamic range: int8 weights, activations quantised anew for each run; needs no calibration."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job

NAME = "tflite-dynamic"
FILE = "model.dynamic.tflite"
FORMAT = "tflite"
PRECISION = "dynamic"
CALIBRATED = False


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the TFLite file, and how it was made."""
    import tensorflow as tf

    from mri_edge.export.tflite import convert as tflite_graph

    content = tflite_graph.convert(job.graph, optimizations=[tf.lite.Optimize.DEFAULT])
    return tflite_graph.finished(content), {
        "weights": "int8 per channel",
        "activations": "int8, ranges of each run",
    }
