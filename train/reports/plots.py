"""Draw the plots of the reports as SVG that is readable on a light and on a dark background.

A plot is transparent and takes its colors from the CSS variables of the page (``pages.PALETTE``), so one drawing serves
both backgrounds. ``Plot.file`` defines the same variables inside the SVG, for a file of its own.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mri_edge.authoring.pages import PALETTE
from mri_edge.errors import printable
from mri_edge.inference.prediction import NOTICE

from .tables import interval

COLORS = {name: light for name, (light, _) in PALETTE.items()}
_NAMES = {light: name for name, light in COLORS.items()}
_SERIES = ("blue", "orange", "green", "red", "purple", "teal", "brown", "pink")
_DASHES = ("-", "--", ":", "-.")
_SIZE = (3.9, 4.2)  # inches, of a square plot with a legend below
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "text.parse_math": False,  # a label may contain dollar signs
    "font.size": 10,
    "axes.titlesize": 10,
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["muted"],
    "axes.labelcolor": COLORS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "xtick.labelcolor": COLORS["ink"],
    "ytick.labelcolor": COLORS["ink"],
    "grid.color": COLORS["rule"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

_LONGEST, _AXIS = 28, 50  # characters of a label beside a plot, and of a text along one side of it

Metric = Mapping[str, Any]  # value, low and high, as in the records


@dataclass(frozen=True)
class Plot:
    """A plot as SVG markup for HTML, with a title and a caption that says what it shows."""

    title: str
    caption: str
    svg: str
    wide: bool = False

    def file(self) -> str:
        """Return the content of an SVG file, which chooses its colors by itself."""
        light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in PALETTE.items()) for index in (0, 1))
        style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
        begin, end, rest = self.svg.partition(">")
        begin = begin.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        return f"{begin}{end}\n{style}<desc>{escape(NOTICE)}</desc>{rest}"


@dataclass(frozen=True)
class RocCurve:
    """The ROC curve of one label against all others: points from ``metrics.roc``, and the AUC if it is known."""

    label: str
    points: Mapping[str, Sequence[Any]]
    auc: Metric | None = None

    def describe(self) -> str:
        """Return label and AUC with its interval."""
        return f"{self.label}: AUC {interval(self.auc)}" if self.auc else self.label


@dataclass(frozen=True)
class OperatingPoint:
    """A pair of sensitivity and specificity in a ROC plot. Published ones have no intervals."""

    label: str
    sensitivity: Metric
    specificity: Metric


def point_of_answers(
    metrics: Mapping[str, Metric], names: Sequence[str], positive: int | None, threshold: float | None
) -> OperatingPoint | None:
    """Return the point of a model's answers, or None without a positive label or with images of one kind only."""
    if positive is None or not {"sensitivity", "specificity"} <= metrics.keys():
        return None
    label = "its answers" if threshold is None else "at the threshold"
    of = f"{names[positive]}, " if len(names) > 2 else ""
    return OperatingPoint(f"{of}{label}, 95% intervals", metrics["sensitivity"], metrics["specificity"])


def roc_plot(
    curves: Sequence[RocCurve],
    chosen: OperatingPoint | None = None,
    published: Sequence[OperatingPoint] = (),
    note: str = "",
) -> Plot:
    """Draw ROC curves, the chosen point with its intervals, and published points; ``note`` ends the legend."""
    with rc_context(_STYLE):
        figure, axes = _unit_square("1 - specificity", "sensitivity", legend=len(curves) + len(published) + 2)
        for number, curve in enumerate(curves):
            axes.plot(
                curve.points["false_positive_rate"],
                curve.points["true_positive_rate"],
                linestyle=_DASHES[number // len(_SERIES) % len(_DASHES)],
                color=COLORS[_SERIES[number % len(_SERIES)]],
                linewidth=1.8,
                label=replace(curve, label=_short(curve.label)).describe(),
            )
        if chosen:
            x, y = _false_positive_rate(chosen.specificity), chosen.sensitivity
            axes.errorbar(
                x["value"],
                y["value"],
                xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
                yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
                fmt="o",
                color=COLORS["red"],
                capsize=3,
                label=_short(chosen.label, _AXIS),
            )
        for point, marker in zip(published, "D^sv", strict=False):
            axes.plot(
                1 - point.specificity["value"],
                point.sensitivity["value"],
                marker,
                color=COLORS["orange"],
                label=point.label,
            )
        if note:
            axes.plot([], [], " ", label=note)
        _legend_below(figure)
    against = "one label against all others" if len(curves) > 1 else f"{curves[0].label} against the rest"
    caption = f"Sensitivity over 1 - specificity at every threshold, {against}. The dashed line is chance."
    described = "; ".join([curve.describe() for curve in curves] + [point.label for point in published])
    return _plot(figure, "ROC curve" if len(curves) == 1 else "ROC curves", caption, described)


def reliability_plot(
    points: Sequence[Mapping[str, float]], scores: NDArray[np.floating[Any]], event: str, of: str
) -> Plot:
    """Draw the fraction of images with ``event`` over its probability, above a histogram of all ``scores``.

    ``points`` are those of ``metrics.reliability``; ``of`` names the probability.
    """
    with rc_context(_STYLE):
        figure, axes = _unit_square(_short(of, _AXIS), _short(f"fraction of images {event}", _AXIS), legend=1)
        shares = [point["share"] for point in points]
        axes.errorbar(
            [point["probability"] for point in points],
            shares,
            yerr=[
                [share - point["low"] for share, point in zip(shares, points, strict=True)],
                [point["high"] - share for share, point in zip(shares, points, strict=True)],
            ],
            fmt="o-",
            color=COLORS["blue"],
            capsize=3,
            label=f"{len(points)} bins of equal count, 95% intervals",
        )
        counts, edges = np.histogram(scores, bins=20, range=(0, 1))
        # The histogram takes the lower quarter of the plot.
        axes.stairs(counts / counts.max() / 4, edges, fill=True, color=COLORS["muted"], alpha=0.3)
        _legend_below(figure)
    caption = (
        f"Fraction of images {event} over the {of}. Calibrated probabilities lie on the dashed line. The bars show "
        "how often each probability occurs."
    )
    described = ", ".join(f"{point['probability']:.2f}: {point['share']:.2f}" for point in points)
    return _plot(figure, "Reliability diagram", caption, described)


def confusion_plot(panels: Sequence[tuple[str, Sequence[Sequence[int]]]], names: Sequence[str]) -> Plot:
    """Draw confusion matrices of counts, rows: truth, side by side; ``panels`` are their titles and counts."""
    labels, shown = len(names), [_short(name) for name in names]
    cell = 1.05 if labels <= 3 else 0.85 if labels <= 6 else 0.6
    longest = max(map(len, shown))
    width = (labels * cell + 0.9 + longest * 0.075) * len(panels)
    with rc_context(_STYLE):
        figure = Figure((width, labels * cell + 1.2 + (longest * 0.05 if labels > 3 else 0)))
        figure.set_layout_engine("constrained")
        for axes, (title, matrix) in zip(np.atleast_1d(figure.subplots(1, len(panels))).tolist(), panels, strict=True):
            _draw_matrix(axes, np.asarray(matrix), small=labels > 6)
            slant: dict[str, Any] = (
                {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if labels > 3 or longest > 12 else {}
            )
            axes.set_xticks(range(labels), shown, **slant)
            axes.set_yticks(range(labels), shown)
            axes.set(xlabel="called", ylabel="truth", title=title if len(panels) > 1 else "")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    described = "; ".join(
        f"{title}, {truth} called {called}: {panel[row][column]}"
        for title, panel in panels
        for row, truth in enumerate(names)
        for column, called in enumerate(names)
    )
    shades = "Shades" if labels > 6 else "Shades and percentages"
    caption = f"Images by true label (rows) and by the model's label (columns). {shades} are proportions of the row."
    return _plot(figure, "Confusion matrix", caption, described, wide=width > 8)


def curve_plot(
    title: str, caption: str, series: Sequence[tuple[str, Sequence[int], Sequence[float]]], note: str = ""
) -> Plot:
    """Draw quantities over the epochs: a name, epochs and values of each; ``note`` ends the legend."""
    with rc_context(_STYLE):
        figure = Figure((_SIZE[0], 3.2 + 0.2 * len(series)), layout="constrained")
        axes = figure.subplots()
        for (name, epochs, values), color, dash in zip(
            series, ("muted", "blue", "orange"), ("-", "-", "--"), strict=False
        ):
            axes.plot(epochs, values, linestyle=dash, marker=".", color=COLORS[color], label=name)
        if note:
            axes.plot([], [], " ", label=note)
        axes.set(xlabel="epoch", ylabel=title.lower())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
        _legend_below(figure)
    described = "; ".join(f"{name}, last epoch: {values[-1]:.3f}" for name, _, values in series)
    return _plot(figure, title, caption, described)


def removal_plot(
    title: str, caption: str, fractions: Sequence[float], curves: Sequence[tuple[str, Sequence[float]]]
) -> Plot:
    """Draw the probability over the proportion of the head that was removed or restored, a curve for each map."""
    with rc_context(_STYLE):
        figure = Figure((_SIZE[0], 3.2 + 0.2 * len(curves)), layout="constrained")
        axes = figure.subplots()
        for (name, heights), color, dash in zip(curves, _SERIES, ("-", "--", ":"), strict=False):
            axes.plot(fractions, heights, linestyle=dash, marker=".", color=COLORS[color], label=name)
        axes.set(xlabel="proportion of the head", ylabel="mean probability", ylim=(-0.02, 1.02))
        axes.grid()
        _legend_below(figure)
    described = "; ".join(
        f"{name}: " + ", ".join(f"{height:.2f} at {at:g}" for at, height in zip(fractions, heights, strict=True))
        for name, heights in curves
    )
    return _plot(figure, title, caption, described)


def layers_plot(head: str, columns: Sequence[tuple[str, Sequence[str]]], caption: str) -> Plot:
    """Draw a box for each layer from input to output, in columns, each with a title and the texts of its boxes."""
    longest = max(len(texts) for _, texts in columns)
    with rc_context(_STYLE):
        figure = Figure((3.5 * len(columns), 0.62 * longest + 1.1), layout="constrained")
        axes = figure.subplots()
        axes.set(xlim=(0, len(columns)), ylim=(-longest - 0.6, 0.9))
        axes.axis("off")
        axes.text(0.5, 0.55, head, ha="center", va="center", weight="bold")
        arrow: dict[str, Any] = {"arrowstyle": "->", "color": COLORS["muted"]}
        for column, (title, texts) in enumerate(columns):
            color = COLORS["orange" if column == len(columns) - 1 else "blue"]
            for row, text in enumerate(texts):
                box: dict[str, Any] = {"boxstyle": "round,pad=0.4", "facecolor": COLORS["tint"], "edgecolor": color}
                axes.text(column + 0.5, -row - 0.4, text, ha="center", va="center", fontsize=8.5, bbox=box)
                if row or not column:
                    axes.annotate("", (column + 0.5, -row - 0.1), (column + 0.5, -row + 0.3), arrowprops=arrow)
            if column < len(columns) - 1:
                axes.annotate("", (column + 1.09, -0.4), (column + 0.91, -len(texts) + 0.6), arrowprops=arrow)
            axes.text(column + 0.5, -longest - 0.35, title, ha="center", color=COLORS["muted"])
    described = ", ".join(text.split("\n")[0] for _, texts in columns for text in texts)
    return _plot(figure, "Layers", caption, described, wide=True)


def _short(text: str, most: int = _LONGEST) -> str:
    """Return a printable text without its middle if it is long: names of one origin often differ only at their ends."""
    text = printable(text)
    tail = most // 3
    return text if len(text) <= most else f"{text[: most - tail - 1]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"


def _draw_matrix(axes: Any, counts: NDArray[np.int_], *, small: bool) -> None:
    of_row = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    for (row, column), count in np.ndenumerate(counts):
        # The strongest shade still leaves a contrast of 4.5 to the text, on both backgrounds.
        shade: dict[str, Any] = {"facecolor": COLORS["blue"], "alpha": 0.04 + 0.36 * float(of_row[row, column])}
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, **shade))
        axes.text(
            column, row - (0 if small else 0.08), str(count), ha="center", va="center", fontsize=9 if small else 13
        )
        if not small:
            axes.text(column, row + 0.25, f"{of_row[row, column]:.0%}", ha="center", va="center", fontsize=8.5)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    for edge in np.arange(size + 1) - 0.5:
        axes.axhline(edge, color=COLORS["rule"], linewidth=0.8)
        axes.axvline(edge, color=COLORS["rule"], linewidth=0.8)


def _false_positive_rate(specificity: Metric) -> dict[str, float]:
    return {"value": 1 - specificity["value"], "low": 1 - specificity["high"], "high": 1 - specificity["low"]}


def _unit_square(right: str, up: str, legend: int) -> tuple[Figure, Any]:
    """Return a figure with a square plot from 0 to 1 and its diagonal, with space for ``legend`` lines below."""
    figure = Figure((_SIZE[0], _SIZE[1] + 0.19 * (legend - 1)), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=right, ylabel=up, box_aspect=1)
    axes.plot([0, 1], [0, 1], color=COLORS["muted"], linewidth=0.8, linestyle="--")
    axes.grid()
    return figure, axes


def _legend_below(figure: Figure) -> None:
    figure.legend(loc="outside lower left")


def _plot(figure: Figure, title: str, caption: str, described: str, *, wide: bool = False) -> Plot:
    """Return the figure as a plot; ``described`` adds its values to the text for screen readers."""
    file = io.StringIO()
    # With a fixed salt and no metadata the same figure gives the same markup, with other identifiers in each plot.
    with rc_context(_STYLE | {"svg.hashsalt": f"mri-edge {title}"}), warnings.catch_warnings():
        # Matplotlib's font lacks many scripts, but the page shows the text in fonts of the reader.
        warnings.filterwarnings("ignore", "Glyph .* missing|Matplotlib currently does not support")
        figure.savefig(
            file, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.04, metadata={"Date": None}
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names of parts, which would not be unique in a page
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), svg)
    described = escape(printable(f"{title}. {caption} {described}."))
    attributes = f'<svg role="img" aria-label="{described}" style="stroke-linejoin: round"'
    return Plot(title, caption, re.sub(r"\n\s*\n+", "\n", svg.replace("<svg", attributes, 1)), wide)


def _variable(color: str) -> str:
    return f"var(--{_NAMES[color]}, {color})" if color in _NAMES else color
