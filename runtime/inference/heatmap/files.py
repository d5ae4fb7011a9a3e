"""Write a heatmap picture for each result into one folder, where no two scans ever share a picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from PIL import Image

from mri_edge.bundles.manifest import Metric
from mri_edge.inference.prediction import Failure, Prediction, frame_name, hashed_name, is_too_long
from mri_edge.storage.atomic import atomic_write, make_folder

from .picture import SCAN_KEY, draw


def draw_each(
    results: Iterable[Prediction | Failure], folder: Path, score: Metric | None
) -> Iterator[Prediction | Failure]:
    """Write a heatmap into ``folder`` for each prediction with a map and pixels, and yield each result with its path.

    ``scans/a.jpg`` gets ``folder/a.jpg.png``. If another scan has that picture already, it gets
    ``folder/a.HASH.jpg.png``, with a hash of its absolute path, so that no two scans ever share a picture, even in
    different runs. Frame 3 of a scan with several is named ``a.nii-3``. ``score`` is as for ``draw``.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    for result in results:
        if (
            isinstance(result, Prediction)
            and result.source is not None
            and result.heatmap is not None
            and result.pixels is not None
        ):
            make_folder(folder)
            name = frame_name(Path(result.source).name, result.index, result.frames)
            scan = hash_of(frame_key(result.source, result.index, result.frames))
            target = target_file(folder, name, scan)
            atomic_write(target, draw(result.pixels, result.heatmap, result, score, scan=scan))
            yield replace(result, heatmap_file=os.fspath(target))
        else:
            yield result


def frame_key(source: str, index: int, frames: int) -> str:
    """Return the text that identifies one frame of all files: no path contains the null character."""
    path = os.path.abspath(source)
    return path if frames == 1 else f"{path}\0{index}"


def hash_of(key: str) -> str:
    """Return the hash of a text that may contain any path."""
    return hashlib.sha256(os.fsencode(key)).hexdigest()


def target_file(folder: Path, name: str, scan: str) -> Path:
    """Return the path for a picture about a scan, which may replace an older one of this scan, but no other file."""
    hashed = folder / f"{hashed_name(name, scan)}.png"
    if is_too_long(name):
        return hashed
    plain = folder / f"{name}.png"
    return plain if _scan_of(plain) in (None, scan) else hashed


def _scan_of(picture: Path) -> str | None:
    """Return the hash of the scan in a heatmap; None if there is no file, empty if it is not one of our heatmaps."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            return str(opened.info.get(SCAN_KEY, ""))
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 (any unreadable file is not one of our heatmaps)
        return ""
