"""Draw the report of a training: plots as SVG files, activation maps as PNG files, and a page that contains them.

If recipe, data and test images are those of the reference, it also shows the reference's published figures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import classification_report, confusion_matrix

from mri_edge.authoring.intervals import HEAD, with_interval
from mri_edge.authoring.pages import render
from mri_edge.authoring.quiet import load_keras
from mri_edge.bundles.manifest import Metric
from mri_edge.inference.prediction import decide
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.metrics import by_label, roc
from mri_edge.train.loops.head import Epoch, Images
from mri_edge.train.models.network import Network
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.base import RecipeSpec

from .plots import (
    OperatingPoint,
    Plot,
    RocCurve,
    confusion_plot,
    curve_plot,
    layers_plot,
    point_of_answers,
    roc_plot,
)
from .tables import LABEL_HEADS, NAMES, label_rows

FOLDER = "report"
_TEMPLATE = Path(__file__).with_name("training.html.jinja")
_MAPS = 64  # channels shown per layer
_SHEET = 480  # pixels: larger sheets of maps are reduced to this
_COLUMN = 10  # layers in a column of the diagram


@dataclass(frozen=True)
class _Picture:
    file: str
    caption: str
    content: bytes


def draw_report(
    network: Network,
    test: Images,
    probabilities: NDArray[np.float32],
    metrics: dict[str, Metric],
    history: Sequence[Epoch],
    labels: Labels,
    recipe: RecipeSpec,
    *,
    compare: bool,
    threshold: float | None = None,
    group: NDArray[np.intp] | None = None,
    copies: int = 0,
    facts: Sequence[tuple[str, str]] = (),
) -> dict[str, bytes | str]:
    """Return the content of all files of the report, by their path in the bundle.

    The report shows a test image and its activation maps, so a bundle that is passed on must not contain it unless the
    image may be passed on. ``bundle slim`` leaves the report out.

    Parameters
    ----------
    compare
        Add the reference's published figures.
    threshold
        As in the manifest.
    group
        int (N,) of the test images, as ``metrics.measure`` takes it for ``metrics``.
    copies
        Number of test images that are byte for byte among the images of training or validation.
    facts
        Names and texts for the head of the page, such as seed and split. They must not name scans.
    """
    called = decide(probabilities, labels.positive, threshold)
    figures = by_label(test.labels, probabilities, called, labels.names, group)
    plots = {"confusion-matrix": _confusion(test.labels, called, labels, compare=compare)}
    if curves := _curves(test.labels, probabilities, figures, labels):
        plain = {name: asdict(metric) for name, metric in metrics.items()}
        chosen = point_of_answers(plain, labels.names, labels.positive, threshold)
        plots["roc"] = _roc(curves, chosen, compare=compare)
    if history:
        plots["accuracy"] = _history_plot(history, "accuracy", compare=compare)
        plots["loss"] = _history_plot(history, "loss", compare=compare)
    plots["model"] = _diagram(network)
    shown = 0 if labels.positive is None else int(np.argmax(test.labels == labels.positive))
    scan = test.take(np.array([shown]))
    maps = _activation_maps(network, recipe.preprocessing.normalize(scan))
    counts = ", ".join(f"{np.sum(test.labels == index)} {name}" for index, name in enumerate(labels.names))
    page = render(
        _TEMPLATE,
        title=f"Training report: recipe {recipe.name}",
        facts=[("Test images", f"{len(test.labels)} ({counts})"), *facts],
        warnings=[
            f"{copies} of the test images are byte for byte among the training images: figures flatter the model."
        ]
        if copies
        else [],
        methods=_methods(metrics),
        metric_heads=("figure", HEAD, "images", *(["reference"] if compare else [])),
        metric_rows=_metric_rows(metrics, compare=compare),
        label_heads=LABEL_HEADS if len(labels.names) > 2 else ("label", "precision", "recall", "F1", "images"),
        label_rows=label_rows(figures)
        if len(labels.names) > 2
        else _report_rows(test.labels, called, labels, compare=compare),
        plots=[plot for name, plot in plots.items() if name != "model"],
        diagram=plots["model"],
        summary=_summary(network),
        reference_parameters=reference.PARAMETERS if compare else None,
        scan=_png(Image.fromarray(scan[0])),
        scan_label=labels.names[int(test.labels[shown])],
        maps=maps,
    )
    pictures = {picture.file: picture.content for picture in maps}
    files: dict[str, bytes | str] = {f"{name}.svg": plot.file() for name, plot in plots.items()} | pictures
    return {f"{FOLDER}/{name}": content for name, content in files.items()} | {f"{FOLDER}/index.html": page}


def _confusion(truth: NDArray[np.intp], called: NDArray[np.intp], labels: Labels, *, compare: bool) -> Plot:
    panels = [("this model", confusion_matrix(truth, called, labels=range(len(labels.names))).tolist())]
    if compare:
        panels.append(("reference (from its recall)", reference.CONFUSION))
    return confusion_plot(panels, labels.names)


def _curves(
    truth: NDArray[np.intp], probabilities: NDArray[np.float32], figures: dict[str, Any], labels: Labels
) -> list[RocCurve]:
    """Return the curve of the positive label, with more than two labels those of all. ``figures`` are ``by_label``."""
    return [
        RocCurve(name, roc(truth == index, probabilities[:, index]), figures[name]["auc"])
        for index, name in enumerate(labels.names)
        if "auc" in figures[name] and (len(labels.names) > 2 or index == labels.positive)
    ]


def _roc(curves: Sequence[RocCurve], chosen: OperatingPoint | None, *, compare: bool) -> Plot:
    if not compare:
        return roc_plot(curves, chosen)
    points = [
        OperatingPoint(f"reference: answers of {run}", {"value": rows["1"][1]}, {"value": rows["0"][1]})
        for run, rows in (("its report", reference.REPORT), ("another run", reference.OTHER_RUN))
    ]
    return roc_plot(curves, chosen, points, note=f"reference: AUC {reference.AUC:.2f}, curve not published")


def _history_plot(history: Sequence[Epoch], quantity: str, *, compare: bool) -> Plot:
    epochs = [epoch.number for epoch in history]
    series: list[tuple[str, Sequence[int], Sequence[float]]] = [
        ("training (augmented)", epochs, [getattr(epoch, quantity) for epoch in history]),
        ("test images", epochs, [getattr(epoch, f"val_{quantity}") for epoch in history]),
    ]
    note = ""
    if compare and quantity == "accuracy":
        published = reference.VALIDATION_ACCURACY
        series.append(("test images, reference", range(1, len(published) + 1), published))
    elif compare:
        note = f"reference: {quantity} not published"
    caption = (
        f"{quantity.capitalize()} after each epoch, on the training images, with augmentation and dropout, and on the "
        "test images, which are only watched: they choose nothing."
    )
    return curve_plot(quantity.capitalize(), caption, series, note)


def _diagram(network: Network) -> Plot:
    """Draw a box for each layer from input to output, with its type, output shape and parameters."""
    keras = load_keras("train")

    def describe(layer: Any) -> str:
        shape = tuple(layer.output.shape[1:])
        return f"{layer.name} ({type(layer).__name__})\n{shape}, {layer.count_params():,} parameters"

    inner = [layer for layer in network.backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    parts = [inner[start : start + _COLUMN] for start in range(0, len(inner), _COLUMN)]
    columns = [("backbone", [describe(layer) for layer in part]) for part in parts]
    columns.append(("head", [describe(layer) for layer in network.head.layers[1:]]))
    caption = "Layers from input (top left) to output, with the shape of their output and their number of parameters."
    return layers_plot(f"input {network.whole.input_shape[1:]}", columns, caption)


def _activation_maps(network: Network, scan: NDArray[np.float32]) -> list[_Picture]:
    """Draw the first channels of each layer of the backbone as one sheet, each channel scaled to its own range."""
    keras = load_keras("train")
    layers = [layer for layer in network.backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    layers = [layer for layer in layers if len(layer.output.shape) == 4]
    maps = keras.Model(network.backbone.input, [layer.output for layer in layers]).predict_on_batch(scan)
    pictures = []
    for number, (layer, values) in enumerate(zip(layers, maps, strict=True), 1):
        channels = np.moveaxis(np.asarray(values)[0], -1, 0)[:_MAPS]
        side = int(np.ceil(np.sqrt(len(channels))))
        low = channels.min(axis=(1, 2), keepdims=True)
        span = np.maximum(channels.max(axis=(1, 2), keepdims=True) - low, 1e-12)
        colored = matplotlib.colormaps["viridis"]((channels - low) / span, bytes=True)
        # Gaps of one pixel, transparent.
        framed = np.pad(colored, ((0, side * side - len(channels)), (0, 1), (0, 1), (0, 0)))
        height, width = framed.shape[1:3]
        tiles = framed.reshape(side, side, height, width, 4).swapaxes(1, 2)
        sheet = Image.fromarray(tiles.reshape(side * height, side * width, 4))
        if sheet.width > _SHEET:
            sheet = sheet.resize((_SHEET, round(_SHEET * sheet.height / sheet.width)), Image.Resampling.BOX)
        file = f"activation-{number:02}-{layer.name}.png"
        size = f"{values.shape[1]} x {values.shape[2]} pixels"
        pictures.append(
            _Picture(file, f"{layer.name}: {len(channels)} of {values.shape[-1]} channels, {size}", _png(sheet))
        )
    return pictures


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def _methods(metrics: dict[str, Metric]) -> list[str]:
    """Describe how the intervals were computed, one line per method."""
    names_by_method: dict[str, list[str]] = {}
    for name, metric in metrics.items():
        names_by_method.setdefault(metric.method, []).append(NAMES[name])
    return [f"Intervals of {', '.join(names)}: {method}." for method, names in names_by_method.items()]


def _metric_rows(metrics: dict[str, Metric], *, compare: bool) -> list[list[str]]:
    rows = [
        [NAMES.get(name, name), with_interval(metric.value, metric.low, metric.high), str(metric.images)]
        for name, metric in metrics.items()
    ]
    if compare:
        published = {"accuracy": f"{reference.ACCURACY:.2f}", "AUC": f"{reference.AUC:.2f}"}
        for row in rows:
            row.append(published.get(row[0], "–"))
    return rows


def _report_rows(
    truth: NDArray[np.intp], called: NDArray[np.intp], labels: Labels, *, compare: bool
) -> list[tuple[str, ...]]:
    """Return the rows of scikit-learn's classification report of two labels, and those that the reference published."""
    report = classification_report(
        truth, called, labels=range(2), target_names=list(labels.names), zero_division=0, output_dict=True
    )
    report.pop("accuracy", None)  # the table of metrics shows it
    rows = []
    for name, row in report.items():
        figures = (f"{row[key]:.2f}" for key in ("precision", "recall", "f1-score"))
        rows.append((name, *figures, f"{row['support']:.0f}"))
        index = str(labels.names.index(name)) if name in labels.names else name
        for run, published in (("reference", reference.REPORT), ("reference, other run", reference.OTHER_RUN)):
            if compare and index in published:
                *values, support = published[index]
                rows.append((f"{name} ({run})", *(f"{value:.2f}" for value in values), str(support)))
    return rows


def _summary(network: Network) -> str:
    lines: list[str] = []
    network.whole.summary(print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines)
