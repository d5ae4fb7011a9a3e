"""ONNX, float16: half the size, for GPUs and NPUs; nodes that would overflow stay in float32."""

from __future__ import annotations

from copy import deepcopy

import numpy as np

from mri_edge.bundles.manifest import Precision
from mri_edge.export.formats import Conversion, Converted
from mri_edge.export.onnx.convert import OPSET, cast_pixels_first, constants, finalize
from mri_edge.export.onnx.quantize import observer

FILE = "model.fp16.onnx"
FORMAT = "onnx"
PRECISION: Precision = "float16"
CALIBRATED = True  # training images show which tensors overflow
LIBRARIES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")

# The largest float16 is 65504 (IEEE 754-2019, binary16); the factor 4 is a margin for scans beyond calibration.
_LIMIT = 65504 / 4


def convert(conversion: Conversion) -> Converted:
    """The bytes of the ONNX file, and facts about how it was made.

    A node stays in float32 if one of its constants, or one of its tensors on the calibration images, exceeds the range
    of float16. The softmax stays too, because float16 represents probabilities near 0 and 1 poorly.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = cast_pixels_first(conversion.float_onnx)
    observed = conversion.calibration().observe(observer(model), channel_axis=1)
    large = {name for name, observation in observed.items() if max(map(abs, observation.range("minmax"))) > _LIMIT}
    # ``initial``: the region of interest of a Resize is empty.
    large |= {
        name
        for name, value in constants(model).items()
        if value.dtype == np.float32 and np.abs(value).max(initial=0) > _LIMIT
    }
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type == "Softmax" or large.intersection((*node.input, *node.output))
    ]
    converted = convert_float_to_float16(deepcopy(model), keep_io_types=True, node_block_list=kept)
    facts = {"opset": OPSET, "weights": "float16", "float_nodes": kept}
    return finalize(converted).SerializeToString(), facts
