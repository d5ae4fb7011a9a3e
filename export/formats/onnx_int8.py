"""ONNX, int8: static QDQ, weights per channel, activations per tensor, pixels enter as they are."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job
from mri_edge.export.onnx.convert import OPSET
from mri_edge.export.onnx.quantize import quantise

NAME = "onnx-int8"
FILE = "model.int8.onnx"
FORMAT = "onnx"
PRECISION = "int8"
CALIBRATED = True


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the ONNX file, and how it was made."""
    content, facts = quantise(job.float_onnx, job.calibration())
    return content, {"opset": OPSET, **facts}
