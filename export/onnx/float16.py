"""Convert an ONNX model to float16; nodes that half precision cannot represent stay in float32."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from mri_edge.export.calibration.calibrator import Calibrator, Observation

from .convert import constants, finalize
from .quantize import observer

# The largest float16 is 65504 (IEEE 754-2019, binary16); the factor 4 is a margin for scans beyond calibration.
_LIMIT = 65504 / 4


def to_float16(model: ModelProto, calibrator: Calibrator) -> tuple[ModelProto, list[str]]:
    """The model in float16, and the names of the nodes that stay in float32.

    A node stays if one of its constants, or one of its tensors on the calibration images, exceeds the range of
    float16. The softmax stays too, because float16 represents probabilities near 0 and 1 poorly.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    observed = calibrator.observe(observer(model), channel_axis=1)
    large = {name for name, observation in observed.items() if _largest(observation) > _LIMIT}
    # ``initial``: the region of interest of a Resize is empty.
    large |= {
        name
        for name, value in constants(model).items()
        if value.dtype == np.float32 and np.abs(value).max(initial=0) > _LIMIT
    }
    kept = [node.name for node in model.graph.node if node.op_type == "Softmax" or _touches(node, large)]
    copy = ModelProto()
    copy.CopyFrom(model)
    return finalize(convert_float_to_float16(copy, keep_io_types=True, node_block_list=kept)), kept


def _largest(observation: Observation) -> float:
    low, high = observation.range("minmax")
    return max(-low, high)


def _touches(node: NodeProto, names: set[str]) -> bool:
    return bool(names.intersection(node.input) or names.intersection(node.output))
