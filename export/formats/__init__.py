"""Export formats, one file each, found by looking in this folder.

A format file names itself with ``NAME``, its artefact with ``FILE``, ``FORMAT`` and ``PRECISION``, says
with ``CALIBRATED`` whether it needs calibration images, and makes the file's bytes with ``convert(job)``.
The bounds that it must keep by default are those of its precision, ``parity.DEFAULT_GATES``. Adding a
format is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from mri_edge.bundles.manifest import Precision
from mri_edge.errors import UsageError

if TYPE_CHECKING:
    from mri_edge.export.job import Job

# The short way, `--quantize`: the float pair that quantised artefacts are judged beside, and the int8 pair.
QUANTIZE = ("onnx", "onnx-int8", "tflite", "tflite-int8")


class FormatFile(Protocol):
    """The face of one file in this folder."""

    NAME: str
    FILE: str
    FORMAT: str
    PRECISION: Precision
    CALIBRATED: bool
    convert: Callable[[Job], tuple[bytes, dict[str, Any]]]


@lru_cache(maxsize=1)
def format_names() -> tuple[str, ...]:
    """Names of all formats, without importing one: ``onnx_int8.py`` is ``onnx-int8``."""
    return tuple(sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__)))


def format_file(name: str) -> FormatFile:
    """One format by name. Raises UsageError with the known names."""
    if name not in format_names():
        raise UsageError(f"unknown format {name!r}", f"Formats: {', '.join(format_names())}")
    return cast(FormatFile, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
