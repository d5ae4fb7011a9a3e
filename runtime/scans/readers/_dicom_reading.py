"""Turn a DICOM file into frames: stored values to a picture as PS3.3 says, in the radiological view.

The order of the steps is that of PS3.3 C.7.6.3, C.11.1 and C.11.2: used bits, rescale, window, polarity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, MutableSequence, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.files import out_of_memory
from mri_edge.scans.frame import Frame, Pixels, Source, Unread, as_rgb, source_name
from mri_edge.scans.geometry import square_pixels
from mri_edge.scans.intensity import (
    NO_RESCALE,
    Gray,
    Histogram,
    LookupTable,
    Padding,
    Rescale,
    Window,
    hides_scan,
    percentile_window,
    to_gray,
)
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.series import SliceFacts

from . import _dicom_values as values
from ._dicom_file import Opened, opened, quiet
from ._dicom_frames import FrameHeaders, Geometry
from ._dicom_header import MAX_FRAMES, Layout, check, header_warnings, image_type, map_refusal, syntax_name
from ._dicom_pixels import Stored, frame_decoder

if TYPE_CHECKING:
    from pydicom import Dataset

_MAX_SAMPLE = 64  # frames of a file from which percentiles are taken
_MAX_COMPARED = 1 << 22  # values of a frame that are compared with their gray levels; an MR slice has fewer
_Sampled: TypeAlias = tuple[Stored, Rescale | LookupTable, Padding | None]


def read_each(source: Source | Dataset, options: ReadOptions) -> Iterator[Frame | Unread]:
    """Yield the frames of a file. See ``dicom.read_each``."""
    name = _display_name(source)
    with opened(source, name) as file:
        layout = check(file, name, any_modality=options.any_modality)
        if isinstance(options.window, Window) and not options.window.is_valid():
            raise InputError(
                f"{name}: the width of a window for DICOM must be at least 1. Received: {options.window.width:g}",
                "Choose another window",
                code="unsupported",
            )
        with quiet:
            headers = FrameHeaders(file.header)
        decode = frame_decoder(file, layout, name)
        windows = _Windows(options, layout, headers, decode)
        warnings = tuple(header_warnings(file))
        for index in range(layout.frames):
            try:
                frame = _frame(file, layout, headers, windows, decode, index, name)
            except InputError as error:
                yield Unread(error, index, layout.frames)
                continue
            except MemoryError as error:
                failure = out_of_memory(name)
                failure.__cause__ = error
                yield Unread(failure, index, layout.frames)
                continue
            yield replace(frame, source=source_name(source), warnings=warnings + frame.warnings)


def slice_facts(source: Source | Dataset, options: ReadOptions) -> Iterator[SliceFacts]:
    """Yield what the header says about each frame. See ``dicom.slice_facts``."""
    name = _display_name(source)
    with opened(source, name) as file:
        refusal, frames = None, 1
        try:
            frames = check(file, name, any_modality=options.any_modality).frames
        except InputError as error:
            refusal = error
            declared = values.whole(file.header, values.FRAMES) or 1
            frames = declared if 0 < declared <= MAX_FRAMES else 1
        with quiet:
            headers = FrameHeaders(file.header)
        for index in range(frames):
            with quiet:
                found = _facts(file, headers, headers.geometry(index), headers.window(index), index, frames)
            of_frame = map_refusal(found.image_type, name)
            yield replace(found, source=source_name(source) or "", refusal=refusal or of_frame)


def texts(source: Source | Dataset, tags: Collection[int]) -> dict[int, str]:
    """Return the values of header elements as text. See ``dicom.texts``."""
    found: dict[int, str] = {}
    with opened(source, _display_name(source), list(tags)) as file, quiet:
        for tag in tags:
            try:
                value = file.header.dataset[tag].value if tag in file.header.dataset else None
            except Exception:  # noqa: BLE001 (pydicom raises whatever a damaged value leads to)
                value = None
            parts = value if isinstance(value, list | MutableSequence) else [value]
            text = "\\".join("" if part is None else str(part) for part in parts).strip(" \0")
            if text:
                found[tag] = text
    return found


def _display_name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return str(os.fspath(source))
    return f"{len(source)} bytes" if isinstance(source, bytes | bytearray | memoryview) else "dataset"


class _Windows:
    """Chooses the window of each frame. Percentiles are taken over the file, once, when a frame needs them."""

    def __init__(
        self, options: ReadOptions, layout: Layout, headers: FrameHeaders, decode: Callable[[int], Stored]
    ) -> None:
        self._options, self._layout, self._headers, self._decode = options, layout, headers, decode
        self._percentiles = options.fallback

    def of(self, in_file: Window | LookupTable | None) -> Window | LookupTable | None:
        """Return the window that the caller gives, else that of a frame in the file, or None for percentiles."""
        chosen = self._options.window
        if isinstance(chosen, Window):
            return chosen
        return in_file if chosen == "file" else None

    @property
    def is_expected(self) -> bool:
        """Whether the caller asked for percentiles, so that they need no warning."""
        return self._options.window == "auto"

    @property
    def is_forced(self) -> bool:
        """Whether the caller gave a window, which is then used even if it shows nothing."""
        return isinstance(self._options.window, Window)

    def percentiles(self, stored: Stored, modality: Rescale | LookupTable) -> Window:
        """Return the window by percentiles of the whole file, or of this frame if it is the only one."""
        if self._percentiles is None:
            layout = self._layout
            one = [(stored, modality, layout.padding)]
            self._percentiles = _measure(lambda: iter(one) if layout.frames == 1 else self._sample())
        return self._percentiles

    def _sample(self) -> Iterator[_Sampled]:
        """Yield at most 64 frames, evenly spread over the file, without those that are maps."""
        for index in _spread(range(self._layout.frames)):
            with quiet:
                is_map = map_refusal(self._headers.frame_type(index), "") is not None
                modality = self._headers.modality(index)
            if is_map:
                continue
            try:
                stored = self._decode(index)
            except InputError:  # reported when its turn comes
                continue
            yield stored, modality, self._layout.padding


_Item = TypeVar("_Item")


def _spread(items: Sequence[_Item]) -> list[_Item]:
    """Return at most 64 of the items, evenly spread."""
    steps = np.linspace(0, len(items) - 1, min(len(items), _MAX_SAMPLE))
    return [items[index] for index in sorted({round(step) for step in steps})]


def percentiles_over(paths: Sequence[str], options: ReadOptions) -> Window | None:
    """Return the window by percentiles over files of one frame each. See ``dicom.percentiles_over``."""

    def frames() -> Iterator[_Sampled]:
        for path in _spread(paths):
            try:
                with opened(path, path) as file:
                    layout = check(file, path, any_modality=options.any_modality)
                    stored = frame_decoder(file, layout, path)(0)
                    with quiet:
                        modality = FrameHeaders(file.header).modality(0)
            except InputError:  # reported when its turn comes
                continue
            yield stored, modality, layout.padding

    try:
        return None if next(frames(), None) is None else _measure(frames)
    except MemoryError:  # reported when the turn of a slice comes
        return None


def _measure(frames: Callable[[], Iterator[_Sampled]]) -> Window:
    """Return the window by percentiles of frames, of which one is in memory at a time."""
    exact, shared = Histogram(), None
    for stored, modality, padding in frames():
        shared = shared or modality
        if stored.dtype.itemsize > 2 or modality != shared:
            break
        exact.add(stored, padding)
    else:
        return percentile_window(exact, shared or NO_RESCALE)
    # The rescale differs between frames, or 32 bits are too many to count each value: count in rescaled bins.
    low, high = np.inf, -np.inf
    for measured, modality in _without_padding(frames()):
        ends = modality.apply(np.array([measured.min(), measured.max()]))
        low, high = min(low, float(ends.min())), max(high, float(ends.max()))
    binned = Histogram(low, high) if low <= high else Histogram()
    for measured, modality in _without_padding(frames()):
        binned.add(modality.apply(measured))
    return percentile_window(binned)


def _without_padding(frames: Iterator[_Sampled]) -> Iterator[tuple[Stored, Rescale | LookupTable]]:
    """Yield the values of each frame that has any beside padding."""
    for stored, modality, padding in frames:
        measured = stored if padding is None else stored[~padding.mask(stored)]
        if measured.size:
            yield measured, modality


def _frame(
    file: Opened,
    layout: Layout,
    headers: FrameHeaders,
    windows: _Windows,
    decode: Callable[[int], Stored],
    index: int,
    name: str,
) -> Frame:
    with quiet:
        if refusal := map_refusal(headers.frame_type(index), name):
            raise refusal
        modality, geometry, in_file = headers.modality(index), headers.geometry(index), headers.window(index)
        found = _facts(file, headers, geometry, in_file, index, layout.frames)
    window = windows.of(in_file)
    stored = decode(index)
    warnings: list[ResultWarning] = []
    gray = None if window is None else _gray(stored, window, modality, layout)
    if window is not None and gray is not None and not windows.is_forced and _hides_scan(stored, gray, layout):
        warnings.append(ResultWarning("fallback_window", "the window in the file shows nothing: percentiles are used"))
        gray = None
    elif window is None and not windows.is_expected:
        warnings.append(ResultWarning("fallback_window", "the file has no window: percentiles are used"))
    if window is None or gray is None:
        window = windows.percentiles(stored, modality)
        gray = _gray(stored, window, modality, layout)
    view = geometry.view
    if view is None:
        warnings.append(
            ResultWarning("no_orientation", "the file does not say how the slice lies: it is shown as stored")
        )
    record = {
        "sop": found.instance,
        "series": found.series,
        "study": found.study,
        "frame": index + 1,
        "plane": None if view is None else view.plane,
        "position": geometry.along_normal,
        "window": window.to_dict(),
        "rescale": modality.to_dict() if isinstance(modality, Rescale) else None,
    }
    return Frame(
        _turned(gray, geometry, name),
        index=index,
        count=layout.frames,
        metadata={"dicom": record, "_facts": found, "_layout": layout},
        warnings=tuple(warnings),
    )


def _gray(stored: Stored, window: Window | LookupTable, modality: Rescale | LookupTable, layout: Layout) -> Gray:
    with np.errstate(all="ignore"):  # values far outside a narrow window overflow, and become black or white
        return to_gray(stored, window, modality=modality, invert=layout.invert, padding=layout.padding)


def _hides_scan(stored: Stored, gray: Gray, layout: Layout) -> bool:
    step = max(1, stored.size // _MAX_COMPARED)
    stored, gray = stored.reshape(-1)[::step], gray.reshape(-1)[::step]
    if not hides_scan(stored, gray):
        return False
    if layout.padding is None:
        return True
    measured = ~layout.padding.mask(stored)  # only now, because this takes as long as decoding
    return hides_scan(stored[measured], gray[measured])


def _turned(gray: Gray, geometry: Geometry, name: str) -> Pixels:
    """Turn a picture to the radiological view, make its pixels square, and give it three channels."""
    view = geometry.view
    turned: NDArray[Any] = gray if view is None else view.turn(gray)
    pixels = as_rgb(turned)
    if geometry.spacing is None:
        return pixels
    return square_pixels(pixels, geometry.spacing if view is None else view.turn_spacing(geometry.spacing), name)


def _facts(
    file: Opened,
    headers: FrameHeaders,
    geometry: Geometry,
    window: Window | LookupTable | None,
    index: int,
    frames: int,
) -> SliceFacts:
    header = file.header
    rows, columns = values.whole(header, values.ROWS), values.whole(header, values.COLUMNS)
    return SliceFacts(
        "",
        index,
        frames,
        "dicom",
        values.uid(header, values.STUDY),
        values.uid(header, values.SERIES),
        values.uid(header, values.SOP_INSTANCE),
        geometry.orientation,
        geometry.position,
        geometry.spacing,
        (rows, columns) if rows and columns else None,
        headers.echo(index),
        headers.frame_type(index) or image_type(header),
        syntax_name(file.syntax),
        (window.center, window.width) if isinstance(window, Window) else None,
        isinstance(window, LookupTable),
    )
