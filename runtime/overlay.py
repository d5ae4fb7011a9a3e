"""The picture that says why: a scan with its class activation laid over it, and what it is worth in words."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .classifier import Classifier
from .errors import OutputError, UsageError
from .files import write_whole
from .prediction import NOTICE, Failure, Prediction
from .preprocess import Pixels

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
_STRENGTH = 0.6  # opacity where the activation is largest


def draw_each(
    results: Iterable[Prediction | Failure], classifier: Classifier, folder: Path
) -> Iterator[Prediction | Failure]:
    """Pass results on, and write an overlay below ``folder`` for each before it goes.

    ``scans/a.jpg`` becomes ``folder/scans/a.jpg.png``, ``../a.jpg`` ``folder/_up/a.jpg.png`` and ``/a.jpg``
    ``folder/_root/a.jpg.png``: two scans never share a picture. The results must have kept their pixels.

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
            target = folder / _inside(Path(result.file))
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{target.parent}: cannot make this folder ({error.strerror})") from error
            write_whole(target, overlay(result.pixels, result.activation, result))
            yield replace(result, heatmap=os.fspath(target))
            continue
        yield result


def _inside(scan: Path) -> Path:
    """The picture's place below its folder; a folder really called ``_up…`` or ``_root…`` gets one more ``_``."""
    *above, name = scan.parts
    root = f"_root{''.join(filter(str.isalnum, scan.anchor))}"  # with the drive's letter on Windows
    plain = [
        {"..": "_up", scan.anchor: root}.get(part) or (f"_{part}" if re.match("_+(up|root)", part) else part)
        for part in above
    ]
    return Path(*plain, f"{name}.png")


def overlay(pixels: Pixels, activation: NDArray[np.float32], prediction: Prediction) -> bytes:
    """Draw a PNG.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3) RGB, the scan as it was decoded.
    activation
        float32 (h, w), at least 0, any scale: Grad-CAM of the positive label on the last feature map.
    prediction
        Label, probability and model stand below the picture, with the notice that it is for research.

    Returns
    -------
    The bytes of a PNG file.
    """
    scan = Image.fromarray(np.ascontiguousarray(pixels))
    factor = max(1.0, min(_SHORT_SIDE / min(scan.size), _LONG_SIDE / max(scan.size)))
    size = (round(scan.width * factor), round(scan.height * factor))
    scan = scan.resize(size, Image.Resampling.BICUBIC)
    peak = float(activation.max())
    share = Image.fromarray((activation / peak * 255 if peak > 0 else activation).astype(np.uint8))
    share = share.resize(size, Image.Resampling.BICUBIC)
    heat = Image.fromarray(_colours()[np.asarray(share)])
    scan.paste(heat, mask=share.point([round(level * _STRENGTH) for level in range(256)]))
    return _with_caption(scan, prediction)


def _colours() -> Pixels:
    steps = np.linspace(0, len(_ANCHORS) - 1, 256)
    channels = [np.interp(steps, np.arange(len(_ANCHORS)), _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def _with_caption(scan: Image.Image, prediction: Prediction) -> bytes:
    lines = (
        f"{prediction.label}   p({prediction.positive}) = {prediction.probability:.3f}",
        f"{prediction.model}   {prediction.artefact}",
        NOTICE,
    )
    font = ImageFont.load_default(size=14)
    wide = max(scan.width, *(round(font.getlength(line)) + 16 for line in lines))
    page = Image.new("RGB", (wide, scan.height + 20 * len(lines) + 12), "white")
    page.paste(scan, ((wide - scan.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((8, scan.height + 6 + 20 * number), line, fill="black", font=font)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
