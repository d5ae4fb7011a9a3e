"""What the formats share in one export: the frozen graph, each float conversion made once, the calibration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mri_edge.errors import ConversionError, UsageError
from mri_edge.export.calibration.calibrate import Calibrator
from mri_edge.export.sources.device_graph import DeviceGraph

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
        from mri_edge.export.onnx.convert import float_model
        from mri_edge.export.onnx.explanation import explained

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
        from mri_edge.export.tflite.convert import float_model

        return float_model(self.graph)
