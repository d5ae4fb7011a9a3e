"""Find the export formats: each module of this folder defines one, named after its file.

To add a format, add a file that defines what ``Format`` lists. Its default gate depends on its precision, see
``parity.gate.DEFAULT_GATES``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from mri_edge.bundles.manifest import Precision
from mri_edge.errors import ConversionError, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mri_edge.export.calibration.calibrator import Calibrator

# The bytes of an artifact, and facts about how it was made, for the manifest.
Converted = tuple[bytes, dict[str, Any]]

# The formats of --quantize: the int8 artifacts, and the float artifacts they are made from.
QUANTIZE = ("onnx", "onnx-int8", "tflite", "tflite-int8")


@dataclass
class Conversion:
    """What all formats of one export start from. Each float model is made once, when a format first needs it.

    ``explained`` is the index of the label that heatmaps are about; None: of each image the most probable one.
    ``layers`` names the layers of the Keras model, for errors.
    """

    graph: Any  # the function of ``device_graph``
    explained: int | None
    calibrator: Calibrator | None = None
    layers: frozenset[str] = frozenset()
    _made: dict[str, Any] = field(default_factory=dict)  # the float models, or the errors of their conversion

    @property
    def float_onnx(self) -> ModelProto:
        """The float32 ONNX model, with heatmap outputs if its head allows them. Formats must not modify it."""
        return cast("ModelProto", self._once("onnx", self._make_onnx))

    @property
    def float_tflite(self) -> bytes:
        """The float32 TFLite file."""
        return cast(bytes, self._once("tflite", self._make_tflite))

    def calibration(self) -> Calibrator:
        """The calibrator; UsageError if this export has no calibration images."""
        if self.calibrator is None:
            raise UsageError("int8 formats need calibration images", "Name them with --data or --calibration")
        return self.calibrator

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned, or raise what it raised, when it was first called with this name."""
        if name not in self._made:
            try:
                self._made[name] = make()
            except ConversionError as error:
                self._made[name] = error
        if isinstance(self._made[name], ConversionError):
            raise self._made[name]
        return self._made[name]

    def _make_onnx(self) -> ModelProto:
        from mri_edge.export.onnx.convert import float_model
        from mri_edge.export.onnx.explanation import with_explanation

        model = float_model(self.graph, self.layers)
        try:
            return with_explanation(model, self.explained)
        except ConversionError:  # a head without a closed form: the model classifies, but gives no heatmap
            return model

    def _make_tflite(self) -> bytes:
        from mri_edge.export.tflite.convert import to_tflite

        return to_tflite(self.graph, layers=self.layers)


class Format(Protocol):
    """What each module in this folder defines."""

    FILE: str  # of the artifact
    FORMAT: str  # in the manifest
    PRECISION: Precision
    CALIBRATED: bool  # whether it needs calibration images
    LIBRARIES: tuple[str, ...]  # packages whose versions the manifest records
    convert: Callable[[Conversion], Converted]


def format_names() -> tuple[str, ...]:
    """Names of all formats, without importing their modules: ``onnx_int8.py`` is ``onnx-int8``."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def check_format(name: str) -> None:
    """Raise UsageError with the known names if there is no such format."""
    if name not in format_names():
        raise UsageError(f"unknown format {name!r}", f"Formats: {', '.join(format_names())}")


def find_format(name: str) -> Format:
    """Import the module of a format. Raises UsageError if there is none of that name."""
    check_format(name)
    return cast(Format, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
