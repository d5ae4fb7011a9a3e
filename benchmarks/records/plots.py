"""Draw plots from the committed records: latency and size against accuracy, and cold starts and rates as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

# Beginnings of titles, their color, and their name in the legend.
KINDS = {
    ("mri-edge",): ("#1f77b4", "mri-edge"),
    ("keras", "tf.", "Keras"): ("#d62728", "Keras, tf.function"),
    ("Olive",): ("#2ca02c", "Olive"),
    ("",): ("#7f7f7f", "other peers"),
}
MARKERS = "oD^sv"

mpl.rcParams |= {"svg.hashsalt": "mri-edge", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw_all(folder: Path, wanted: Sequence[str], compared: dict[str, Any], started: dict[str, Any]) -> None:
    """Draw the ``wanted`` plots (``latency``, ``size``, ``cold_start``) as SVG in ``folder``, and remove the others.

    The same records give the same bytes.
    """
    rows = [row for row in compared["rows"].values() if "model" in row and "accuracy" in row]
    files = {(row["bundle"], row["size_bytes"]): row for row in reversed(rows)}  # one point for each file
    drawings = {
        "latency": lambda: _against_accuracy(rows, "ms for one image, model only (log)", legend=True),
        "size": lambda: _against_accuracy(list(files.values()), "MB on disk (log)", legend=False),
        "cold_start": lambda: _cold_starts(started),
    }
    for name, draw in drawings.items():
        target = folder / f"{name}.svg"
        target.unlink(missing_ok=True)
        if name in wanted:
            _save(draw(), target)


def draw_rates(target: Path, rows: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Draw scans a second as bars: model, title and row of each subject."""
    names = [f"{model}, {title}" for model, title, _ in rows]
    values = [row["scans_per_s"]["value"] for *_, row in rows]
    colors = [_kind(title)[0] for _, title, _ in rows]
    _save(_bars(names, values, colors, "{:,.0f}", "scans a second, from file to answer (log)"), target)


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def _kind(title: str) -> tuple[str, str]:
    return next(kind for starts, kind in KINDS.items() if title.startswith(starts))


def _against_accuracy(rows: list[dict[str, Any]], label: str, *, legend: bool) -> Figure:
    """Draw the latency, or the size of the file, against the accuracy; ``legend`` explains the colors of the peers."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    models = sorted({row["bundle"] for row in rows})
    handles: dict[str, dict[str, Any]] = {"colors": {}, "shapes": {}}
    for row in sorted(rows, key=lambda row: row["title"].startswith("mri-edge")):  # ours last, on top of the others
        interval, (color, name) = row["accuracy"], _kind(row["title"])
        x, y = row["model"]["median"]["value"] if label.startswith("ms") else row["size_bytes"] / 1e6, interval["value"]
        axes.errorbar(x, y, [[y - interval["low"]], [interval["high"] - y]], color=color, fmt="none", alpha=0.25, lw=1)
        marker = MARKERS[models.index(row["bundle"]) % len(MARKERS)]
        axes.plot(x, y, marker, color=color, ms=6, alpha=0.8)
        if legend:
            handles["colors"][name] = Line2D([], [], color=color, marker="s", ls="", label=name)
        shape = Line2D([], [], color="black", marker=marker, ls="", label=f"model {row['bundle']}")
        handles["shapes"][row["bundle"]] = shape
    axes.set(xscale="log", xlabel=label, ylabel="accuracy on the test images, 95% interval")
    axes.grid(alpha=0.2)
    _use_plain_numbers(axes)
    entries = [handle for group in handles.values() for handle in group.values()]
    figure.legend(handles=entries, frameon=False, fontsize=8, loc="outside upper center", ncols=6)
    return figure


def _cold_starts(started: dict[str, Any]) -> Figure:
    rows = sorted(started["rows"].items(), key=lambda item: item[1]["seconds"]["value"])
    label = f"{'CPU seconds' if started['busy'] else 'seconds'}, whole process (log)"
    values, colors = [row["seconds"]["value"] for _, row in rows], [_kind(name)[0] for name, _ in rows]
    return _bars([name for name, _ in rows], values, colors, "{:.2f} s", label)


def _bars(names: list[str], values: list[float], colors: list[str], number: str, label: str) -> Figure:
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(names) + 0.9), layout="constrained")
    axes.bar_label(axes.barh(names, values, color=colors), [number.format(value) for value in values], padding=4)
    axes.set(xscale="log", xlabel=label, xlim=(min(values) / 2, max(values) * 3))
    axes.invert_yaxis()
    _use_plain_numbers(axes)
    return figure


def _use_plain_numbers(axes: Any) -> None:
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
