"""Registry of export formats: one module each, found by its file name.

A module names itself with ``NAME`` and its artefact with ``FILE``, ``FORMAT`` and ``PRECISION``, says with
``CALIBRATED`` whether it needs calibration images, and makes the file's bytes in ``convert``. Its default
gate is the one of its precision, ``parity.gate.DEFAULT_GATES``. To add a format, add a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from mri_edge.bundles.manifest import Precision
from mri_edge.errors import UsageError

if TYPE_CHECKING:
    from mri_edge.export.conversion import Conversion

# The formats of --quantize: each int8 artefact with the float one beside which it is judged.
QUANTIZE = ("onnx", "onnx-int8", "tflite", "tflite-int8")


class Format(Protocol):
    """What each module in this folder defines."""

    NAME: str
    FILE: str
    FORMAT: str
    PRECISION: Precision
    CALIBRATED: bool
    convert: Callable[[Conversion], tuple[bytes, dict[str, Any]]]


def format_names() -> tuple[str, ...]:
    """Names of all formats, without importing any: ``onnx_int8.py`` is ``onnx-int8``."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def find_format(name: str) -> Format:
    """One format by name. Raises UsageError with the known names."""
    if name not in format_names():
        raise UsageError(f"unknown format {name!r}", f"Formats: {', '.join(format_names())}")
    return cast(Format, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
