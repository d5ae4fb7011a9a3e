"""Read what groups DICOM slices into series: a file's header, without its pixels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mri_edge.errors import InputError
from mri_edge.scans.series import SliceFacts

if TYPE_CHECKING:
    from pydicom import Dataset

_MAX_FRAMES = 100_000  # the header of a frame is some kB, so no file has more
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "EchoTime",
    "EchoNumbers",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "WindowCenter",
    "WindowWidth",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


def read_header(path: str) -> Dataset:
    """Read the header of a file up to its pixels.

    Raises
    ------
    InputError
        The file cannot be read, or is no DICOM file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are only a problem where one is used
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", code="missing") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from error
    except (InvalidDicomError, Exception) as error:
        raise InputError(f"{path}: damaged DICOM header", "Export it again", code="damaged") from error


def facts_of(header: Dataset, path: str) -> Iterator[SliceFacts]:
    """Yield the facts of each frame of a file, from its header. Values that cannot be used count as missing."""
    count = _integer(header, "NumberOfFrames") or 1
    if not 1 <= count <= _MAX_FRAMES:
        raise InputError(
            f"{path}: damaged DICOM header ({count} frames)", code="damaged", value=count, limit=_MAX_FRAMES
        )
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames: Sequence[Any] = _value(header, "PerFrameFunctionalGroupsSequence") or ()
    for index in range(count):
        groups = [header, shared, frames[index] if index < len(frames) else None]
        orientation = _numbers(_find(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
        position = _numbers(_find(groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
        echo = _numbers(_find(groups, "MREchoSequence", "EffectiveEchoTime"), 1) or _numbers(
            _value(header, "EchoTime") or _value(header, "EchoNumbers"), 1
        )
        image_type = _find(groups, "MRImageFrameTypeSequence", "FrameType") or _value(header, "ImageType") or ()
        center = _number(_find(groups, "FrameVOILUTSequence", "WindowCenter"))
        width = _number(_find(groups, "FrameVOILUTSequence", "WindowWidth"))
        rows, columns = _integer(header, "Rows"), _integer(header, "Columns")
        yield SliceFacts(
            source=path,
            index=index,
            count=count,
            kind="dicom",
            study=_text(header, "StudyInstanceUID"),
            series=_text(header, "SeriesInstanceUID"),
            instance=_text(header, "SOPInstanceUID"),
            orientation=orientation,
            # One position for several frames would place all of them in the same plane.
            position=None if count > 1 and not frames else position,
            spacing=_numbers(_find(groups, "PixelMeasuresSequence", "PixelSpacing"), 2),
            matrix=(rows, columns) if rows and columns else None,
            echo=echo[0] if echo else None,
            image_type=(image_type,) if isinstance(image_type, str) else tuple(map(str, image_type)),
            syntax=_syntax(header),
            window=(center, width) if center is not None and width else None,
        )


def _find(groups: Sequence[Any], sequence: str, keyword: str) -> Any:
    """Return a value from the last of these datasets that has it: directly, or in the first item of a sequence."""
    for dataset in reversed(groups):
        if dataset is not None:
            item = _first(dataset, sequence)
            value = _value(dataset if item is None else item, keyword)
            if value is not None:
                return value
    return None


def _first(dataset: Dataset, keyword: str) -> Any:
    items = _value(dataset, keyword)
    try:
        return items[0] if items else None
    except (TypeError, KeyError, IndexError):  # the element is no sequence
        return None


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return a value, or None if it is missing, empty or not readable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = getattr(dataset, keyword, None)
    except Exception:  # noqa: BLE001 (pydicom decodes values on access and raises many kinds)
        return None
    return None if value is None or value == "" else value


def _text(dataset: Dataset, keyword: str) -> str | None:
    value = _value(dataset, keyword)
    return str(value) if value is not None else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _number(_value(dataset, keyword))
    return None if number is None else int(number)


def _number(value: Any) -> float | None:
    """Return the first number of a value."""
    if isinstance(value, list | tuple) or (hasattr(value, "__iter__") and not isinstance(value, str)):
        value = next(iter(value), None)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Return a value of so many finite numbers, otherwise None."""
    values = [value] if not hasattr(value, "__iter__") or isinstance(value, str) else list(value)
    numbers = [number for item in values if (number := _number(item)) is not None]
    return tuple(numbers) if len(numbers) == len(values) == count else None


def _syntax(header: Dataset) -> str | None:
    """Return the name of the transfer syntax without its remarks: "JPEG Lossless", "Explicit VR Big Endian"."""
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        return None
    name = str(getattr(syntax, "name", syntax))
    return name.split(",", maxsplit=1)[0].split(" (", maxsplit=1)[0].removesuffix(" Image Compression")
