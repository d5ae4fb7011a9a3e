"""Limits on the size of a picture, and the errors that refuse one.

The limits keep every picture below 5 seconds of processor time and 500 MB of memory. Real scans stay far below them:
a radiograph of 6000 x 6000 pixels of 16 bits takes 108 MB.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np

from mri_edge.errors import InputError

MAX_PIXELS = 64_000_000
_MAX_SIDE = 65_535  # pixels; JPEG and GIF cannot have more

# Bytes that decoding one picture may hold at a time: Pillow's image, the returned pixels and the decoder's buffers.
MAX_MEMORY = 450_000_000

# Number of scans of a JPEG times its pixels. A progressive JPEG usually has 10 scans, each a pass over all pixels.
MAX_JPEG_PIXELS = 16 * MAX_PIXELS

# The reads of a smaller file are not counted: it cannot keep a parser busy for long.
SMALL_FILE = 4 << 20  # bytes
_MAX_READS = 1_500_000
_MAX_HEADER = 16 << 20  # bytes

_CONVERT = "Save it as PNG with 8 or 16 bits a channel, for instance with ImageMagick: magick SCAN scan.png"


def too_large(name: str, what: str, value: float, limit: float, hint: str = "Make it smaller") -> InputError:
    """Refuse a picture that exceeds a limit."""
    return InputError(f"{name}: too large, {what}", hint, code="too_large", value=value, limit=limit)


def unsupported(name: str, kind: str) -> InputError:
    """Refuse a valid picture of an unsupported kind."""
    return InputError(f"{name}: {kind} is not supported", _CONVERT, code="unsupported")


def damaged(name: str, reason: str) -> InputError:
    """Refuse a picture that violates its own format."""
    return InputError(f"{name}: damaged picture ({reason})", "Copy it again", code="damaged")


def check_size(name: str, width: int, height: int) -> None:
    """Raise InputError if a picture has more pixels, or a longer side, than is supported."""
    if width * height > MAX_PIXELS:
        limit = f"The limit is {MAX_PIXELS:,} pixels: make it smaller"
        raise too_large(name, f"{width} x {height} pixels", width * height, MAX_PIXELS, limit)
    if max(width, height) > _MAX_SIDE:
        limit = f"The limit is {_MAX_SIDE:,} pixels a side: make it smaller"
        raise too_large(name, f"{width} x {height} pixels", max(width, height), _MAX_SIDE, limit)


def check_memory(name: str, needed: int) -> None:
    """Raise InputError if decoding needs too many bytes, MemoryError if the system does not have them now.

    The memory is allocated here and freed again, because a decoder that runs out of memory reports a damaged picture.
    """
    if needed > MAX_MEMORY:
        hint = f"The limit is {MAX_MEMORY / 1e6:.0f} MB: make it smaller, or save it uncompressed"
        raise too_large(name, f"decoding it takes {needed / 1e6:.0f} MB", needed, MAX_MEMORY, hint)
    if needed > SMALL_FILE:
        np.empty(needed, np.uint8)


def count(stream: BinaryIO, pattern: bytes, start: int = 0, size: int | None = None) -> int:
    """Count a pattern in a file, or in ``size`` bytes of it from ``start``. The file's position is kept."""
    if isinstance(stream, io.BytesIO):
        return stream.getvalue().count(pattern, start, None if size is None else start + size)
    position, found, rest = stream.tell(), 0, b""
    left = size if size is not None else stream.seek(0, io.SEEK_END)
    stream.seek(start)
    # BoundedFile does not count read1. That is fine: this pass over the file is quick.
    while left > 0 and (piece := stream.read1(min(left, SMALL_FILE))):  # type: ignore[attr-defined]
        left -= len(piece)
        piece = rest + piece
        found += piece.count(pattern)
        rest = piece[1 - len(pattern) :]
    stream.seek(position)
    return found


class BoundedFile(io.BufferedReader):
    """A file that raises InputError when more reads or bytes are requested than decoding a real picture needs.

    Pillow's parsers loop in Python over chunks, blocks, comments and stray bytes, and a file of a few megabytes
    can hold millions of these.
    """

    def __init__(self, raw: Any, name: str, size: int) -> None:
        super().__init__(raw, 1 << 16)
        self._scan, self._size = name, size
        self._reads = self._taken = 0
        self.most_bytes = _MAX_HEADER

    def allow_whole_file(self) -> None:
        """From now on allow as many bytes as the file has."""
        self.most_bytes = self._size + 4 * _MAX_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual. Raises InputError beyond the limits."""
        content = super().read(size)
        self._reads += 1
        self._taken += len(content)
        if self._reads > _MAX_READS:
            raise too_large(self._scan, "it is made of too many pieces", self._reads, _MAX_READS)
        if self._taken > self.most_bytes:
            raise too_large(self._scan, "its header is too long", self._taken, self.most_bytes)
        return content
