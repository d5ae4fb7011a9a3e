"""Refuse pictures that exceed limits by their headers, before they are decoded. ``_tiff`` does the same for TIFF.

The limits keep every picture below 5 seconds of processor time and 500 MB of memory. Real scans stay far below them:
a radiograph of 6000 x 6000 pixels of 16 bits takes 108 MB.
"""

from __future__ import annotations

import io
import struct
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
_MAX_READS = 1_200_000
_MAX_HEADER = 16 << 20  # bytes

_CONVERT = "Save it as PNG with 8 or 16 bits a channel, for instance with ImageMagick: magick SCAN scan.png"


def too_large(name: str, what: str, value: float, limit: float, hint: str = "Make it smaller") -> InputError:
    """Return the error for a picture that exceeds a limit."""
    return InputError(f"{name}: too large, {what}", hint, code="too_large", value=value, limit=limit)


def unsupported(name: str, kind: str) -> InputError:
    """Return the error for a valid picture of an unsupported kind."""
    return InputError(f"{name}: {kind} is not supported", _CONVERT, code="unsupported")


def damaged(name: str, reason: str) -> InputError:
    """Return the error for a picture that violates its format."""
    return InputError(f"{name}: damaged picture ({reason})", "Copy it again", code="damaged")


def check_size(name: str, width: int, height: int) -> None:
    """Raise InputError if a picture has too many pixels, or too long a side."""
    if width * height > MAX_PIXELS:
        limit = f"The limit is {MAX_PIXELS:,} pixels: make it smaller"
        raise too_large(name, f"{width} x {height} pixels", width * height, MAX_PIXELS, limit)
    if max(width, height) > _MAX_SIDE:
        limit = f"The limit is {_MAX_SIDE:,} pixels a side: make it smaller"
        raise too_large(name, f"{width} x {height} pixels", max(width, height), _MAX_SIDE, limit)


def check_memory(name: str, needed: int) -> None:
    """Raise InputError if decoding needs too many bytes, and MemoryError if the system cannot provide them now.

    The memory is allocated and freed here, because a decoder that runs out of memory reports a damaged picture.
    """
    if needed > MAX_MEMORY:
        hint = f"The limit is {MAX_MEMORY / 1e6:.0f} MB: make it smaller, or save it uncompressed"
        raise too_large(name, f"decoding it takes {needed / 1e6:.0f} MB", needed, MAX_MEMORY, hint)
    if needed > SMALL_FILE:
        np.empty(needed, np.uint8)


def count(stream: BinaryIO, pattern: bytes, start: int = 0, size: int | None = None) -> int:
    """Count a pattern in a file, or in ``size`` of its bytes from ``start`` on. The file's position does not change."""
    if isinstance(stream, io.BytesIO):
        return stream.getvalue().count(pattern, start, None if size is None else start + size)
    position, found, rest = stream.tell(), 0, b""
    left = size if size is not None else stream.seek(0, io.SEEK_END)
    stream.seek(start)
    # BoundedFile does not count these reads, because this pass over the file is fast.
    while left > 0 and (piece := stream.read1(min(left, SMALL_FILE))):  # type: ignore[attr-defined]
        left -= len(piece)
        piece = rest + piece
        found += piece.count(pattern)
        rest = piece[1 - len(pattern) :]
    stream.seek(position)
    return found


class BoundedFile(io.BufferedReader):
    """A file that raises InputError when a decoder requests more reads or bytes than a real picture needs.

    Pillow's parsers loop in Python over chunks, blocks, comments and stray bytes, and a file of a few megabytes can
    contain millions of them.
    """

    def __init__(self, raw: Any, name: str, size: int) -> None:
        super().__init__(raw, 1 << 16)
        self._scan, self._size = name, size
        self._read_calls = self._bytes_read = 0
        self.max_bytes, self.max_reads = _MAX_HEADER, _MAX_READS

    def allow_whole_file(self) -> None:
        """Allow as many bytes as the file has from now on."""
        self.max_bytes, self.max_reads = self._size + 4 * _MAX_HEADER, _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual. Raises InputError when a limit is exceeded."""
        content = super().read(size)
        self._read_calls += 1
        self._bytes_read += len(content)
        if self._read_calls > self.max_reads:
            raise too_large(self._scan, "it is made of too many pieces", self._read_calls, self.max_reads)
        if self._bytes_read > self.max_bytes:
            raise too_large(self._scan, "its header is too long", self._bytes_read, self.max_bytes)
        return content


_MAX_WEBP_PIXELS = 20_000_000
_MAX_WEBP_FILE = 64 << 20  # bytes
# Pillow decodes such pictures in Python, value by value.
_MAX_RLE_PIXELS = 8_000_000
_MAX_PLAIN_VALUES = 4_000_000
_MAX_PROFILES = 4  # a valid PNG has at most one color profile; each may unpack to 1 MB

# Raw modes of more than 8 bits a channel from which Pillow keeps at least the upper 8. Others lose bits.
_DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I;16R", "I;12"}
_UPPER_BYTES = {"RGB;16B", "RGB;16L", "RGB;16N", "RGBA;16B", "RGBA;16L", "RGBA;16N"}
_UPPER_BYTES |= {"RGBX;16B", "RGBX;16L", "RGBX;16N", "LA;16B", "RGBa;16B", "RGBa;16L", "RGBa;16N"}
_PACKED = {"BGR;15", "BGR;16"}  # 15 or 16 bits a pixel, not a channel

_SUPPORTED_FRAMES = {0xC0, 0xC1, 0xC2}  # others are lossless, hierarchical or arithmetic-coded


def check_before_open(stream: BinaryIO, head: bytes, size: int, name: str) -> None:
    """Raise InputError if Pillow would need too much time or memory even for the header."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        if size > _MAX_WEBP_FILE:
            raise too_large(name, f"WebP of {size} bytes", size, _MAX_WEBP_FILE)
        width, height = _webp_size(head)
        check_size(name, width, height)
        if width * height > _MAX_WEBP_PIXELS:
            what = f"WebP of {width} x {height} pixels"
            raise too_large(name, what, width * height, _MAX_WEBP_PIXELS, "Save it as PNG")
    elif head[:4] == b"\x89PNG":
        profiles = count(stream, b"iCCP")
        if profiles > _MAX_PROFILES:
            raise damaged(name, f"it has {profiles} color profiles")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height of the canvas (RFC 9649, 2.5 to 2.7), or zeros if the header is cut off."""
    kind, body = head[12:16], head[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def check_opened(image: Any, name: str) -> int:
    """Raise InputError for a picture that Pillow has opened but would misread, or take too long to decode.

    Returns the number of bytes that the decoder holds in addition to the picture itself.
    """
    if not image.tile:
        return 0
    codec, _, _, arguments = image.tile[0]
    raw_mode = arguments if isinstance(arguments, str) else arguments[0]
    deep = isinstance(raw_mode, str) and raw_mode.partition(";")[2][:2] in ("16", "12", "15", "32", "64")
    if deep and raw_mode not in _DEEP | _UPPER_BYTES | _PACKED:
        raise unsupported(name, f"{image.format} with pixels of the kind {raw_mode}")
    width, height = image.size
    pixels = width * height
    if codec == "jpeg":
        return _jpeg_memory(image, pixels, name)
    if codec == "bmp_rle" and pixels > _MAX_RLE_PIXELS:
        what = f"run-length encoded BMP of {pixels} pixels"
        raise too_large(name, what, pixels, _MAX_RLE_PIXELS, "Save it as PNG")
    if codec == "ppm_plain":
        values = pixels * (3 if image.mode == "RGB" else 1)
        if image.mode != "1" and values > _MAX_PLAIN_VALUES:
            raise too_large(name, f"plain-text picture of {values} values", values, _MAX_PLAIN_VALUES, "Save it as PNG")
        return 12 * int(values)
    if image.format == "PPM" and image.mode not in ("1", "L", "I", "RGB"):
        raise unsupported(name, f"PPM of {image.mode} pixels")
    if image.format == "BMP":
        _check_bmp(image, raw_mode, name)
    return 4 * int(pixels) if codec == "bmp_rle" else 0


def _jpeg_memory(image: Any, pixels: int, name: str) -> int:
    header = image.fp.tell()  # Pillow has read to the end of the first scan's header
    arithmetic = count(image.fp, b"\xff\xc9", 0, header) or count(image.fp, b"\xff\xca", 0, header)
    # A color profile may contain the two bytes by chance, so the frame header decides.
    if arithmetic and (kind := _unsupported_jpeg(image.fp)):
        raise unsupported(name, kind)
    if not (image.info.get("progressive") or _first_scan_is_partial(image)):
        return 0
    scans = count(image.fp, b"\xff\xda")
    if scans * pixels > MAX_JPEG_PIXELS:
        what = f"JPEG of {pixels} pixels in {scans} scans"
        raise too_large(name, what, scans * pixels, MAX_JPEG_PIXELS, "Save it with fewer scans, or as PNG")
    return 2 * pixels * int(image.layers)  # all coefficients, 16 bits each


def _first_scan_is_partial(image: Any) -> bool:
    """Whether the first scan lacks components that later scans contain. Pillow has just read its header."""
    length = 6 + 2 * image.layers
    position = image.fp.tell()
    image.fp.seek(max(0, position - length))
    header = image.fp.read(length)
    image.fp.seek(position)
    return bool(header[:3] != bytes((0, length, image.layers)))


def _check_bmp(image: Any, raw_mode: str, name: str) -> None:
    """Refuse a BMP with a gray palette of another depth: Pillow takes the palette's depth for that of the pixels."""
    position = image.fp.tell()
    image.fp.seek(14)
    header = image.fp.read(16)
    image.fp.seek(position)
    core = header[:4] == b"\x0c\0\0\0"
    (bits,) = struct.unpack_from("<H", header, 10 if core else 14)
    if raw_mode in ("1", "L") and bits != (1 if raw_mode == "1" else 8):
        raise unsupported(name, f"{bits}-bit BMP with a gray palette of another depth")


def unsupported_kind(stream: BinaryIO, head: bytes) -> str | None:
    """Return the kind of a file that Pillow could not open although its header is valid, or None."""
    if head[:2] == b"\xff\xd8":
        return _unsupported_jpeg(stream)
    if head[:2] == b"BM" and len(head) >= 34:
        size, width, height, planes, bits, compression = struct.unpack_from("<IiiHHI", head, 14)
        valid = size >= 40 and width > 0 and height and planes == 1 and compression <= 6
        if valid and bits in (0, 1, 2, 4, 8, 16, 24, 32, 64) and (compression > 2 or bits in (0, 2, 64)):
            return f"{bits}-bit BMP with compression {compression}"
    return None


def _unsupported_jpeg(stream: BinaryIO) -> str | None:
    """Return the kind of a JPEG from its frame header if it is not supported. The file's position does not change."""
    position = stream.tell()
    try:
        return _frame_kind(stream)
    finally:
        stream.seek(position)


def _frame_kind(stream: BinaryIO) -> str | None:
    stream.seek(2)
    for _ in range(1000):
        segment = stream.read(4)
        if len(segment) < 4 or segment[0] != 0xFF:
            return None
        marker, length = segment[1], int.from_bytes(segment[2:], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = stream.read(6)
            if len(frame) < 6:
                return None
            if frame[0] != 8:
                return f"{frame[0]}-bit JPEG"
            if marker not in _SUPPORTED_FRAMES:
                return "lossless, hierarchical or arithmetic-coded JPEG"
            return None if frame[5] in (1, 3, 4) else f"JPEG of {frame[5]} components"
        stream.seek(length - 2, 1)
    return None
