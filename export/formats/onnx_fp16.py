"""ONNX, float16: half the size, for GPUs and NPUs; float32 stays where half would overflow."""

from __future__ import annotations

from typing import Any

from mri_edge.export.job import Job
from mri_edge.export.onnx.convert import OPSET

NAME = "onnx-fp16"
FILE = "model.fp16.onnx"
FORMAT = "onnx"
PRECISION = "float16"
CALIBRATED = True  # training images show which tensors overflow


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the ONNX file, and how it was made."""
    from mri_edge.export.onnx.float16 import halved

    model, kept = halved(job.float_onnx, job.calibration())
    return model.SerializeToString(), {"opset": OPSET, "weights": "float16", "float_nodes": kept}
