"""Draw heatmaps: the scan, overlaid with its class activation, above a caption with the answer."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mri_edge.errors import printable
from mri_edge.scans.frame import Pixels
from mri_edge.storage.atomic import atomic_write, make_folder

from .prediction import NOTICE, Failure, Prediction, displayed_label, frame_name, hashed_name, is_too_long

# Nine colors of matplotlib's "inferno" (CC0, S. van der Walt and N. Smith). Its lightness rises evenly, so that it can
# be read on a gray scan and in print.
_COLORS = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    np.float32,
)
_SHORT_SIDE = 384  # pixels; smaller scans are enlarged, so that the caption fits
_LONG_SIDE = 4096  # pixels; limit of that enlargement: otherwise a picture of 2 x 20,000 would take 4 GB
_SCAN = "mri-edge scan"  # keyword of the text in the PNG that identifies the scan
_OPACITY = 0.6  # opacity where the activation is largest


def draw_each(results: Iterable[Prediction | Failure], folder: Path) -> Iterator[Prediction | Failure]:
    """Write a heatmap into ``folder`` for each result, and yield the result with its path.

    ``scans/a.jpg`` gets ``folder/a.jpg.png``. If another scan has that picture already, it gets
    ``folder/a.HASH.jpg.png``, with a hash of its absolute path, so that no two scans ever share a picture, even in
    different runs. Frame 3 of a scan with several is named ``a.nii-3``. The predictions must have kept their pixels.

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
            path = frame_name(os.path.abspath(result.source), result.index, result.frames)
            scan = hashlib.sha256(os.fsencode(path)).hexdigest()
            target = _target(folder, name, scan)
            atomic_write(target, overlay(result.pixels, result.heatmap, result, scan=scan))
            yield replace(result, heatmap_file=os.fspath(target))
        else:
            yield result


def _target(folder: Path, name: str, scan: str) -> Path:
    """Return the path for a scan's heatmap, which may replace an older one of this scan, but no other file."""
    hashed = folder / f"{hashed_name(name, scan)}.png"
    if is_too_long(name):
        return hashed
    plain = folder / f"{name}.png"
    return plain if _scan_of(plain) in (None, scan) else hashed


def _scan_of(picture: Path) -> str | None:
    """Return the hash of the scan in a heatmap; None if there is no file, empty if it is not one of our heatmaps."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            return str(opened.info.get(_SCAN, ""))
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 (any unreadable file is not one of our heatmaps)
        return ""


def overlay(
    pixels: Pixels, activation: NDArray[np.float32], prediction: Prediction, *, scan: str | None = None
) -> bytes:
    """Draw a PNG.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3) RGB, the decoded frame.
    activation
        float32 (h, w), at least 0: ``prediction.heatmap``.
    prediction
        Its label, probability, explained label and model are written below the picture, with the notice about research
        use.
    scan
        A hash that identifies the scan; stored in the file as text.

    Returns
    -------
    The bytes of a PNG file.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = max(1.0, min(_SHORT_SIDE / min(picture.size), _LONG_SIDE / max(picture.size)))
    size = (round(picture.width * factor), round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    peak = float(activation.max())
    strength = Image.fromarray((activation / peak * 255 if peak > 0 else activation).astype(np.uint8))
    strength = strength.resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(_color_table()[np.asarray(strength)])
    picture.paste(heat, mask=strength.point([round(level * _OPACITY) for level in range(256)]))
    return _with_caption(picture, prediction, scan)


def _color_table() -> Pixels:
    steps = np.linspace(0, len(_COLORS) - 1, 256)
    channels = [np.interp(steps, np.arange(len(_COLORS)), _COLORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def _with_caption(picture: Image.Image, prediction: Prediction, scan: str | None) -> bytes:
    shown = displayed_label(prediction.label, prediction.positive, prediction.probabilities)
    explained = f"   heatmap: evidence for {prediction.explained}" if prediction.explained else ""
    lines = (
        f"{prediction.label}   p({shown}) = {prediction.probabilities[shown]:.3f}{explained}",
        f"{prediction.model}   {prediction.artifact}",
        NOTICE,
    )
    font = ImageFont.load_default(size=14)
    width = max(picture.width, *(round(font.getlength(line)) + 16 for line in lines))
    page = Image.new("RGB", (width, picture.height + 20 * len(lines) + 12), "white")
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((8, picture.height + 6 + 20 * number), printable(line), fill="black", font=font)
    file = io.BytesIO()
    metadata = PngInfo()
    if scan is not None:
        metadata.add_text(_SCAN, scan)
    page.save(file, "PNG", pnginfo=metadata)
    return file.getvalue()
