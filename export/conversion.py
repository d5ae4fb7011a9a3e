"""What all formats of one export start from: the frozen graph, both float models, and the calibration images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mri_edge.errors import ConversionError, UsageError
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.sources.device_graph import DeviceGraph

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass
class Conversion:
    """One model on its way to several formats; each float model is made once, when a format first needs it."""

    graph: DeviceGraph
    positive: int
    calibrator: Calibrator | None = None

    @cached_property
    def float_onnx(self) -> ModelProto:
        """The float32 ONNX model, with heatmap outputs if its head allows them. Change a copy, never this one."""
        from mri_edge.export.onnx.convert import float_model
        from mri_edge.export.onnx.explanation import with_explanation

        model = float_model(self.graph)
        try:
            return with_explanation(model, self.positive)
        except ConversionError:  # another kind of head: the model classifies without a heatmap
            return model

    @cached_property
    def float_tflite(self) -> bytes:
        """The float32 TFLite file."""
        from mri_edge.export.tflite.convert import float_model

        return float_model(self.graph)

    def calibration(self) -> Calibrator:
        """The calibrator; UsageError if this export has no calibration images."""
        if self.calibrator is None:
            raise UsageError("int8 formats need calibration images", "Name them with --data or --calibration")
        return self.calibrator
