"""Compose the text of a heatmap picture and arrange it in rows that fit the page, however long the names in it are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mri_edge.bundles.manifest import Metric
from mri_edge.errors import printable
from mri_edge.inference.prediction import NOTICE, Prediction, displayed_label

MARGIN = 12  # pixels around panels and text
FONT_SIZE = 14  # pixels, of a small page
_HEADING_SIZE = 20
_LINE_HEIGHT = 1.45  # of the font size
_GAP = "     "  # between the parts of a row
_MAX_LABEL = 28  # characters of a label
_MAX_NAME = 60  # characters of a file name, a model or an artifact
_CUT = "..."

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Row:
    """One row of text, its font, and its height in pixels."""

    text: str
    font: Font
    height: int


def font_of(growth: float, size: int = FONT_SIZE) -> Font:
    """Return Pillow's built-in font, ``growth`` times larger than ``size`` pixels."""
    return ImageFont.load_default(size=round(size * growth))


def caption(prediction: Prediction, maximum: float, score: Metric | None) -> list[list[str]]:
    """Return the parts of each line of the caption. ``maximum`` is that of the map. The first line is the heading."""
    label, model = printable_label(prediction.label), printable_name(prediction.model)
    shown = displayed_label(prediction.label, prediction.positive, prediction.probabilities)
    heading = [label, f"p({printable_label(shown)}) = {prediction.probabilities[shown]:.3f}"]
    if prediction.threshold is not None and prediction.positive is not None:
        of = "" if shown == prediction.positive else f" of {printable_label(prediction.positive)}"
        heading.append(f"threshold{of} {prediction.threshold:.3f}")
    lines = [heading, _finding(prediction, maximum)]
    if prediction.source is not None:
        file = [f"file: {printable_name(Path(prediction.source).name)}"]
        if prediction.frames > 1:
            file.append(f"frame index {prediction.index} ({prediction.frames} frames)")
        lines.append(file)
    artifact = f"artifact: {printable_name(prediction.artifact)} ({prediction.model_hash})"
    return [*lines, [f"model: {model}", artifact], [f"heatmaps of this artifact: {_quality(score)}"], [NOTICE]]


def least_drawn(maximum: float, hot_spot: float) -> float:
    """Return the least value of a map that is drawn: around a strong hot spot, weak ones would only hide the scan."""
    return max(hot_spot, round(maximum / 4, 1))


def scale_title(prediction: Prediction) -> str:
    """Return what the color scale shows, with its unit."""
    return f"change in log-odds of {printable_label(prediction.explained)}"


def _finding(prediction: Prediction, maximum: float) -> list[str]:
    """Return what the map is about and how large its largest value is."""
    least = least_drawn(maximum, prediction.hot_spot)
    change = f"the log-odds of {printable_label(prediction.explained)} by {least:g} or more"
    if maximum < prediction.hot_spot:
        return [f"heatmap: no region changes {change}"]
    return [f"heatmap: colored regions change {change}", f"maximum: {maximum:.1f}"]


def _quality(score: Metric | None) -> str:
    if score is None:
        return "not measured: mri-edge evaluate --heatmaps"
    return (
        f"peak in the lesion: {score.value:.2f} ({score.low:.2f} to {score.high:.2f}) of drawn lesions that it called"
    )


def printable_label(label: str | None) -> str:
    """Return a label that the built-in font can show, shortened."""
    return _cut(_ascii(label or ""), _MAX_LABEL)


def printable_name(name: str) -> str:
    """Return a name that the built-in font can show, shortened."""
    return _cut(_ascii(name), _MAX_NAME)


def _ascii(text: str) -> str:
    """Escape characters that the built-in font does not have, and control codes: ``\\u4e2d``."""
    return printable(text).encode("ascii", "backslashreplace").decode()


def _cut(text: str, size: int) -> str:
    """Return a text with at most ``size`` characters. The middle is left out, because names often differ at the end."""
    if len(text) <= size:
        return text
    end = (size - len(_CUT)) // 2
    return f"{text[: size - len(_CUT) - end]}{_CUT}{text[-end:]}"


def arrange(lines: list[list[str]], width: int, growth: float) -> list[Row]:
    """Return the rows of a caption. A part that does not fit beside the one before it begins a row of its own.

    Parameters
    ----------
    lines
        As from ``caption``.
    width
        Pixels of a row. A part that is wider loses characters in its middle.
    growth
        As for ``font_of``.
    """
    rows = []
    for number, parts in enumerate(lines):
        size = FONT_SIZE if number else _HEADING_SIZE
        font, height = font_of(growth, size), round(size * growth * _LINE_HEIGHT)
        text = ""
        for part in parts:
            joined = f"{text}{_GAP}{part}" if text else part
            if text and font.getlength(joined) > width:
                rows.append(Row(text, font, height))
                joined = part
            text = shorten(joined, font, width)
        rows.append(Row(text, font, height))
    return rows


def write(page: Image.Image, rows: Sequence[Row], top: int) -> int:
    """Write rows of text on a page, and return where they end."""
    pen = ImageDraw.Draw(page)
    for row in rows:
        pen.text((MARGIN, top), row.text, fill="black", font=row.font)
        top += row.height
    return top


def shorten(text: str, font: Font, width: float) -> str:
    """Return the text without so many characters in its middle that it fits into ``width`` pixels."""
    size = len(text)
    while size > len(_CUT) and font.getlength(_cut(text, size)) > width:
        size -= 1
    return _cut(text, size)
