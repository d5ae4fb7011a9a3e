"""Decode the frames of a DICOM file one at a time, each within limits that are checked before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.files import is_transient, out_of_memory

from . import _dicom_values as dicom
from ._dicom_file import Opened, damaged, quiet
from ._dicom_header import RLE, Layout
from ._picture_limits import check_memory

Stored: TypeAlias = NDArray[np.integer[Any]]

_ITEM, _DELIMITER = 0xFFFEE000, 0xFFFEE0DD
_MAX_FRAGMENTS = 1 << 18
_JPEG_2000 = b"\xff\x4f\xff\x51"  # SOC and SIZ
_SPARE = 1 << 16  # bytes that a compressed frame may have more than an uncompressed one


def frame_decoder(opened: Opened, layout: Layout, name: str) -> Callable[[int], Stored]:
    """Return a function that decodes the frame of an index to stored values: integers (rows, columns).

    It raises InputError: "damaged", "out_of_memory" or "unsupported". It must not run in two threads at a time.
    """
    assert opened.stream is not None  # noqa: S101 (``check`` has refused it)
    # The values, an index for the table, the gray picture and what the decoder holds.
    check_memory(name, 4 * layout.frame_bytes)
    if opened.length is not None:
        stream, length = opened.stream, opened.length
        return lambda index: _native(stream, opened, layout, index, length, name)
    frames = _Fragments(opened, layout, name)
    return lambda index: _compressed(frames.read(index), opened, layout, name)


def _native(stream: BinaryIO, opened: Opened, layout: Layout, index: int, length: int, name: str) -> Stored:
    start = index * layout.frame_bytes
    if start + layout.frame_bytes > length:
        raise damaged(name, f"it ends before the end of frame {index + 1} of {layout.frames}")
    stream.seek(opened.offset + start)
    content = _read(stream, layout.frame_bytes, name)
    order = "<" if opened.little else ">"
    values = np.frombuffer(content, f"{order}u{layout.allocated // 8}")
    return _used_bits(values.reshape(layout.rows, layout.columns), layout)


def _read(stream: BinaryIO, size: int, name: str) -> bytes:
    try:
        content = stream.read(size)
    except MemoryError as error:
        raise out_of_memory(name) from error
    except OSError as error:
        raise InputError(f"{name}: cannot read ({error.strerror})", "Try again") from error
    if len(content) < size:
        raise damaged(name, "it ends before its pixels do")
    return content


def _used_bits(values: NDArray[Any], layout: Layout) -> Stored:
    """Keep the bits up to High Bit; above it, old files have overlays (PS3.3 C.7.6.3, PS3.5 8.1.1)."""
    size = layout.allocated // 8
    low_bit = layout.high_bit + 1 - layout.stored
    if layout.stored == layout.allocated:
        return values.view(values.dtype.str.replace("u", "i")) if layout.signed else values
    if not layout.signed:
        native = values.astype(f"u{size}", copy=False)
        if low_bit:
            native = native >> low_bit
        used: Stored = native & np.array((1 << layout.stored) - 1, native.dtype)
        return used
    shifted: NDArray[Any] = values.astype(f"u{size}") << (layout.allocated - 1 - layout.high_bit)
    return shifted.view(f"i{size}") >> (layout.allocated - layout.stored)


class _Fragments:
    """The compressed frames in a file, found by seeking (PS3.5 A.4)."""

    def __init__(self, opened: Opened, layout: Layout, name: str) -> None:
        assert opened.stream is not None  # noqa: S101
        self._stream, self._layout, self._name = opened.stream, layout, name
        order = "<" if opened.little else ">"
        try:
            offsets, fragments = self._list(opened.offset, order)
        except (struct.error, OSError) as error:
            if is_transient(error):
                raise InputError(f"{name}: cannot read ({error})", "Try again") from error
            raise damaged(name, "its compressed frames cannot be found") from error
        extended = dicom.table(opened.header, dicom.EXTENDED_OFFSETS)
        if not offsets and len(extended) == layout.frames:
            offsets = [int(offset) for offset in extended]
        self._frames = self._group(offsets, fragments)

    def _list(self, start: int, order: str) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Return the basic offset table, and offset in the table's terms, position and size of each fragment."""
        stream = self._stream
        end = stream.seek(0, 2)
        position = start
        tag_size = struct.Struct(f"{order}HHI")
        offsets: list[int] | None = None
        fragments: list[tuple[int, int, int]] = []
        first = 0
        while position + 8 <= end and len(fragments) <= _MAX_FRAGMENTS:
            stream.seek(position)
            group, number, size = tag_size.unpack(stream.read(8))
            tag = group << 16 | number
            if tag == _DELIMITER:
                break
            if tag != _ITEM or size > end - position - 8:
                if fragments:  # cut off: the frames before it can be read
                    break
                raise damaged(self._name, "its compressed frames cannot be found")
            if offsets is None:
                table = stream.read(min(size, 4 * self._layout.frames))
                offsets = list(struct.unpack(f"{order}{len(table) // 4}I", table[: len(table) // 4 * 4]))
                first = position + 8 + size
            else:
                fragments.append((position - first, position + 8, size))
            position += 8 + size
        return offsets or [], fragments

    def _group(self, offsets: list[int], fragments: list[tuple[int, int, int]]) -> list[list[tuple[int, int]]]:
        frames = self._layout.frames
        pieces = [(position, size) for _, position, size in fragments]
        if frames == 1:
            return [pieces]
        starts = {offset: index for index, (offset, _, _) in enumerate(fragments)}
        if len(offsets) == frames and len(set(offsets)) == frames and all(offset in starts for offset in offsets):
            firsts = [starts[offset] for offset in offsets]
            ends = dict(zip(sorted(firsts), [*sorted(firsts)[1:], len(pieces)], strict=True))
            return [pieces[first : ends[first]] for first in firsts]
        if len(fragments) <= frames:  # one for each frame; the last ones may be missing
            return [[piece] for piece in pieces]
        raise damaged(self._name, f"it has {len(fragments)} fragments for {frames} frames, and no table of them")

    def read(self, index: int) -> bytes:
        """Return the compressed bytes of a frame."""
        pieces = self._frames[index] if index < len(self._frames) else []
        if not pieces:
            raise damaged(self._name, f"it ends before frame {index + 1} of {self._layout.frames}")
        if sum(size for _, size in pieces) > 2 * self._layout.frame_bytes + _SPARE:
            raise damaged(self._name, f"frame {index + 1} is longer compressed than it is uncompressed")
        content = []
        for position, size in pieces:
            self._stream.seek(position)
            content.append(_read(self._stream, size, self._name))
        return b"".join(content)


def _compressed(content: bytes, opened: Opened, layout: Layout, name: str) -> Stored:
    if opened.syntax == RLE:
        return _used_bits(_rle(content, layout, name), layout)
    _check_codestream(content, layout, name)
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    described: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "pixel_keyword": "PixelData",
    }
    try:
        with quiet:
            decoder = get_decoder(str(opened.syntax))
            values, _ = decoder.as_array(encapsulate([content]), index=0, raw=True, decoding_plugin="gdcm", **described)
    except MemoryError as error:
        raise out_of_memory(name) from error
    except Exception as error:
        raise damaged(name, "its compressed pixels cannot be decoded") from error
    if values.shape != (layout.rows, layout.columns):
        raise damaged(name, "its compressed pixels have another size than its header says")
    return values


def _rle(content: bytes, layout: Layout, name: str) -> NDArray[Any]:
    """Decode RLE (PS3.5 annex G): one segment for each byte of a value, the most significant first.

    pydicom's decoder lets a segment grow to 64 times its size before it checks it.
    """
    size, pixels = layout.allocated // 8, layout.rows * layout.columns
    if len(content) < 64:
        raise damaged(name, "its RLE header is cut off")
    segments, *offsets = struct.unpack("<16I", content[:64])
    if segments != size:
        raise damaged(name, f"it has {segments} RLE segments for {size} bytes")
    ends = [*offsets[1:segments], len(content)]
    planes = np.empty((pixels, size), np.uint8)
    for index, (start, end) in enumerate(zip(offsets[:segments], ends, strict=True)):
        segment = _rle_segment(content[start:end], pixels)
        if len(segment) < pixels:
            raise damaged(name, "its RLE pixels are cut off")
        planes[:, index] = np.frombuffer(segment, np.uint8, pixels)
    return planes.view(f">u{size}").reshape(layout.rows, layout.columns)


def _rle_segment(content: bytes, size: int) -> bytearray:
    result, position, end = bytearray(), 0, len(content)
    while position < end and len(result) < size:
        length = content[position]
        if length < 128:
            result += content[position + 1 : position + 2 + length]
            position += 2 + length
        else:
            if length > 128:
                result += content[position + 1 : position + 2] * (257 - length)
            position += 2 if length > 128 else 1
    return result


def _check_codestream(content: bytes, layout: Layout, name: str) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 frame that is larger than the header says, before it is decoded."""
    start = content.find(_JPEG_2000, 0, 512)  # some files have the boxes of a .jp2 file before it
    size = _jpeg_2000_size(content[start : start + 64]) if start >= 0 else _jpeg_size(content)
    if size != (layout.rows, layout.columns, 1):
        raise damaged(name, "its compressed pixels have another size than its header says")


def _jpeg_2000_size(content: bytes) -> tuple[int, int, int] | None:
    """Return height, width and components from the SIZ segment (ISO/IEC 15444-1, A.5.1), or None."""
    if len(content) < 44:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", content, 8)
    across, down, tile_left, tile_top = struct.unpack_from(">4I", content, 24)
    if not across or not down or right <= left or bottom <= top:
        return None
    tiles = -(-(right - tile_left) // across) * -(-(bottom - tile_top) // down)
    if not 0 < tiles <= 65_535:
        return None
    return bottom - top, right - left, struct.unpack_from(">H", content, 40)[0]


def _jpeg_size(content: bytes) -> tuple[int, int, int] | None:
    """Return height, width and components from the frame header of JPEG (ITU-T T.81) or JPEG-LS (T.87), or None."""
    position = 2
    for _ in range(1000):
        if content[position : position + 1] != b"\xff":
            return None
        marker = content[position + 1 : position + 2]
        if marker == b"\xff":  # fill bytes
            position += 1
            continue
        if marker and (marker[0] == 0xF7 or (0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC))):
            frame = content[position + 4 : position + 10]
            if len(frame) < 6:
                return None
            height, width = struct.unpack_from(">HH", frame, 1)
            return height, width, frame[5]
        length = content[position + 2 : position + 4]
        if len(length) < 2:
            return None
        position += 2 + int.from_bytes(length, "big")
    return None
