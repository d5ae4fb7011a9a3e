"""TFLite, float32: the graph that every other TFLite artefact is made from."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job

NAME = "tflite"
FILE = "model.tflite"
FORMAT = "tflite"
PRECISION = "float32"
CALIBRATED = False


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the TFLite file, and how it was made."""
    return job.float_tflite, {}
