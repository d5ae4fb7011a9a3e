"""Mutate pictures of every format, and check the decoder's limits: pixels or InputError, 5 s of CPU, 500 MB.

    python tests/hostile/fuzz_pictures.py [MUTATIONS] [SEED]

prints the largest CPU time and memory seen, and the seed of what broke a limit. The seeds of the random numbers are
the mutation's own, so that ``mutation(SEED)`` makes a file again.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import zlib
from functools import lru_cache
from typing import Any

import fuzzing
import numpy as np
import tifffile
from fuzzing import Outcome, change, report
from PIL import Image

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@lru_cache(maxsize=1)
def seeds() -> tuple[bytes, ...]:
    """Make valid pictures of 48 x 64 pixels in every supported format, mode and coding."""
    slope = np.linspace(0, 255, 64)[None] * np.linspace(0.2, 1, 48)[:, None]
    grey = Image.fromarray(slope.astype(np.uint8))
    colour = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey))
    alpha = Image.merge("RGBA", (*colour.split(), grey))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [
        _encoded(colour, "JPEG"), _encoded(colour, "JPEG", progressive=True, exif=exif), _encoded(grey, "JPEG"),
        _encoded(colour.convert("CMYK"), "JPEG"), _encoded(colour, "JPEG", icc_profile=bytes(500), comment=b"scan"),
        _encoded(colour, "PNG", exif=exif), _encoded(alpha, "PNG"), _encoded(grey, "PNG"),
        _encoded(grey.convert("1"), "PNG"),
        _encoded(colour.quantize(16), "PNG", transparency=3), _encoded(colour, "PNG", icc_profile=bytes(500)),
        _encoded(colour, "PNG", save_all=True, append_images=[colour.rotate(180)]),
        _encoded(Image.fromarray((slope * 257).astype(np.uint16)), "PNG"),
        _encoded(colour, "GIF"), _encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(180)] * 3),
        _encoded(colour, "WEBP"), _encoded(alpha, "WEBP", lossless=True, exif=exif),
        _encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(180)]),
        _encoded(colour, "BMP"), _encoded(grey, "BMP"), _encoded(grey.convert("1"), "BMP"), _rle(grey),
        _encoded(colour, "PPM"), _encoded(grey, "PPM"), b"P5 64 48 4095\n" + bytes([3, 9]) * 3072,
        b"P3 64 48 255\n" + b"17 " * 9216, b"P1 64 48\n" + b"10" * 1536,
    ]  # fmt: skip
    for pixels in (np.asarray(grey), np.asarray(colour), (slope * 257).astype(np.uint16)):
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        for compression in (None, "lzw", "zlib", "packbits", "zstd", "lzma", "jpeg"):
            if compression == "jpeg" and pixels.dtype != np.uint8:
                continue
            for order, tile in (("<", None), (">", (16, 32))):
                file = io.BytesIO()
                tifffile.imwrite(file, pixels, photometric=photometric, compression=compression, byteorder=order,
                                 tile=tile, rowsperstrip=None if tile else 16)  # fmt: skip
                found.append(file.getvalue())
    found.append(_encoded(grey.convert("1"), "TIFF", compression="group4"))
    found.append(_encoded(colour.quantize(16), "TIFF"))
    found.append(_encoded(colour, "TIFF", save_all=True, append_images=[colour], tiffinfo={0x0112: 5}))
    return tuple(found)


def _rle(grey: Image.Image) -> bytes:
    plain = bytearray(_encoded(grey.quantize(4), "BMP"))
    (offset,) = struct.unpack_from("<I", plain, 10)
    body = b"".join(b"\x20\1\x20\2\0\0" for _ in range(48)) + b"\0\1"
    struct.pack_into("<I", plain, 30, 1)
    return bytes(plain[:offset]) + body


def mutation(seed: int) -> bytes:
    """Change a valid picture. Mostly the checksums are right, so that its parts are read."""
    rng = random.Random(seed)
    changed = change(rng.choice(seeds()), rng)
    return _with_checksums(changed) if rng.random() < 0.7 else changed


def _with_checksums(content: bytes) -> bytes:
    """Correct the checksums of a PNG, because otherwise its chunks are not read."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    whole, place = bytearray(content), 8
    while place + 12 <= len(whole):
        (size,) = struct.unpack_from(">I", whole, place)
        if place + 12 + size > len(whole):
            break
        struct.pack_into(">I", whole, place + 8 + size, zlib.crc32(whole[place + 4 : place + 8 + size]))
        place += 12 + size
    return bytes(whole)


_MODELS = Preprocessing(), Preprocessing(framing="head", resize="antialiased")  # of vgg16 and of lite


def read(content: bytes) -> None:
    """Decode and resize a picture."""
    pixels = picture.load(content)
    for preprocessing in _MODELS:
        preprocessing.resize_picture(pixels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def run(mutations: int, first: int = 0) -> Outcome:
    """Decode and resize this number of mutations."""
    return fuzzing.run(mutation, read, mutations, first)


if __name__ == "__main__":
    report(run(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
