"""Check the first directory of a TIFF: refuse pictures that Pillow would misread, and limit the decoder's memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

from mri_edge.records import dataclass

from ._picture_limits import MAX_JPEG_PIXELS, check_size, count, damaged, too_large, unsupported

# Tags of TIFF 6.0 and its technical note 2.
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
COLOR_MAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, ORIENTATION = 338, 339, 274
_NEEDED = {
    *(WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP),
    *(STRIP_BYTES, PLANAR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, EXTRA_SAMPLES, SAMPLE_FORMAT),
    ORIENTATION,
    COLOR_MAP,
}
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8

_HEADS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}

_MAX_ENTRIES = 4096
_MAX_BLOCKS = 100_000  # strips or tiles; 6000 x 6000 in tiles of 64 x 64 has 8,836

_MAX_OVERLAP = 256 << 20  # bytes that strips or tiles may claim beyond the file
_MAX_COEFFICIENTS = 100 << 20  # bytes; libtiff refuses JPEG streams that need more

_GRAYS, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_PHOTOMETRICS = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab",
    10: "ITULab", 32803: "CFA", 32844: "LogL", 32845: "LogLuv", 34892: "LinearRaw",
}  # fmt: skip
_FORMATS = {1: "", 2: "signed ", 3: "floating-point ", 4: "untyped ", 5: "complex ", 6: "complex "}
_RAW, _FAX, _JPEG = 1, (2, 3, 4, 32771), 7
_COMPRESSIONS = {_RAW, *_FAX, 5, _JPEG, 8, 32773, 32946, 34925, 50000}


@dataclass(frozen=True)
class Tiff:
    """What ``check`` found in the first picture of a TIFF.

    Attributes
    ----------
    name
        Kind of the picture, for messages.
    memory
        Bytes that the decoder holds in addition to the picture itself.
    turned
        Whether Pillow turns the picture upright, which takes a copy.
    """

    name: str
    memory: int
    turned: bool


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a TIFF or a BigTIFF."""
    return head[:4] in _HEADS


def check(stream: BinaryIO, name: str) -> Tiff:
    """Check the first picture of a TIFF before it is decoded.

    Raises
    ------
    InputError
        "unsupported": a valid kind that Pillow cannot read, or misreads; "too_large"; "damaged".
    """
    tags = _read_tags(stream, name)
    width, length = _first(tags, WIDTH, 0), _first(tags, LENGTH, 0)
    if not width or not length:
        raise damaged(name, "it has no size")
    if _first(tags, PHOTOMETRIC, 0) == _PALETTE and COLOR_MAP not in tags:
        raise damaged(name, "it has no color map")
    check_size(name, width, length)
    samples = _first(tags, SAMPLES, 1)
    bits = tags.get(BITS, (1,))
    bits = bits * samples if len(bits) == 1 else bits[:samples]
    if not 0 < samples <= 6 or len(bits) != samples:
        raise unsupported(name, f"TIFF of {samples} samples a pixel")
    kind = _check_kind(tags, bits, name)
    return Tiff(kind, *_check_blocks(stream, tags, bits, name))


def _read_tags(stream: BinaryIO, name: str) -> dict[int, tuple[int, ...]]:
    """Return the values of the tags that are needed here; Pillow reads the others."""
    stream.seek(0)
    head = stream.read(16)
    order = _HEADS[head[:4]]
    big = b"+" in head[:4]
    if big and order == ">":
        raise unsupported(name, "big-endian BigTIFF")
    try:
        (position,) = struct.unpack_from("<Q" if big else f"{order}I", head, 8 if big else 4)
        stream.seek(position)
        (entries,) = struct.unpack("<Q" if big else f"{order}H", stream.read(8 if big else 2))
        if entries > _MAX_ENTRIES:
            raise too_large(name, f"its first directory has {entries} entries", entries, _MAX_ENTRIES)
        entry = struct.Struct("<HHQ8s" if big else f"{order}HHI4s")
        table = stream.read(entries * entry.size)
        tags: dict[int, tuple[int, ...]] = {}
        for tag, kind, values, inline in entry.iter_unpack(table):
            if tag not in _NEEDED or kind not in _TYPES:
                continue
            if tag in tags or not values:
                raise damaged(name, f"tag {tag} occurs twice or is empty")
            if values > _MAX_BLOCKS:
                raise too_large(name, f"it has {values} strips or tiles", values, _MAX_BLOCKS)
            layout = f"{order}{values}{_TYPES[kind]}"
            size = struct.calcsize(layout)
            content = inline
            if size > len(inline):
                stream.seek(struct.unpack("<Q" if big else f"{order}I", inline)[0])
                content = stream.read(size)
            tags[tag] = struct.unpack_from(layout, content)
    except (struct.error, OSError, OverflowError, ValueError) as error:
        raise damaged(name, "its directory is cut off") from error
    return tags


def _first(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]


def _check_kind(tags: dict[int, tuple[int, ...]], bits: Sequence[int], name: str) -> str:
    """Refuse kinds that Pillow cannot read or misreads. Tests compare all accepted kinds with tifffile.

    Returns the name of the kind, for messages.
    """
    photometric, compression = _first(tags, PHOTOMETRIC, 0), _first(tags, COMPRESSION, _RAW)
    extras, planar = tags.get(EXTRA_SAMPLES, ()), _first(tags, PLANAR, 1)
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    color = _PHOTOMETRICS.get(photometric, f"photometric {photometric}")
    kind = f"{max(bits)}-bit {_FORMATS.get(max(formats), '')}{color} TIFF"
    if photometric == 0 and max(bits) > 8:
        kind += " in which white is zero"
    if extras:
        kind += " with alpha" if 0 not in extras else " with extra samples"
    if compression == 6:
        raise unsupported(name, "TIFF with old-style JPEG compression")
    if compression not in _COMPRESSIONS:
        raise unsupported(name, f"TIFF with compression {compression}")
    depth = bits[0]
    gray, channels = photometric in _GRAYS, len(bits) - len(extras)
    readable = formats == {1} and len(set(bits)) == 1
    if gray or photometric == _PALETTE:
        deep = {12, 16} if gray else set()
        readable = readable and channels == 1 and depth in {1, 2, 4, 8} | deep and (not extras or depth == 8)
    elif photometric == _RGB:
        readable = readable and channels in (3, 4) and depth in (8, 16)
    elif photometric == _CMYK:
        readable = readable and channels == 4 and depth == 8
    else:  # Pillow ignores that the chroma of YCbCr is subsampled; with JPEG compression libjpeg handles it.
        readable = readable and photometric == _YCBCR and compression == _JPEG and planar == 1 and bits == (8, 8, 8)
    if not readable:
        raise unsupported(name, kind)
    if planar == 2:
        # Pillow reads uncompressed planes as plain 8-bit samples, and divides by associated alpha.
        misread = (
            depth != 8 or extras or (gray and len(bits) > 1) if compression == _RAW else 1 in extras and channels > 1
        )
        if misread or (photometric == 0 and compression == _RAW):
            raise unsupported(name, f"{kind} in separate planes")
    if compression in _FAX and depth != 1:
        raise unsupported(name, f"{kind} with fax compression")
    return kind


def _check_blocks(
    stream: BinaryIO, tags: dict[int, tuple[int, ...]], bits: Sequence[int], name: str
) -> tuple[int, bool]:
    """Limit the unpacked size of strips or tiles. Returns ``Tiff.memory`` and ``Tiff.turned``."""
    width, length = tags[WIDTH][0], tags[LENGTH][0]
    compression = _first(tags, COMPRESSION, _RAW)
    planes = len(bits) if _first(tags, PLANAR, 1) == 2 else 1
    tiled = TILE_OFFSETS in tags or TILE_WIDTH in tags
    if tiled:
        across, down = _first(tags, TILE_WIDTH, 0), _first(tags, TILE_LENGTH, 0)
    else:
        across, down = width, min(_first(tags, ROWS_PER_STRIP, length) or length, length)
    if not across or not down:
        raise damaged(name, "its tiles have no size")
    blocks = -(-width // across) * -(-length // down) * planes
    if blocks > _MAX_BLOCKS:
        raise too_large(name, f"it has {blocks} strips or tiles", blocks, _MAX_BLOCKS)
    check_size(name, across, down)
    padded = -(-width // across) * across, -(-length // down) * down
    if tiled and padded[0] * padded[1] > 4 * width * length + (1 << 22):
        raise too_large(name, f"{across} x {down} pixels a tile", across * down, width * length)
    offsets = tags.get(TILE_OFFSETS if tiled else STRIP_OFFSETS, ())
    sizes = tags.get(TILE_BYTES if tiled else STRIP_BYTES, ())
    if not offsets:
        raise damaged(name, "it has no pixels")
    file_size = stream.seek(0, 2)
    if sum(sizes) > 4 * file_size + _MAX_OVERLAP:
        raise damaged(name, "its strips or tiles are longer than the file")
    turned = _first(tags, ORIENTATION, 1) in range(2, 9)
    if compression == _RAW:
        return 0, turned
    row = (across * (sum(bits) if planes == 1 else max(bits)) + 7) // 8
    memory = row * down
    if compression == _JPEG:
        scans = sum(count(stream, b"\xff\xda", *block) for block in zip(offsets, sizes, strict=False))
        if scans * across * down > MAX_JPEG_PIXELS:
            what = f"JPEG in TIFF of {across} x {down} pixels in {scans} scans"
            raise too_large(name, what, scans * across * down, MAX_JPEG_PIXELS)
        memory += min(2 * row * down, _MAX_COEFFICIENTS)
    return memory, turned
