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
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from mri_edge.errors import InputError
from mri_edge.scans.readers import picture
from mri_edge.scans.resize import resize_bilinear

MAX_CPU_S, MAX_PEAK_MB = 5.0, 500.0

_NUMBERS = (0, 1, 2, 255, 256, 4095, 7999, 8000, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


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
    """Change a valid picture in a few places: bytes, numbers of 2 and 4 bytes, pieces repeated, removed or moved."""
    rng = random.Random(seed)
    changed = bytearray(rng.choice(seeds()))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        reach = min(len(changed), rng.choice((32, 64, 300, 10**9)))
        # The directory of a TIFF may be at the end.
        place = len(changed) - 1 - rng.randrange(reach) if rng.random() < 0.2 else rng.randrange(reach)
        action = rng.randrange(7)
        if action == 0:
            changed[place] = rng.randrange(256)
        elif action == 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif action in (2, 3):
            order, (layout, size) = rng.choice("<>"), rng.choice((("H", 2), ("I", 4)))
            number = rng.choice(_NUMBERS) % 256**size
            changed[place : place + size] = struct.pack(order + layout, number)
        elif action == 4:
            piece = changed[place : place + rng.randrange(1, 64)]
            changed[place:place] = piece * rng.choice((1, 2, 100, 5000))
        elif action == 5:
            del changed[place : place + rng.choice((1, 4, 12, 100))]
        elif rng.random() < 0.3:
            del changed[place:]
        if not changed:
            return b"\0"
    return _with_checksums(bytes(changed)) if rng.random() < 0.7 else bytes(changed)


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


@dataclass
class Outcome:
    """The results of a run: the worst figures, each with its seed, and how often each answer occurred."""

    cpu_s: tuple[float, int] = (0.0, -1)
    peak_mb: tuple[float, int] = (0.0, -1)
    answers: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def run(mutations: int, first: int = 0) -> Outcome:
    """Decode and resize this number of mutations."""
    outcome = Outcome()
    for seed in range(first, first + mutations):
        content = mutation(seed)
        before, start = _memory("VmRSS"), time.process_time()
        _forget_peak()
        try:
            pixels = picture.load(content)
            resize_bilinear([pixels], 128, 128)
            outcome.answers["pixels"] += 1
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
        except InputError as error:
            outcome.answers[error.code] += 1
        except Exception as error:  # noqa: BLE001 (anything else is a fault, whatever it is)
            outcome.broken.append(f"seed {seed}: {type(error).__name__}: {error}")
        cpu, peak = time.process_time() - start, (_memory("VmHWM") - before) / 1e6
        outcome.cpu_s = max(outcome.cpu_s, (cpu, seed))
        outcome.peak_mb = max(outcome.peak_mb, (peak, seed))
        if cpu > MAX_CPU_S or peak > MAX_PEAK_MB:
            outcome.broken.append(f"seed {seed}: {cpu:.1f} s, {peak:.0f} MB")
    return outcome


def _memory(name: str) -> int:
    status = Path("/proc/self/status")
    return int(status.read_text().partition(f"{name}:")[2].split()[0]) * 1024 if status.exists() else 0


def _forget_peak() -> None:
    """Reset the peak memory where the system can, on Linux: see proc(5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    done = run(total, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{total} mutations: {dict(done.answers)}")
    print(f"largest CPU {done.cpu_s[0]:.2f} s (seed {done.cpu_s[1]})")
    print(f"largest rise of memory {done.peak_mb[0]:.0f} MB (seed {done.peak_mb[1]})")
    print("\n".join(done.broken))
    sys.exit(bool(done.broken))
