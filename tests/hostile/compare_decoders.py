"""Compare our pixels with those of tifffile and OpenCV on the public test suites of other projects.

    python tests/hostile/compare_decoders.py FOLDER [--fetch]

FOLDER holds the unpacked sources, or gets them with ``--fetch``: Pillow's source archive from PyPI, and libtiff,
libpng and libjpeg-turbo from Debian's source packages (needs pip, apt-get and deb-src). No file of theirs is kept
in this repository. Each picture is brought to 8-bit RGB by our rule (upper byte of 16 bits, alpha dropped, palettes
resolved, upright) and is

    equal        the same as tifffile's or OpenCV's pixels, or at most 2 apart (JPEG and WebP round differently)
    differs      further apart: must be judged in judged_differences.json, file by file, with the reason
    refused      not read by us, with the code; if another decoder reads it, it must be judged as well
    alone        read by us only
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.errors import InputError
from mri_edge.scans.readers import _picture_pixels, picture

JUDGED = Path(__file__).with_name("judged_differences.json")
SUFFIXES = {*picture.SUFFIXES, ".pnm", ".pbm", ".jpe"}
_CLOSE = 2  # of 255
_VERSION = re.compile(r"-v?[0-9.]+(?=/)")  # in the name of the folder in an archive

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Compared:
    """The result for one file: "equal", "differs", "refused" or "alone", and the details."""

    file: str
    verdict: str
    detail: str


def fetch(folder: Path) -> None:
    """Get and unpack the source archives."""
    folder.mkdir(parents=True, exist_ok=True)
    pillow = [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "pillow"]
    subprocess.run(pillow, cwd=folder, check=True)
    subprocess.run(
        ["apt-get", "source", "--download-only", "tiff", "libpng1.6", "libjpeg-turbo"], cwd=folder, check=True
    )
    for archive in [*folder.glob("*illow-*.tar.gz"), *folder.glob("*.orig.tar.*")]:
        subprocess.run(["tar", "xf", archive.name], cwd=folder, check=True)


def compare(folder: Path) -> list[Compared]:
    """Compare every picture below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return [_compare(path, path.relative_to(folder).as_posix()) for path in files]


def unjudged(results: list[Compared], judged: dict[str, str]) -> list[Compared]:
    """Return the differences, and refusals of files that others read, that are not judged yet."""
    found = [
        result
        for result in results
        if result.verdict == "differs" or (result.verdict == "refused" and "others read it" in result.detail)
    ]
    return [result for result in found if _VERSION.sub("", result.file) not in judged]


def _compare(path: Path, name: str) -> Compared:
    peers = {peer: pixels for peer, read in _PEERS.items() if (pixels := read(path)) is not None}
    try:
        ours = picture.load(path)
    except InputError as error:
        read_by = f", others read it: {', '.join(peers)}" if peers else ""
        return Compared(name, "refused", f"{error.code}{read_by} ({error.problem.partition(': ')[2][:60]})")
    if not peers:
        return Compared(name, "alone", "")
    apart = {
        peer: int(np.abs(pixels.astype(int) - ours).max()) if pixels.shape == ours.shape else 999
        for peer, pixels in peers.items()
    }
    detail = ", ".join(f"{peer} {step if step < 999 else 'other size'}" for peer, step in apart.items())
    return Compared(name, "equal" if min(apart.values()) <= _CLOSE else "differs", detail)


def _by_opencv(path: Path, *, colour: bool = False) -> Array | None:
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imread(str(path), flags)
    except cv2.error:
        return None
    pixels = None if pixels is None else _eight_bits(pixels)
    if pixels is None or (pixels.ndim == 3 and pixels.shape[2] > 4):
        return None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    pixels = pixels[:, :, 2::-1] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)
    if path.suffix.lower() in (".tif", ".tiff"):  # OpenCV rotates these automatically
        return pixels
    turn = _picture_pixels._TURNS.get(_orientation(path))
    return turn(pixels) if turn else pixels


def _orientation(path: Path) -> int:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001 (a damaged file has none)
        return 1


def _by_tifffile(path: Path) -> Array | None:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return _tiff_rgb(page.asarray(), page)
    except Exception:  # noqa: BLE001 (whatever it says: it does not read the file)
        return None


def _tiff_rgb(values: Array, page: Any) -> Array | None:
    """Convert the stored samples that tifffile returns to 8-bit RGB by our rule."""
    if values.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    bits, photometric = page.bitspersample, page.photometric
    if values.dtype.kind not in "ub" or bits > 16 or values.ndim > 3:
        return None
    values = values.astype(int)
    if photometric == 3:
        colours = np.asarray(page.colormap)
        colours = colours if colours.max() < 256 else colours >> 8
        found = np.moveaxis(colours[:, values if values.ndim == 2 else values[..., 0]], 0, -1)
    else:
        scaled = values * 255 // (2**bits - 1) if bits < 8 else values >> (bits - 8)
        if values.ndim == 2 or photometric in (0, 1):
            grey = scaled if values.ndim == 2 else scaled[..., 0]
            found = np.repeat((255 - grey if photometric == 0 else grey)[..., None], 3, 2)
        elif photometric == 5:
            found = (255 - scaled[..., :3]) * (255 - scaled[..., 3:4]) // 255
        elif photometric in (2, 6) and scaled.shape[2] >= 3:
            found = scaled[..., :3]
        else:
            return None
    turn = _picture_pixels._TURNS.get(int(page.tags.valueof(274, 1)))
    return (turn(found) if turn else found).astype(np.uint8)


def _eight_bits(values: Array) -> Array | None:
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    return values if values.dtype == np.uint8 else None


_PEERS = {"tifffile": _by_tifffile, "OpenCV": _by_opencv, "OpenCV colour": partial(_by_opencv, colour=True)}


def main() -> int:
    """Print the table, and return 1 if a difference is not judged."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fetch", action="store_true", help="get the source archives first")
    options = parser.parse_args()
    if options.fetch:
        fetch(options.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = compare(options.folder)
    for result in results:
        print(f"{result.verdict:8} {result.file:80} {result.detail}")
    verdicts = [result.verdict for result in results]
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
    new = unjudged(results, json.loads(JUDGED.read_text(encoding="utf-8")))
    for result in new:
        print(f"not judged: {result.file}: {result.verdict}, {result.detail}")
    return bool(new)


if __name__ == "__main__":
    sys.exit(main())
