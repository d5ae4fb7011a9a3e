"""What a DICOM header says about each frame: rescale, window, position and direction.

Enhanced objects say it in functional groups, for all frames or for one (PS3.3 C.7.6.16); others at the top level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mri_edge.scans.geometry import View, position_along_normal, radiological_view
from mri_edge.scans.intensity import Function, LookupTable, Rescale, Window

from . import _dicom_values as dicom

_FUNCTIONS: dict[str, Function] = {"LINEAR_EXACT": "LINEAR_EXACT", "SIGMOID": "SIGMOID"}
_MAX_LUT_BITS = 16


@dataclass(frozen=True)
class Geometry:
    """Where a frame lies in the patient. Lengths are in mm, directions and positions in LPS+.

    Attributes
    ----------
    orientation
        Directions of a row and of a column, 6 numbers, or None.
    position
        Center of the first stored pixel, or None.
    spacing
        Distances between rows and between columns, or their ratio alone; None if unknown.
    """

    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing: tuple[float, float] | None

    @cached_property
    def view(self) -> View | None:
        """How to turn the frame to the radiological view, or None if the orientation is unknown."""
        if self.orientation is None:
            return None
        return radiological_view(self.orientation[:3], self.orientation[3:])

    @cached_property
    def along_normal(self) -> float | None:
        """Position along the normal in mm, or None."""
        if self.orientation is None or self.position is None:
            return None
        found = position_along_normal(self.orientation[:3], self.orientation[3:], self.position)
        return None if found is None else round(found, 3)


class FrameHeaders:
    """The header of each frame of a file."""

    def __init__(self, header: dicom.Header) -> None:
        self._header = header
        self._count = dicom.whole(header, dicom.FRAMES) or 1
        self._shared = dicom.item(header, dicom.SHARED_GROUPS)
        self._frames = dicom.items(header, dicom.FRAME_GROUPS)

    def _group(self, index: int, tag: int) -> dicom.Header | None:
        """Return a functional group of a frame, or that of all frames, or None."""
        own = dicom.item(self._frames[index], tag) if index < len(self._frames) else None
        return own if own is not None or self._shared is None else dicom.item(self._shared, tag)

    def _place(self, index: int, tag: int) -> dicom.Header:
        """Return where a value stands: in a functional group, or at the top level."""
        group = self._group(index, tag)
        return self._header if group is None else group

    def modality(self, index: int) -> Rescale | LookupTable:
        """Return the modality transformation. A slope of 0, or none, counts as 1."""
        place = self._place(index, dicom.VALUE_TRANSFORMATION)
        lut = dicom.item(self._header, dicom.MODALITY_LUT)
        if lut is not None and (table := _lookup_table(lut)):
            return table
        slope, intercept = dicom.number(place, dicom.SLOPE), dicom.number(place, dicom.INTERCEPT)
        return Rescale(slope or 1.0, intercept or 0.0)

    def window(self, index: int) -> Window | LookupTable | None:
        """Return the first window of a frame, else its first lookup table, or None."""
        place = self._place(index, dicom.FRAME_VOI_LUT)
        center, width = dicom.number(place, dicom.WINDOW_CENTER), dicom.number(place, dicom.WINDOW_WIDTH)
        named = dicom.text(place, dicom.WINDOW_FUNCTION).upper()
        if center is not None and width is not None:
            window = Window(center, width, _FUNCTIONS.get(named, "LINEAR"))
            if window.is_valid():
                return window
        lut = dicom.item(self._header, dicom.VOI_LUT)
        return None if lut is None else _lookup_table(lut)

    def geometry(self, index: int) -> Geometry:
        """Return where a frame lies."""
        orientation = dicom.numbers(self._place(index, dicom.PLANE_ORIENTATION), dicom.ORIENTATION)
        position = dicom.numbers(self._place(index, dicom.PLANE_POSITION), dicom.POSITION)
        if self._count > 1 and not self._frames:
            position = ()  # one position for several frames would place all of them in the same plane
        spacing = dicom.numbers(self._place(index, dicom.PIXEL_MEASURES), dicom.SPACING)
        if len(spacing) != 2:
            spacing = dicom.numbers(self._header, dicom.ASPECT_RATIO)
        return Geometry(
            orientation if len(orientation) == 6 else None,
            position if len(position) == 3 else None,
            (spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None,
        )

    def echo(self, index: int) -> float | None:
        """Return the echo time in ms, or the number of the echo if there is no time, or None."""
        group = self._group(index, dicom.MR_ECHO)
        effective = None if group is None else dicom.number(group, dicom.EFFECTIVE_ECHO_TIME)
        if effective is not None:
            return effective
        time = dicom.number(self._header, dicom.ECHO_TIME)
        return dicom.number(self._header, dicom.ECHO_NUMBERS) if time is None else time

    def frame_type(self, index: int) -> tuple[str, ...]:
        """Return Frame Type in capitals; empty if the file has none."""
        group = self._group(index, dicom.MR_FRAME_TYPE)
        return () if group is None else tuple(value.upper() for value in dicom.texts(group, dicom.FRAME_TYPE))


def _lookup_table(sequence_item: dicom.Header) -> LookupTable | None:
    """Read a table (PS3.3 C.11.1.1.1), or return None if it is not usable."""
    descriptor = dicom.numbers(sequence_item, dicom.LUT_DESCRIPTOR)
    entries = dicom.table(sequence_item, dicom.LUT_DATA)
    if len(descriptor) != 3 or not len(entries):
        return None
    length, first, bits = (int(value) for value in descriptor)
    length = length % (1 << 16) or 1 << 16  # 0 means 65,536, which 16 bits cannot hold
    if not 1 <= bits <= _MAX_LUT_BITS:
        return None
    if entries.dtype.itemsize == 1 and bits > 8:  # 16-bit entries, declared as bytes
        entries = entries[: len(entries) // 2 * 2].view("<u2")
    elif entries.dtype.itemsize == 2 and bits <= 8 and len(entries) == -(-length // 2):  # two entries in each word
        entries = entries.astype("<u2").view("u1")
    return LookupTable(first, entries[:length], bits) if len(entries) >= length else None
