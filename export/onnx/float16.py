"""An ONNX model in float16, with the nodes that need it left in float32."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from mri_edge.export.calibration.calibrate import Calibrator, Observation

from .convert import constants, finished
from .quantize import observer

# Half's largest number is 65504 (IEEE 754-2019, binary16); a scan may go beyond what calibration saw.
_LIMIT = 65504 / 4


def halved(model: ModelProto, calibrator: Calibrator) -> tuple[ModelProto, list[str]]:
    """The model in float16, and the names of the nodes that stay in float32.

    A node stays if a constant or a tensor at it is out of half's range on the calibration images. The
    softmax stays too: probabilities near 0 and 1 are what half represents worst.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    observed = calibrator.observe(observer(model), channel_axis=1)
    large = {name for name, one in observed.items() if _reach(one) > _LIMIT}
    # The largest of nothing is asked for too: a Resize has an empty region of interest.
    large |= {
        name
        for name, value in constants(model).items()
        if value.dtype == np.float32 and np.abs(value).max(initial=0) > _LIMIT
    }
    kept = [node.name for node in model.graph.node if node.op_type == "Softmax" or _touches(node, large)]
    copy = ModelProto()
    copy.CopyFrom(model)
    return finished(convert_float_to_float16(copy, keep_io_types=True, node_block_list=kept)), kept


def _reach(one: Observation) -> float:
    low, high = one.range("minmax")
    return max(-low, high)


def _touches(node: NodeProto, names: set[str]) -> bool:
    return bool(names.intersection(node.input) or names.intersection(node.output))
