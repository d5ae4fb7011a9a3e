"""ONNX, int8: static QDQ, weights per channel, activations per tensor, pixels enter as they are."""

from __future__ import annotations

from typing import Any

from ..job import Job
from ..onnx_graph import OPSET
from ..onnx_quantise import quantise

NAME = "onnx-int8"
FILE = "model.int8.onnx"
FORMAT = "onnx"
PRECISION = "int8"
CALIBRATED = True


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the ONNX file, and how it was made."""
    content, facts = quantise(job.float_onnx, job.calibration())
    return content, {"opset": OPSET, **facts}
