"""Find the export formats: each module of this folder defines one, named after its file.

To add a format, add a file that defines what ``Format`` lists, and to ``_MORE_PACKAGES`` what it needs beside the extra
``export``. Its default gate depends on its precision, see ``parity.gate.DEFAULT_GATES``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, cast

from mri_edge.bundles.manifest import Precision
from mri_edge.errors import ConversionError, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mri_edge.export.calibration.calibrator import Calibrator

# The bytes of an artifact, and facts about how it was made, for the manifest.
Converted = tuple[bytes, dict[str, Any]]

# What formats need beside the extra ``export``, and how to install it. The package pnnx names PyTorch as a dependency,
# but its program, which is all that is used, runs without.
_INSTALL_OPENVINO = "pip install 'mri-edge[openvino]'"
_MORE_PACKAGES = {
    "ncnn": (("ncnn", "pnnx"), "pip install 'mri-edge[ncnn]'; pip install --no-deps pnnx"),
    "openvino": (("openvino",), _INSTALL_OPENVINO),
    "openvino-int8": (("openvino",), _INSTALL_OPENVINO),
}

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
    def plain_onnx(self) -> ModelProto:
        """The float32 ONNX model with the probabilities as its only output. Formats must not modify it."""
        return cast("ModelProto", self._once("plain onnx", self._make_onnx))

    @property
    def float_onnx(self) -> ModelProto:
        """The float32 ONNX model, with heatmap outputs if its head allows them. Formats must not modify it."""
        return cast("ModelProto", self._once("onnx", self._explain_onnx))

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

        return float_model(self.graph, self.layers)

    def _explain_onnx(self) -> ModelProto:
        from mri_edge.export.onnx.explanation import with_explanation

        try:
            return with_explanation(self.plain_onnx, self.explained)
        except ConversionError:  # a head without a closed form: the model classifies, but gives no heatmap
            return self.plain_onnx

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


def missing_packages(name: str) -> list[str]:
    """The packages that a format needs beside those of the extra ``export``, and that are not installed."""
    packages, _ = _MORE_PACKAGES.get(name, ((), ""))
    return [package for package in packages if find_spec(package) is None]


def installed_formats() -> tuple[str, ...]:
    """Names of the formats that can be made with the installed packages."""
    return tuple(name for name in format_names() if not missing_packages(name))


def check_format(name: str) -> None:
    """Raise UsageError if there is no such format, or if its packages are not installed."""
    if name not in format_names():
        raise UsageError(f"unknown format {name!r}", f"Formats: {', '.join(format_names())}")
    if missing := missing_packages(name):
        raise UsageError(
            f"format {name!r} needs packages that are not installed: {', '.join(missing)}",
            _MORE_PACKAGES[name][1],
        )


def find_format(name: str) -> Format:
    """Import the module of a format. Raises UsageError if there is none of that name."""
    check_format(name)
    return cast(Format, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
