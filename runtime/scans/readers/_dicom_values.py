"""Read values of a DICOM header from their bytes, whatever an exporter made of them.

pydicom converts a value when it is accessed, and then warns or raises for one that breaks the standard: a decimal with
a comma, text in a number, a character set that it does not know. Its messages quote the value, which may identify a
patient. Here such a value is read as absent. It also takes a third of the time.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

# Tags that are read, with the value representation that PS3.6 gives them, for files that do not name it. Nothing else
# of a file is kept, and no tag here holds a name, a date, an identifier of a patient or free text about one, except
# the descriptions, which are only searched for a word.
SOP_CLASS = 0x00080016
SOP_INSTANCE = 0x00080018
IMAGE_TYPE = 0x00080008
MODALITY = 0x00080060
COMPLEX_COMPONENT = 0x00089208
SERIES_DESCRIPTION = 0x0008103E
PROTOCOL_NAME = 0x00181030
ECHO_TIME = 0x00180081
ECHO_NUMBERS = 0x00180086
STUDY = 0x0020000D
SERIES = 0x0020000E
POSITION = 0x00200032
ORIENTATION = 0x00200037
SAMPLES = 0x00280002
PHOTOMETRIC = 0x00280004
FRAMES = 0x00280008
ROWS = 0x00280010
COLUMNS = 0x00280011
SPACING = 0x00280030
ASPECT_RATIO = 0x00280034
BITS_ALLOCATED = 0x00280100
BITS_STORED = 0x00280101
HIGH_BIT = 0x00280102
SIGNED = 0x00280103
PADDING = 0x00280120
PADDING_LIMIT = 0x00280121
BURNED_IN = 0x00280301
WINDOW_CENTER = 0x00281050
WINDOW_WIDTH = 0x00281051
INTERCEPT = 0x00281052
SLOPE = 0x00281053
WINDOW_FUNCTION = 0x00281056
LOSSY = 0x00282110
MODALITY_LUT = 0x00283000
LUT_DESCRIPTOR = 0x00283002
LUT_DATA = 0x00283006
VOI_LUT = 0x00283010
PRESENTATION_SHAPE = 0x20500020
SHARED_GROUPS = 0x52009229
FRAME_GROUPS = 0x52009230
EXTENDED_OFFSETS = 0x7FE00001
# Inside the functional groups of enhanced objects.
MR_FRAME_TYPE = 0x00189226
FRAME_TYPE = 0x00089007
MR_ECHO = 0x00189114
EFFECTIVE_ECHO_TIME = 0x00189082
PLANE_POSITION = 0x00209113
PLANE_ORIENTATION = 0x00209116
PIXEL_MEASURES = 0x00289110
FRAME_VOI_LUT = 0x00289132
VALUE_TRANSFORMATION = 0x00289145
# Where the pixels begin.
PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS = 0x7FE00010, 0x7FE00008, 0x7FE00009

_VR = {
    **dict.fromkeys((SAMPLES, ROWS, COLUMNS, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED), "US"),
    **dict.fromkeys((PADDING, PADDING_LIMIT, LUT_DESCRIPTOR, LUT_DATA), "US"),
    EFFECTIVE_ECHO_TIME: "FD",
    EXTENDED_OFFSETS: "OV",
}
_BINARY = {"US": "u2", "SS": "i2", "OW": "u2", "OB": "u1", "UL": "u4", "SL": "i4", "FL": "f4", "FD": "f8", "OV": "u8"}
# The same types as the module ``struct`` names them, which is faster than NumPy for single values.
_STRUCT = {"u1": "B", "u2": "H", "i2": "h", "u4": "I", "i4": "i", "f4": "f", "f8": "d", "u8": "Q"}
_MAX_TEXT = 4096  # bytes; values that are read as text are far shorter
_MAX_VALUES = 1 << 17  # a table has up to 65,536 entries
_MAX_NUMBER = 1e30  # no scanner writes more; differences and products of such numbers are finite

# What is read at the top level of a file.
TAGS = (
    *(SOP_CLASS, SOP_INSTANCE, IMAGE_TYPE, MODALITY, COMPLEX_COMPONENT, SERIES_DESCRIPTION, PROTOCOL_NAME),
    *(ECHO_TIME, ECHO_NUMBERS, STUDY, SERIES, POSITION, ORIENTATION, SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS),
    *(SPACING, ASPECT_RATIO, BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED, PADDING, PADDING_LIMIT, BURNED_IN),
    *(WINDOW_CENTER, WINDOW_WIDTH, INTERCEPT, SLOPE, WINDOW_FUNCTION, LOSSY, MODALITY_LUT, VOI_LUT),
    *(PRESENTATION_SHAPE, SHARED_GROUPS, FRAME_GROUPS, EXTENDED_OFFSETS),
)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # leading zeros and roots that do not exist occur and are kept


class Header:
    """The elements of a dataset, or of an item of a sequence.

    A dictionary of plain integers finds an element in a tenth of the time of pydicom, which compares tags in Python. A
    value is converted to text once, because several steps ask for the same.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._elements: dict[int, Any] = {int(tag): found for tag, found in dataset.items()}
        self._texts: dict[int, tuple[str, ...]] = {}

    def element(self, tag: int) -> Any:
        """Return an element as it was read, not converted, or None."""
        found = self._elements.get(tag)
        if found is None or found.value is not None:
            return found
        try:
            return self.dataset.get_item(tag)  # pydicom reads a value that the caller's own dataset deferred
        except Exception:  # noqa: BLE001 (it cannot be read any more)
            return None

    def texts(self, tag: int) -> tuple[str, ...]:
        """Return the values of an element as text; see the function ``texts``."""
        if tag not in self._texts:
            self._texts[tag] = _as_texts(self.element(tag))
        return self._texts[tag]


def texts(header: Header, tag: int) -> tuple[str, ...]:
    """Return the values of an element as text in ASCII, without the padding; empty if there are none."""
    return header.texts(tag)


def _as_texts(found: Any) -> tuple[str, ...]:
    value = None if found is None else found.value
    if value is None:
        return ()
    if isinstance(value, bytes):
        value = value[:_MAX_TEXT].decode("ascii", "replace")
    if isinstance(value, str):
        value = value.split("\\")
    parts = list(value) if hasattr(value, "__iter__") else [value]
    cleaned = tuple(str(part).strip(" \0") for part in parts)
    return cleaned if any(cleaned) else ()


def text(header: Header, tag: int) -> str:
    """Return the first value of an element as text; empty if there is none."""
    return next(iter(texts(header, tag)), "")


def numbers(header: Header, tag: int, *, signed: bool = False, most: int = _MAX_VALUES) -> tuple[float, ...]:
    """Return the first ``most`` values of an element as numbers; empty if one of them is no number, or beyond 1e30.

    ``signed`` says that 16-bit values are signed where the file does not name their representation.
    """
    found = header.element(tag)
    value = None if found is None else found.value
    if isinstance(value, bytes):
        representation = found.VR if found.VR not in (None, "UN") else _VR.get(tag)
        if representation in _BINARY:
            kind = "i2" if signed and _VR.get(tag) == "US" and representation == "US" else _BINARY[representation]
            little = getattr(found, "is_little_endian", True)
            count = min(len(value) // int(kind[1:]), most)
            order = "<" if little else ">"
            return _plausible(tuple(map(float, struct.unpack_from(f"{order}{count}{_STRUCT[kind]}", value))))
    try:
        values = tuple(float(part) for part in texts(header, tag)[:most])
    except ValueError:
        return ()
    return _plausible(values)


def _plausible(values: tuple[float, ...]) -> tuple[float, ...]:
    return values if all(abs(value) <= _MAX_NUMBER for value in values) else ()  # NaN is not


def number(header: Header, tag: int) -> float | None:
    """Return the first value of an element as a number, or None. Others may be empty or no numbers."""
    return next(iter(numbers(header, tag, most=1)), None)


def whole(header: Header, tag: int, *, signed: bool = False) -> int | None:
    """Return the first value of an element if it is a whole number, or None."""
    value = next(iter(numbers(header, tag, signed=signed, most=1)), None)
    return int(value) if value is not None and value == int(value) else None


def table(header: Header, tag: int) -> NDArray[Any]:
    """Return the entries of a lookup table or a list of offsets; empty if there are none."""
    found = header.element(tag)
    value = None if found is None else found.value
    if isinstance(value, bytes):
        representation = found.VR if found.VR in _BINARY else _VR.get(tag, "US")
        if _VR.get(tag) == "OV":
            representation = "OV"
        return _binary(value, _BINARY[representation], getattr(found, "is_little_endian", True))
    try:
        return np.array(value if value is not None else [], np.int64).reshape(-1)[:_MAX_VALUES]
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0, np.int64)


def _binary(value: bytes, kind: str, little: bool) -> NDArray[Any]:
    dtype = np.dtype(kind).newbyteorder("<" if little else ">")
    return np.frombuffer(value, dtype, min(len(value) // dtype.itemsize, _MAX_VALUES))


def uid(header: Header, tag: int) -> str | None:
    """Return a unique identifier, or None if it is no such identifier, and could be anything."""
    return as_uid(text(header, tag))


def as_uid(value: str) -> str | None:
    """Return a text that is a unique identifier, or None."""
    return value if len(value) <= 64 and _UID.fullmatch(value) else None


def items(header: Header, tag: int) -> list[Header]:
    """Return the items of a sequence; none if it is missing or cannot be read."""
    if header.element(tag) is None:
        return []
    try:
        value = header.dataset[tag].value
    except Exception:  # noqa: BLE001 (pydicom raises whatever damaged bytes lead to)
        return []
    return list(map(Header, value)) if type(value).__name__ == "Sequence" else []


def item(header: Header, tag: int) -> Header | None:
    """Return the first item of a sequence, or None."""
    return next(iter(items(header, tag)), None)
