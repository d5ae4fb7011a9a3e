"""The picture that says why: a scan with its class activation laid over it, and what it is worth in words."""

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

from mri_edge.errors import UsageError, printable
from mri_edge.scans.preprocessing import Pixels
from mri_edge.storage.atomic import atomic_write, make_folder
from mri_edge.storage.names import hashed_name, is_too_long

from .classifier import Classifier
from .prediction import NOTICE, Failure, Prediction

# Nine anchors of matplotlib's "inferno" (CC0, S. van der Walt and N. Smith): dark to bright in even
# steps of lightness, so that it reads on a grey scan and in print.
_ANCHORS = np.array(
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
_SHORT_SIDE = 384  # pixels; smaller scans are enlarged, so that the words can be read
_LONG_SIDE = 4096  # but not beyond this: a picture of 2 x 20,000 would become one of 4 GB
_SCAN = "mri-edge scan"  # keyword of the text in a PNG that says whose picture it is
_STRENGTH = 0.6  # opacity where the activation is largest


def draw_each(
    results: Iterable[Prediction | Failure], classifier: Classifier, folder: Path
) -> Iterator[Prediction | Failure]:
    """Pass results on, and write an overlay into ``folder`` for each before it goes; its path goes with the result.

    ``scans/a.jpg`` becomes ``folder/a.jpg.png``; where that picture is another scan's, ``folder/a.HASH.jpg.png`` by the
    scan's absolute path. So two scans never share a picture, in this run or another. The results must have kept their
    pixels.

    Raises
    ------
    UsageError
        The artefact gives no activation.
    OutputError
        The folder cannot be written.
    """
    require_activation(classifier)
    return _drawn(results, folder)


def require_activation(classifier: Classifier) -> None:
    """Raise UsageError if the artefact gives no activation to draw."""
    if all(one.name != "activation" for one in classifier.engine.outputs):
        others = ", ".join(one.file for one in classifier.bundle.manifest.artefacts if one.format == "onnx")
        raise UsageError(
            f"{classifier.artefact.file}: gives no class activation, so there is no heatmap",
            f"Choose another --artefact: {others or 'none in this bundle has one'}",
        )


def _drawn(results: Iterable[Prediction | Failure], folder: Path) -> Iterator[Prediction | Failure]:
    for result in results:
        if (
            isinstance(result, Prediction)
            and result.file is not None
            and result.activation is not None
            and result.pixels is not None
        ):
            make_folder(folder)
            scan = hashlib.sha256(os.fsencode(os.path.abspath(result.file))).hexdigest()
            target = _target(folder, Path(result.file).name, scan)
            atomic_write(target, overlay(result.pixels, result.activation, result, scan=scan))
            yield replace(result, heatmap=os.fspath(target))
        else:
            yield result


def _target(folder: Path, name: str, scan: str) -> Path:
    """Where the picture of a scan goes: beside those of others, over its own older one."""
    hashed = folder / f"{hashed_name(name, scan)}.png"
    if is_too_long(name):
        return hashed
    plain = folder / f"{name}.png"
    return plain if _scan_of(plain) in (None, scan) else hashed


def _scan_of(picture: Path) -> str | None:
    """The hash of the scan that a picture is of; None if there is no such file, empty if it is none of ours."""
    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            return str(opened.info.get(_SCAN, ""))
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 (whatever lies there: it is not ours)
        return ""


def overlay(
    pixels: Pixels, activation: NDArray[np.float32], prediction: Prediction, *, scan: str | None = None
) -> bytes:
    """Draw a PNG.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3) RGB, the scan as it was decoded.
    activation
        float32 (h, w), at least 0, any scale: Grad-CAM of the positive label on the last feature map.
    prediction
        Label, probability and model stand below the picture, with the notice that it is for research.
    scan
        What tells this scan from others; kept in the file as text.

    Returns
    -------
    The bytes of a PNG file.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = max(1.0, min(_SHORT_SIDE / min(picture.size), _LONG_SIDE / max(picture.size)))
    size = (round(picture.width * factor), round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    peak = float(activation.max())
    share = Image.fromarray((activation / peak * 255 if peak > 0 else activation).astype(np.uint8))
    share = share.resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(_colours()[np.asarray(share)])
    picture.paste(heat, mask=share.point([round(level * _STRENGTH) for level in range(256)]))
    return _with_caption(picture, prediction, scan)


def _colours() -> Pixels:
    steps = np.linspace(0, len(_ANCHORS) - 1, 256)
    channels = [np.interp(steps, np.arange(len(_ANCHORS)), _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def _with_caption(picture: Image.Image, prediction: Prediction, scan: str | None) -> bytes:
    lines = (
        f"{prediction.label}   p({prediction.positive}) = {prediction.probability:.3f}",
        f"{prediction.model}   {prediction.artefact}",
        NOTICE,
    )
    font = ImageFont.load_default(size=14)
    wide = max(picture.width, *(round(font.getlength(line)) + 16 for line in lines))
    page = Image.new("RGB", (wide, picture.height + 20 * len(lines) + 12), "white")
    page.paste(picture, ((wide - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((8, picture.height + 6 + 20 * number), printable(line), fill="black", font=font)
    file = io.BytesIO()
    about = PngInfo()
    if scan is not None:
        about.add_text(_SCAN, scan)
    page.save(file, "PNG", pnginfo=about)
    return file.getvalue()
