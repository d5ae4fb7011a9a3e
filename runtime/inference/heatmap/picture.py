"""Draw a heatmap as one PNG: the scan, beside it the same scan with the map in color, a color scale, and a caption."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo

from mri_edge.bundles.manifest import Metric
from mri_edge.inference.prediction import Prediction
from mri_edge.scans.frame import Pixels

from .caption import FONT_SIZE, MARGIN, arrange, caption, font_of, least_drawn, scale_title, shorten, write

SCAN_KEY = "mri-edge scan"  # keyword of the text in the PNG that identifies the scan

# Five of matplotlib's "plasma" colors (CC0, S. van der Walt and N. Smith), from purple to yellow. Their lightness rises
# evenly. The dark blue end is left out, because it would be hard to see on dark tissue.
_COLORS = np.array([(156, 23, 158), (204, 71, 120), (237, 121, 83), (253, 180, 47), (240, 249, 33)], np.float32)
_OPACITY = 0.5  # of the color in a hot spot, so that the anatomy below it stays visible
_SHORT_SIDE = 384  # pixels; a panel is at least this wide and high, so that the caption fits
_LONG_SIDE = 1024  # pixels; a panel is at most this wide and high
_BACKDROP = (225, 225, 225)  # around a scan that is narrower than its panel
_BAR_HEIGHT = 18  # pixels of the color scale
_TICK = 5  # pixels; length of a tick
_MAX_TICKS = 5  # round values on the color scale, besides its two ends
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # log-odds between two round values on the color scale
_LARGE_PAGE = 1000  # pixels; text grows with pages that are wider than this
_MAX_GROWTH = 1.6


def draw(
    pixels: Pixels,
    heatmap: NDArray[np.float32],
    prediction: Prediction,
    score: Metric | None,
    *,
    scan: str | None = None,
) -> bytes:
    """Draw the heatmap of a prediction as ``draw_page`` does, and return the bytes of a PNG file.

    ``scan`` is a hash that identifies the scan; it is stored in the file as text.
    """
    return png_file(draw_page(pixels, heatmap, prediction, score), scan)


def draw_page(
    pixels: Pixels, heatmap: NDArray[np.float32], prediction: Prediction, score: Metric | None
) -> Image.Image:
    """Draw the heatmap of a prediction: an RGB picture of two panels, which have sides from 384 to 1024 pixels.

    Regions of the map below ``least_drawn`` are transparent. From there to the maximum of the map, the color follows
    the scale below the picture.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3) RGB, the decoded frame.
    heatmap
        float32 (h, w), at least 0: the change in log-odds, of any resolution, for the same section as ``pixels``.
    prediction
        Its label, probabilities, explained label, file and model are written into the caption.
    score
        How often the peak lies in a drawn lesion, for the artifact that made the map, or None if that was not measured;
        see ``required_score``. The caption contains it.
    """
    maximum = float(heatmap.max())
    picture = _resized(pixels)
    least = least_drawn(maximum, prediction.hot_spot)
    is_drawn = maximum >= prediction.hot_spot
    overlay = _overlay(picture, heatmap, least) if is_drawn else picture
    width, height = (max(side, _SHORT_SIDE) for side in picture.size)
    page_width = 2 * width + 3 * MARGIN
    growth = min(_MAX_GROWTH, max(1.0, page_width / _LARGE_PAGE))
    rows = arrange(caption(prediction, maximum, score), page_width - 2 * MARGIN - 1, growth)
    title = scale_title(prediction)
    scale = _scale(title, least, maximum, width, growth) if is_drawn else Image.new("RGB", (width, 0))
    below = height + 2 * MARGIN
    page = Image.new("RGB", (page_width, below + scale.height + sum(row.height for row in rows) + MARGIN), "white")
    for panel, left in ((picture, MARGIN), (overlay, width + 2 * MARGIN)):
        page.paste(_BACKDROP, (left, MARGIN, left + width, MARGIN + height))
        page.paste(panel, (left + (width - panel.width) // 2, MARGIN + (height - panel.height) // 2))
    page.paste(scale, (width + 2 * MARGIN, below))
    write(page, rows, below + scale.height)
    return page


def _resized(pixels: Pixels) -> Image.Image:
    """Return the scan, as large as it is drawn. A very long and narrow scan stays narrower than its panel."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = min(max(1.0, _SHORT_SIDE / min(picture.size)), _LONG_SIDE / max(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _overlay(picture: Image.Image, heatmap: NDArray[np.float32], least: float) -> Image.Image:
    """Return the picture with its hot spots in color, and with their outlines."""
    layer = color_layer(picture.size, heatmap, least)
    overlay = picture.copy()
    overlay.paste(layer, mask=layer)
    return overlay


def color_layer(size: tuple[int, int], heatmap: NDArray[np.float32], least: float) -> Image.Image:
    """Return the hot spots of a map in color and their outlines, RGBA, to be laid over a scan of this width and height.

    Regions below ``least`` are transparent, hot spots have half of the opacity, outlines all of it.
    """
    drops = np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR))
    maximum = float(heatmap.max())
    hot = Image.fromarray(np.where(drops >= least, np.uint8(255), np.uint8(0)))
    layer = Image.fromarray(_colors((drops - least) / max(maximum - least, 1e-6)))
    opacity = hot.point([round(level * _OPACITY) for level in range(256)])
    thickness = 1 + max(size) // (2 * _SHORT_SIDE)
    inside = hot.filter(ImageFilter.MinFilter(2 * thickness + 1))
    opacity.paste(255, mask=ImageChops.subtract(hot, inside))
    layer.putalpha(opacity)
    return layer


def _colors(levels: NDArray[np.floating]) -> Pixels:
    """Return the RGB colors of levels from 0 (at ``least_drawn``) to 1 (at the maximum of the map), uint8 (..., 3)."""
    steps = np.linspace(0, 1, len(_COLORS))
    channels = [np.interp(levels, steps, _COLORS[:, channel]) for channel in range(3)]
    colors: Pixels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colors


def _scale(title: str, least: float, maximum: float, width: int, growth: float) -> Image.Image:
    """Return the color scale from ``least_drawn`` to the maximum of the map, with ticks and its title."""
    font, line = font_of(growth), round(FONT_SIZE * 1.4 * growth)
    page = Image.new("RGB", (width, _BAR_HEIGHT + _TICK + 2 * line + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    levels = np.linspace(0, 1, width, dtype=np.float32)
    page.paste(Image.fromarray(np.tile(_colors(levels), (_BAR_HEIGHT, 1, 1))), (0, 0))
    free_from = 0.0
    for text, position, is_round in _ticks(least, maximum):
        x = round(position * (width - 1))
        length = font.getlength(text)
        left = min(max(0.0, x - length / 2), width - length)
        last = width - font.getlength(_maximum(maximum)) - MARGIN
        if is_round and (left < free_from or left + length > last):
            continue  # it would touch a neighbor
        pen.line((x, _BAR_HEIGHT, x, _BAR_HEIGHT + _TICK), fill="black")
        pen.text((left, _BAR_HEIGHT + _TICK), text, fill="black", font=font)
        free_from = left + length + MARGIN
    pen.text((0, _BAR_HEIGHT + _TICK + line), shorten(title, font, width), fill="black", font=font)
    return page


def _ticks(least: float, maximum: float) -> list[tuple[str, float, bool]]:
    """Return text, position in [0, 1], and whether it is a round value between the ends, for each tick of the scale."""
    span = max(maximum - least, 1e-6)
    step = next((step for step in _STEPS if span / step <= _MAX_TICKS), maximum)  # larger maps get no round values
    first = math.floor(least / step) + 1
    values = [number * step for number in range(first, math.ceil(maximum / step))]
    between = [(f"{value:g}", (value - least) / span, True) for value in values]
    return [(f"{least:g}", 0.0, False), *between, (_maximum(maximum), 1.0, False)]


def _maximum(maximum: float) -> str:
    return f"maximum {maximum:.1f}"


def png_file(page: Image.Image, scan: str | None) -> bytes:
    """Return the bytes of a PNG file, with the hash that identifies the scan as text."""
    file = io.BytesIO()
    metadata = PngInfo()
    if scan is not None:
        metadata.add_text(SCAN_KEY, scan)
    page.save(file, "PNG", pnginfo=metadata)
    return file.getvalue()
