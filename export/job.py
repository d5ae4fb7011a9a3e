"""What the formats share in one export: the frozen graph, each float conversion made once, the calibration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mri_edge.errors import ConversionError, UsageError

from .calibrate import Calibrator
from .device_graph import DeviceGraph

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass
class Job:
    """One model on its way to several formats. ``calibrator`` is None without calibration images."""

    graph: DeviceGraph
    positive: int
    calibrator: Calibrator | None = None

    @cached_property
    def float_onnx(self) -> ModelProto:
        """The float32 ONNX model, explained where its head allows it; whoever changes it works on a copy."""
        from .explanation import explained
        from .onnx_graph import float_model

        model = float_model(self.graph)
        try:
            return explained(model, self.positive)
        except ConversionError:  # a head of another kind classifies all the same, without a heatmap
            return model

    def calibration(self) -> Calibrator:
        """The calibrator; UsageError if this export has none."""
        if self.calibrator is None:
            raise UsageError("int8 formats need calibration images", "Name them with --data or --calibration")
        return self.calibrator

    @cached_property
    def float_tflite(self) -> bytes:
        """The float32 TFLite file."""
        from .tflite_graph import float_model

        return float_model(self.graph)
