"""Draw the probability along a series as one PNG: a point for each slice, the threshold, and the scored window."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from mri_edge.inference.prediction import NOTICE
from mri_edge.inference.series import SeriesPrediction, counts

from .caption import FONT_SIZE, MARGIN, arrange, font_of, printable_label, printable_name, write
from .picture import png_file

_WIDTH, _HEIGHT = 960, 300  # pixels of the plot with its axes
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 54  # pixels around the area of the points
_SMOOTH = 2  # the plot is drawn so many times larger and reduced, because Pillow draws hard edges
_MAX_TICKS = 12
_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

_POSITIVE, _NEGATIVE, _LINE = (200, 30, 30), (40, 90, 170), (120, 120, 120)
_WINDOW, _GRID, _THRESHOLD = (253, 236, 200), (228, 228, 228), (60, 60, 60)


def draw_curve(result: SeriesPrediction, *, scan: str | None = None) -> bytes:
    """Draw the probability of the positive label along a series.

    Slices with the positive label are red and square, others blue and round; those that do not count are hollow, and a
    slice without an answer is a cross on the axis. The band marks the window from which the score comes. The line
    breaks at gaps.

    Parameters
    ----------
    result
        The answer for a series with a score.
    scan
        A hash that identifies the series; stored in the file as text.

    Returns
    -------
    The bytes of a PNG file, RGB, 960 pixels wide.
    """
    rows = arrange(_caption(result), _WIDTH - 2 * MARGIN, 1.0)
    page = Image.new("RGB", (_WIDTH, _HEIGHT + sum(row.height for row in rows) + 2 * MARGIN), "white")
    top = write(page, rows[:1], MARGIN)
    plot = _plot(result).resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    page.paste(plot, (0, top))
    write(page, rows[1:], top + _HEIGHT)
    return png_file(page, scan)


def _caption(result: SeriesPrediction) -> list[list[str]]:
    series, rule = result.series, result.rule
    heading = [f"series: {printable_label(result.label)}", f"score {result.score:.3f}"]
    if result.threshold is not None:
        heading.append(f"threshold {result.threshold:.3f}")
    facts = [f"{len(series.slices)} slices", *([series.plane] if series.plane else [])]
    if series.distance is not None:
        facts.append(f"{series.distance:.2f} mm apart")
    if result.failed:
        facts.append(f"{result.failed} without an answer")
    score = (
        f"score: reached by half of the slices in the marked window (at least {rule.window_mm:g} mm and "
        f"{rule.least_slices} slices)"
    )
    ran = result.ran
    return [
        heading,
        [score, f"rule: {rule.calibration}"],
        [f"first file: {printable_name(Path(series.first.source).name)}", *facts],
        [f"model: {printable_name(ran.manifest.title)}", f"artifact: {printable_name(ran.artifact.file)}"],
        [NOTICE],
    ]


class _Axes:
    """Maps positions and probabilities to pixels of the enlarged plot."""

    def __init__(self, places: list[float]) -> None:
        self._low, self._high = places[0], places[-1]
        self.left, self.right = _LEFT * _SMOOTH, (_WIDTH - _RIGHT) * _SMOOTH
        self.top, self.bottom = _TOP * _SMOOTH, (_HEIGHT - _BOTTOM) * _SMOOTH
        self._inset = 10 * _SMOOTH  # between the frame and the first and last point

    def x(self, place: float) -> float:
        span = self._high - self._low
        width = self.right - self.left - 2 * self._inset
        return self.left + self._inset + ((place - self._low) / span * width if span else width / 2)

    def y(self, probability: float) -> float:
        return self.bottom - probability * (self.bottom - self.top)

    def ticks(self) -> list[float]:
        """Return round places along the horizontal axis."""
        span = self._high - self._low
        step = next((step for step in _STEPS if span / step <= _MAX_TICKS), _STEPS[-1])
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        return [float(number * step) for number in range(first, last + 1)]


def _plot(result: SeriesPrediction) -> Image.Image:
    positions = [position for position in result.series.positions if position is not None]
    in_mm = len(positions) == len(result.slices)
    places = positions if in_mm else [float(number) for number in range(len(result.slices))]
    axes = _Axes(places)
    image = Image.new("RGB", (_WIDTH * _SMOOTH, _HEIGHT * _SMOOTH), "white")
    pen = ImageDraw.Draw(image)
    if result.window is not None:
        half = 5 * _SMOOTH
        edges = axes.x(places[result.window[0]]) - half, axes.x(places[result.window[1]]) + half
        pen.rectangle((edges[0], axes.top, edges[1], axes.bottom), fill=_WINDOW)
    _draw_frame(pen, axes, _title(result, in_mm))
    if result.threshold is not None:
        _draw_threshold(pen, axes, result.threshold)
    _draw_line(pen, axes, places, result)
    _draw_points(pen, axes, places, result)
    return image


def _title(result: SeriesPrediction, in_mm: bool) -> str:
    shown = f"p({printable_label(result.ran.manifest.positive_label)})"
    ends = {"axial": "feet to head", "coronal": "front to back", "sagittal": "right to left"}
    direction = ends.get(result.series.plane or "")
    if not in_mm:
        return f"{shown} by slice, in the order of the files"
    return f"{shown} by position in mm" + (f", {direction}" if direction else "")


def _draw_frame(pen: ImageDraw.ImageDraw, axes: _Axes, title: str) -> None:
    font, gap = font_of(_SMOOTH), 5 * _SMOOTH
    for fifth in range(6):
        y = axes.y(fifth / 5)
        pen.line((axes.left, y, axes.right, y), fill=_GRID, width=_SMOOTH)
        pen.text((axes.left - gap, y), f"{fifth / 5:.1f}", fill="black", font=font, anchor="rm")
    for place in axes.ticks():
        x = axes.x(place)
        pen.line((x, axes.bottom, x, axes.bottom + gap), fill="black", width=_SMOOTH)
        pen.text((x, axes.bottom + 1.4 * gap), f"{place:g}", fill="black", font=font, anchor="mt")
    pen.rectangle((axes.left, axes.top, axes.right, axes.bottom), outline="black", width=_SMOOTH)
    middle = (axes.left + axes.right) / 2
    pen.text((middle, axes.bottom + (FONT_SIZE + 14) * _SMOOTH), title, fill="black", font=font, anchor="mt")


def _draw_threshold(pen: ImageDraw.ImageDraw, axes: _Axes, threshold: float) -> None:
    dash, y = 8 * _SMOOTH, axes.y(threshold)
    for left in range(axes.left, axes.right, 2 * dash):
        pen.line((left, y, min(left + dash, axes.right), y), fill=_THRESHOLD, width=_SMOOTH)


def _draw_line(pen: ImageDraw.ImageDraw, axes: _Axes, places: list[float], result: SeriesPrediction) -> None:
    distance = result.series.distance
    previous: tuple[float, float] | None = None
    for place, probability in zip(places, result.probabilities, strict=True):
        if probability is None:
            previous = None
            continue
        if previous is not None and (distance is None or place - previous[0] <= 1.5 * distance):
            ends = (axes.x(previous[0]), axes.y(previous[1]), axes.x(place), axes.y(probability))
            pen.line(ends, fill=_LINE, width=_SMOOTH)
        previous = place, probability


def _draw_points(pen: ImageDraw.ImageDraw, axes: _Axes, places: list[float], result: SeriesPrediction) -> None:
    radius = (4 if len(places) <= 60 else 2) * _SMOOTH
    positive = result.ran.manifest.positive_label
    for place, probability, piece in zip(places, result.probabilities, result.slices, strict=True):
        x = axes.x(place)
        if probability is None:
            y, size = float(axes.bottom), 4 * _SMOOTH
            pen.line((x - size, y - size, x + size, y + size), fill="black", width=_SMOOTH)
            pen.line((x - size, y + size, x + size, y - size), fill="black", width=_SMOOTH)
            continue
        y = axes.y(probability)
        box = (x - radius, y - radius, x + radius, y + radius)
        if not counts(piece):
            pen.ellipse(box, fill="white", outline=_LINE, width=_SMOOTH)
        elif piece.label == positive:
            pen.rectangle(box, fill=_POSITIVE)
        else:
            pen.ellipse(box, fill=_NEGATIVE)
