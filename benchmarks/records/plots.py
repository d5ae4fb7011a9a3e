"""The plots, drawn from the committed records: latency and size against accuracy, cold start bars."""

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

# Title starts -> colour, and what the legend says of it.
KINDS = {
    "mri-edge": ("#1f77b4", "mri-edge"),
    "keras": ("#d62728", "Keras, tf.function"),
    "tf.": ("#d62728", "Keras, tf.function"),
    "Keras": ("#d62728", "Keras, tf.function"),
    "Olive": ("#2ca02c", "Olive"),
}
OTHERS = ("#7f7f7f", "other peers")
MARKERS = "oD^sv"


def draw_all(folder: Path, wanted: Sequence[str], compared: dict[str, Any], started: dict[str, Any]) -> None:
    """The ``wanted`` plots, ``latency``, ``size``, ``cold_start``, as SVG files in ``folder``; no other stays there.

    The same records give the same bytes.
    """
    mpl.rcParams |= {"svg.hashsalt": "mri-edge", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    rows = [row for row in compared["rows"].values() if "model" in row and "accuracy" in row]
    # One point for each file, whoever runs it.
    each = list({(row["bundle"], row["size_bytes"]): row for row in reversed(rows)}.values())
    drawings = {
        "latency": lambda: _against_accuracy(rows, "latency"),
        "size": lambda: _against_accuracy(each, "size"),
        "cold_start": lambda: _bars(started),
    }
    for name, draw in drawings.items():
        target = folder / f"{name}.svg"
        if name in wanted:
            _save(draw(), target)
        else:
            target.unlink(missing_ok=True)


def _kind(title: str) -> tuple[str, str]:
    return next((kind for start, kind in KINDS.items() if title.startswith(start)), OTHERS)


def _against_accuracy(rows: list[dict[str, Any]], against: str) -> Figure:
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    models = sorted({row["bundle"] for row in rows})
    colours: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row["title"].startswith("mri-edge")):  # ours last: on top
        found, (colour, words) = row["accuracy"], _kind(row["title"])
        place = row["model"]["median"]["value"] if against == "latency" else row["size_bytes"] / 1e6
        below, above = found["value"] - found["low"], found["high"] - found["value"]
        axes.errorbar(place, found["value"], [[below], [above]], color=colour, fmt="none", alpha=0.25, lw=1)
        marker = MARKERS[models.index(row["bundle"]) % len(MARKERS)]
        axes.plot(place, found["value"], marker, color=colour, ms=6, alpha=0.8)
        if against == "latency":  # of size every peer's is the same
            colours[words] = Line2D([], [], color=colour, marker="s", ls="", label=words)
        shapes[row["bundle"]] = Line2D([], [], color="black", marker=marker, ls="", label=f"model {row['bundle']}")
    label = "ms for one image, model only (log)" if against == "latency" else "MB on disk (log)"
    axes.set(xscale="log", xlabel=label, ylabel="accuracy on the test images, 95% interval")
    axes.grid(alpha=0.2)
    _plain_numbers(axes)
    figure.legend(
        handles=[*colours.values(), *shapes.values()], frameon=False, fontsize=8, loc="outside upper center", ncols=6
    )
    return figure


def _bars(started: dict[str, Any]) -> Figure:
    rows = sorted(started["rows"].items(), key=lambda item: -item[1]["seconds"]["value"])
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 0.9), layout="constrained")
    values = [row["seconds"]["value"] for _, row in rows]
    bars = axes.barh([name for name, _ in rows], values, color=[_kind(name)[0] for name, _ in rows])
    axes.bar_label(bars, [f"{value:.2f} s" for value in values], padding=4)
    label = f"{'CPU seconds' if started['busy'] else 'seconds'}, whole process (log)"
    axes.set(xscale="log", xlabel=label, xlim=(min(values) / 2, max(values) * 3))
    _plain_numbers(axes)
    return figure


def _plain_numbers(axes: Any) -> None:
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
