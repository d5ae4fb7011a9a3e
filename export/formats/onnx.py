"""ONNX, float32: the graph that every other ONNX artefact is made from."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job
from mri_edge.export.onnx.convert import OPSET

NAME = "onnx"
FILE = "model.onnx"
FORMAT = "onnx"
PRECISION = "float32"
CALIBRATED = False


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the ONNX file, and how it was made."""
    return job.float_onnx.SerializeToString(), {"opset": OPSET}
