"""ONNX, float16: half the size, for GPUs and NPUs; float32 stays where half would overflow."""

from __future__ import annotations

from typing import Any

from ..job import Job
from ..onnx_graph import OPSET

NAME = "onnx-fp16"
FILE = "model.fp16.onnx"
FORMAT = "onnx"
PRECISION = "float16"
CALIBRATED = True  # training images show which tensors overflow


def convert(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Bytes of the ONNX file, and how it was made."""
    from ..onnx_half import halved

    model, kept = halved(job.float_onnx, job.calibration())
    return model.SerializeToString(), {"opset": OPSET, "weights": "float16", "float_nodes": kept}
