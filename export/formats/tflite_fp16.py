"""TFLite, float16 weights: half the size; computed in float32 on CPUs, in float16 by GPU delegates."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job

NAME = "tflite-fp16"
FILE = "model.fp16.tflite"
FORMAT = "tflite"
PRECISION = "float16"
CALIBRATED = False


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the TFLite file, and how it was made."""
    import tensorflow as tf

    from mri_edge.export.tflite import convert as tflite_graph

    settings = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    content = tflite_graph.convert(job.graph, supported_types=[tf.float16], **settings)
    return tflite_graph.finished(content), {"weights": "float16"}
