"""Make files that make a decoder use as much memory and time as the limits allow, and more.

``python tests/hostile/bombs.py FOLDER`` writes them all (some 900 MB, a minute) and measures each.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageFile

ImageFile.MAXBLOCK = 1 << 29  # Pillow writes a progressive JPEG in one piece

_SIDE = 8000
_PLAIN = {"metadata": None, "photometric": "minisblack"}


@lru_cache(maxsize=1)
def _noise() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE), np.uint8)


def _colour(side: int = _SIDE) -> Image.Image:
    plane = Image.fromarray(_noise()[:side, :side])
    turns = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)
    return Image.merge("RGB", (plane, *(plane.transpose(turn) for turn in turns)))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **_PLAIN | options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Make one chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, bits: int, colour: int, row: bytes, *before: bytes, interlace: int = 0) -> bytes:
    """Make a PNG of equal rows, each with its filter byte. ``before`` are the chunks before the pixels."""
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def rle_bmp(width: int, height: int, body: bytes) -> bytes:
    """Make a run-length encoded 8-bit BMP with a palette of two colors."""
    palette = bytes([0, 0, 9, 0, 255, 255, 255, 0])
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 2, 2)
    return b"BM" + struct.pack("<IHHI", 62 + len(body), 0, 0, 62) + header + palette + body


def _segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")


def progressive(scans: int, side: int = _SIDE) -> bytes:
    """Make a progressive JPEG in which every extra scan (97 bytes) is another pass over all blocks."""
    blocks = (side // 8) ** 2
    whole = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    whole += _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    whole += _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    whole += _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    whole += _segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * (-(-blocks // 8))
    end = _bits("".join("0" + "1" * 14 for _ in range(-(-blocks // 32767))))
    whole += _segment(0xDA, b"\1\1\0\1\x3f\1") + end
    return whole + (_segment(0xDA, b"\1\1\0\1\x3f\x10") + end) * scans + b"\xff\xd9"


def dense_refinement(scans: int, side: int) -> bytes:
    """Make a progressive JPEG without zero coefficients, in which each extra scan corrects all 63 of every block."""
    blocks = (side // 8) ** 2
    whole = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    whole += _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    whole += _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    whole += _segment(0xC4, b"\x10" + bytes([0, 2] + [0] * 14) + b"\1\0")  # "00": run 0, size 1; "01": end of block
    whole += _segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * (-(-blocks // 8))
    whole += _segment(0xDA, b"\1\1\0\1\x3f\x0d") + _bits("001" * 63 * 8) * (blocks // 8)
    refine = _bits(("01" + "01" * 31 + "0") * 8) * (blocks // 8)  # end of block, then a bit for each coefficient
    for high in range(13, 13 - scans, -1):
        whole += _segment(0xDA, bytes([1, 1, 0, 1, 63, high << 4 | (high - 1)])) + refine
    return whole + b"\xff\xd9"


def repeated_sequential(scans: int) -> bytes:
    """Make a sequential JPEG of two components in separate scans, with one scan repeated."""
    whole = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    frame = b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    whole += _segment(0xC0, struct.pack(">BHHB", 8, 4000, 4000, 3) + frame)
    whole += _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    whole += _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0")
    body = b"\0" * (250_000 * 2 // 8)
    return (
        whole + b"".join(_segment(0xDA, bytes([1, 1 + n % 3, 0, 0, 63, 0])) + body for n in range(scans)) + b"\xff\xd9"
    )


def arithmetic(side: int, progressive_too: bool = False) -> bytes:
    """Make an arithmetic-coded JPEG of random data, in which every decision is expensive."""
    data = np.random.default_rng(1).integers(0, 255, side * side // 2, np.uint8).tobytes()
    whole = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    frame = b"".join(bytes([component, 0x11, 0]) for component in (1, 2, 3))
    whole += _segment(0xCA if progressive_too else 0xC9, struct.pack(">BHHB", 8, side, side, 3) + frame)
    scan = b"\3\1\0\2\0\3\0" + (b"\0\0\0" if progressive_too else b"\0\x3f\0")
    return whole + _segment(0xDA, scan) + data + b"\xff\xd9"


def _jpeg_with(before: bytes) -> bytes:
    plain = _encoded(Image.new("L", (64, 64)), "JPEG")
    return plain[:2] + before + plain[2:]


def _gif_with(blocks: bytes) -> bytes:
    plain = _encoded(Image.new("L", (64, 64)), "GIF")
    start = 13 + (3 << ((plain[10] & 7) + 1) if plain[10] & 128 else 0)
    return plain[:start] + blocks + plain[start:]


def raw_tiff(tags: dict[int, tuple[int, Any]], body: bytes) -> bytes:
    """Make a little-endian TIFF: ``body`` from byte 8 on, then the directory. Values are LONGs or arrays of LONGs."""
    place, entries, arrays = 8 + len(body), [], b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = np.atleast_1d(np.asarray(values)).astype({1: "u1", 3: "<u2", 4: "<u4"}[kind])
        content = packed.tobytes()
        if len(content) > 4:
            arrays, content = arrays + content, struct.pack("<I", after + len(arrays))
        entries.append(struct.pack("<HHI4s", tag, kind, packed.size, content.ljust(4, b"\0")))
    return (
        b"II*\0"
        + struct.pack("<I", place)
        + body
        + struct.pack("<H", len(tags))
        + b"".join(entries)
        + bytes(4)
        + arrays
    )


def tiff_of(width: int, height: int, compression: int, body: bytes, **extra: tuple[int, Any]) -> bytes:
    """Make a gray 8-bit TIFF of one strip. ``extra`` are tags by their number, such as ``t273=(4, 8)``."""
    tags: dict[int, tuple[int, Any]] = {
        256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, compression), 262: (3, 1),
        273: (4, 8), 277: (3, 1), 278: (4, height), 279: (4, len(body)),
    }  # fmt: skip
    return raw_tiff(tags | {int(name[1:]): value for name, value in extra.items()}, body)


def _shared_strips() -> bytes:
    """Make a TIFF of 60,000 strips that are all the same megabyte, in which the bits of each byte must be reversed."""
    body = bytes(1 << 20)
    strips = 60_000
    return tiff_of(
        16, strips, 32773, body, t266=(3, 2), t278=(4, 1), t273=(4, [8] * strips), t279=(4, [len(body)] * strips)
    )


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _interlaced() -> bytes:
    """Make a PNG with Adam7 passes of zeros; only the number of bytes matters."""
    side, passes = 7000, ((8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2))
    size = sum((1 + 8 * -(-side // across)) * -(-side // down) for across, down in passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(size))) + chunk(b"IEND", b"")


def _many_idats() -> bytes:
    """Make a PNG with millions of empty chunks, then the pixels in chunks of one byte."""
    packed = zlib.compress(bytes(9 * 8), 0)
    pieces = b"".join(chunk(b"IDAT", packed[place : place + 1]) for place in range(len(packed)))
    whole = png(8, 8, 8, 0, bytes(9))
    start, end = whole.index(b"IDAT") - 4, whole.index(b"IEND") - 4
    return whole[:start] + chunk(b"IDAT", b"") * 3_000_000 + pieces + whole[end:]


def _looping() -> bytes:
    """Make a TIFF with a directory that names itself as the next one."""
    whole = bytearray(tiff_of(64, 64, 1, bytes(4096)))
    (place,) = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, place)
    struct.pack_into("<I", whole, place + 2 + 12 * entries, place)
    return bytes(whole)


BOMBS: dict[str, Callable[[], bytes]] = {
    "wide.png": lambda: png(64_000_000, 1, 8, 0, b"\0" + bytes(64_000_000)),
    "flat.png": lambda: png(_SIDE, _SIDE, 8, 2, b"\4" + bytes([7]) * 3 * _SIDE),
    "rgba16.png": lambda: png(_SIDE, _SIDE, 16, 6, b"\4" + bytes([200]) * 8 * _SIDE),
    "grey16.png": lambda: png(_SIDE, _SIDE, 16, 0, b"\4" + bytes([200]) * 2 * _SIDE),
    "palette.png": lambda: png(_SIDE, _SIDE, 8, 3, b"\1" + bytes([3]) * _SIDE, chunk(b"PLTE", bytes(range(255)) * 3)),
    "long-rows.png": lambda: png(65_535, 976, 16, 6, b"\4" + bytes([200]) * 8 * 65_535),
    "strip.png": lambda: png(20_000, 600, 8, 2, b"\0" + bytes([200, 30, 30]) * 20_000),
    "column.png": lambda: png(976, 65_535, 8, 0, b"\0" + bytes([200]) * 976),
    "interlaced.png": _interlaced,
    "noise.png": lambda: _encoded(_colour(), "PNG", compress_level=0),
    "profiles.png": lambda: png(8, 8, 8, 0, bytes(9), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 4000),
    "texts.png": lambda: png(8, 8, 8, 0, bytes(9), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) * 4000),
    "chunks.png": lambda: png(8, 8, 8, 0, bytes(9), chunk(b"prVt", b"") * 5_000_000),
    "few-chunks.png": lambda: png(8, 8, 8, 0, bytes(9), chunk(b"prVt", b"") * 340_000),
    "idats.png": _many_idats,
    "rotated.png": lambda: _encoded(Image.new("RGBA", (_SIDE, _SIDE), (9, 9, 9, 9)), "PNG", exif=_exif(6)),
    "noise.jpg": lambda: _encoded(_colour(), "JPEG", quality=100, subsampling=0),
    "cmyk.jpg": lambda: _encoded(_colour().convert("CMYK"), "JPEG", quality=90, exif=_exif(5)),
    "progressive.jpg": lambda: _encoded(_colour(5800), "JPEG", quality=100, subsampling=0, progressive=True),
    "scans-13.jpg": lambda: progressive(13),
    "scans-500.jpg": lambda: progressive(500),
    "scans-200-small.jpg": lambda: progressive(200, 2048),
    "dense-13.jpg": lambda: dense_refinement(13, 4000),
    "dense-12-large.jpg": lambda: dense_refinement(12, 7000),
    "repeated.jpg": lambda: repeated_sequential(60),
    "repeated-500.jpg": lambda: repeated_sequential(500),
    "arithmetic.jpg": lambda: arithmetic(2304),
    "arithmetic-large.jpg": lambda: arithmetic(5000),
    "arithmetic-progressive.jpg": lambda: arithmetic(2304, True),
    "junk.jpg": lambda: _jpeg_with(b"\xff\xe0\0\2" + bytes(100 << 20)),
    "small-junk.jpg": lambda: _jpeg_with(b"\xff\xe0\0\2" + bytes(4_190_000)),
    "exif.jpg": lambda: _jpeg_with(_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 1500),
    "photoshop.jpg": lambda: _jpeg_with(_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) * 60),
    "comments.gif": lambda: _gif_with(b"!\xfe" + b"\1a" * 30_000_000 + b"\0"),
    "few-comments.gif": lambda: _gif_with(b"!\xfe" + b"\1a" * 2_000_000 + b"\0"),
    "noise.gif": lambda: _encoded(Image.fromarray(_noise()), "GIF"),
    "canvas.gif": lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(3) + b"," + bytes(9) + b"\x02\0;",
    "noise.webp": lambda: _encoded(_colour(4400), "WEBP", lossless=True, method=0, quality=0),
    "lossy.webp": lambda: _encoded(_colour(4400), "WEBP", quality=30, method=0),
    "large.webp": lambda: _encoded(Image.new("RGB", (16_383, 3_900)), "WEBP", lossless=True, method=0),
    "rle.bmp": lambda: rle_bmp(_SIDE, _SIDE, (b"\1\1" + b"\0\0") * _SIDE + b"\0\1"),
    "rle-runs.bmp": lambda: rle_bmp(2828, 2828, b"\1\1" * 8_000_000),
    "rle-rows.bmp": lambda: rle_bmp(2828, 2828, (b"\1\1" + b"\0\0") * 2828 + b"\0\1"),
    "grey12.pgm": lambda: b"P5 8000 8000 4095\n" + bytes([1, 200]) * 64_000_000,
    "colour12.ppm": lambda: b"P6 6000 6000 4095\n" + bytes([1, 200]) * 108_000_000,
    "plain.ppm": lambda: b"P3 1150 1150 255\n" + b"100 " * 3_967_500,
    "plain.pbm": lambda: b"P1 8000 8000\n" + b"1" * 64_000_000,
    "plain-large.ppm": lambda: b"P3 8000 8000 255\n" + b"1 " * 9_000_000,
    "comment.ppm": lambda: b"P6\n#" + b"a" * 100_000_000 + b"\n8 8 255\n" + bytes(192),
    "raw16.tif": lambda: _tiff(np.zeros((_SIDE, _SIDE), np.uint16) + 40_000),
    "one-strip.tif": lambda: _tiff(
        np.asarray(_colour(6000)), photometric="rgb", compression="lzw", predictor=True, rowsperstrip=6000
    ),
    "deflate.tif": lambda: _tiff(np.zeros((6000, 6000, 3), np.uint16) + 40_000, photometric="rgb", compression="zlib",
                                 predictor=True, rowsperstrip=6000),
    "lzma.tif": lambda: _tiff(np.asarray(_colour(2000)), photometric="rgb", compression="lzma",
                              compressionargs={"level": 0}, rowsperstrip=2000),
    "zstd.tif": lambda: _tiff(np.zeros((_SIDE, _SIDE, 3), np.uint8), photometric="rgb", compression="zstd",
                              rowsperstrip=16),
    "jpeg.tif": lambda: _tiff(np.asarray(_colour(6000)), photometric="ycbcr", compression="jpeg", tile=(512, 512)),
    "webp.tif": lambda: _tiff(np.asarray(_colour(4000)), photometric="rgb", compression="webp", tile=(1024, 1024)),
    "turned.tif": lambda: _tiff(np.asarray(_colour(6300)), photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
    "tile.tif": lambda: tiff_of(64, 64, 8, zlib.compress(bytes(900 << 20), 1), t322=(4, 30_000), t323=(4, 30_000),
                                t324=(4, 8), t325=(4, 4_000_000)),
    "strips.tif": lambda: tiff_of(1, 60_000, 1, bytes(60_000), t278=(4, 1), t273=(4, range(8, 60_008)),
                                  t279=(4, [1] * 60_000)),
    "million-strips.tif": lambda: tiff_of(64, 1000, 1, bytes(64_000), t273=(4, [8] * 3_000_000), t278=(4, 1)),
    "shared-strips.tif": _shared_strips,
    "small-tiles.tif": lambda: tiff_of(4000, 4000, 1, bytes(4000), t322=(4, 1), t323=(4, 1), t324=(4, [8] * 900_000),
                                       t325=(4, [1] * 900_000)),
    "fax.tif": lambda: tiff_of(60_000, 1000, 4, np.random.default_rng(3).bytes(20_000_000), t258=(3, 1)),
    "fax3.tif": lambda: tiff_of(60_000, 1000, 3, np.random.default_rng(3).bytes(20_000_000), t258=(3, 1)),
    "scans.tif": lambda: tiff_of(_SIDE, _SIDE, 7, progressive(500)),
    "scans-few.tif": lambda: tiff_of(4000, 4000, 7, progressive(60, 4000)),
    "loop.tif": _looping,
}  # fmt: skip


_MEASURE = """
import json, sys, time
import numpy as np
from mri_edge.scans.readers import picture
from mri_edge.errors import InputError
from mri_edge.scans.preprocessing import Preprocessing
models = Preprocessing(), Preprocessing(framing="head", resize="antialiased")
def resize(pixels):
    for preprocessing in models:
        preprocessing.resize_picture(pixels)
def spent():
    status = open("/proc/self/status").read()  # ru_maxrss of a new process starts at that of its parent
    return time.process_time(), int(status.partition("VmHWM:")[2].split()[0]) * 1024
resize(picture.load(np.zeros((300, 300, 3), np.uint8)))
cpu, peak = spent()
try:
    pixels = picture.load(sys.argv[1])
    resize(pixels)
    answer = "x".join(map(str, pixels.shape[:2]))
except InputError as error:
    answer = error.code
after, top = spent()
print(json.dumps({"answer": answer, "cpu_s": after - cpu, "peak_mb": (top - peak) / 1e6}))
"""


def measure(path: Path) -> dict[str, Any]:
    """Decode and resize a file in a new process. Return the answer, the CPU seconds and the rise of the peak in MB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        return {
            "answer": f"exit {done.returncode}: {done.stderr[-200:]}",
            "cpu_s": float("nan"),
            "peak_mb": float("nan"),
        }
    result: dict[str, Any] = json.loads(done.stdout)
    if done.stderr:
        result["answer"] += f" (said: {done.stderr[:80]!r})"
    return result


def make_by_request() -> None:
    """Write the bombs that stdin asks for, each line a name, a tab and a path, and answer each with a line on stdout.

    Each is made in a fork, because making some takes gigabytes. The libraries are imported only once.
    """
    for line in sys.stdin:
        bomb, path = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            Path(path).write_bytes(BOMBS[bomb]())
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for bomb, make in BOMBS.items():
        if len(sys.argv) > 2 and bomb not in sys.argv[2:]:
            continue
        file = folder / bomb
        file.write_bytes(make())
        found = measure(file)
        print(f"{found['cpu_s']:6.2f} s {found['peak_mb']:6.0f} MB  {bomb:28} {found['answer']}", flush=True)
        file.unlink()
