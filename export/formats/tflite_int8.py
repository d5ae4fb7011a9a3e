"""TFLite, full integer: int8 weights per channel and activations, 8-bit pixels in, a float head."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job
from mri_edge.export.tflite.quantize import quantise

NAME = "tflite-int8"
FILE = "model.int8.tflite"
FORMAT = "tflite"
PRECISION = "int8"
CALIBRATED = True


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the TFLite file, and how it was made."""
    return quantise(job.float_tflite, job.calibration())
