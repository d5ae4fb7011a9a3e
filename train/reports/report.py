"""Draw the report of a training: plots as PNG files, and a self-contained HTML page with these plots.

If recipe, data and test images are those of the reference, it also shows the reference's published figures.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mri_edge.authoring.intervals import HEAD, with_interval
from mri_edge.authoring.pages import render
from mri_edge.authoring.quiet import load_keras
from mri_edge.bundles.manifest import Metric
from mri_edge.inference.prediction import NOTICE
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.metrics import details
from mri_edge.train.loops.head import Epoch, Images
from mri_edge.train.models.network import Network
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.base import RecipeSpec

FOLDER = "report"
_TEMPLATE = Path(__file__).with_name("training.html.jinja")
_MAPS = 64  # channels shown per layer
_OURS, _THEIRS, _TRAINING = "#1f5fa8", "#d9822b", "#8aa4c0"


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
) -> dict[str, bytes | str]:
    """Return the content of all files of the report, by their path in the bundle.

    ``compare`` adds the reference's published figures. The activation maps are those of the first positive test image
    and show the patient's slice, so a bundle with them must not be shared if the scan may not.
    """
    measured = details(test.labels, probabilities, labels.positive)
    figures = {
        "confusion-matrix.png": _confusion(np.array(measured["confusion_matrix"]), labels, compare=compare),
        "roc.png": _roc(measured["roc"], metrics.get("auc"), compare=compare),
        "accuracy.png": _curve(history, "accuracy", compare=compare),
        "loss.png": _curve(history, "loss", compare=False),
        "model.png": _diagram(network),
    }
    shown = int(np.argmax(test.labels == labels.positive))
    maps = _activation_maps(network, recipe.preprocessing.normalize(test.take(np.array([shown]))))
    pictures = {name: _png(figure) for name, figure in {**figures, **maps}.items()}
    html = _page(pictures, list(figures), measured["report"], metrics, network, recipe, compare=compare)
    return {f"{FOLDER}/{name}": content for name, content in pictures.items()} | {f"{FOLDER}/index.html": html}


def _confusion(matrix: NDArray[np.int_], labels: Labels, *, compare: bool) -> Figure:
    panels = [("this model", matrix)]
    if compare:
        panels.append(("reference (from its recall)", np.array(reference.CONFUSION)))
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    for axes, (title, values) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axes.imshow(values, cmap="Blues", vmin=0)
        for (row, column), count in np.ndenumerate(values):
            color = "white" if count > values.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=16)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        ticks = [f"{index}: {name}" for index, name in enumerate(labels.names)]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_yticks(range(len(ticks)), ticks, rotation=90, va="center")
    return figure


def _roc(roc: dict[str, list[float]], auc: Metric | None, *, compare: bool) -> Figure:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    label = f"AUC {with_interval(auc.value, auc.low, auc.high)}" if auc else None
    axes.plot(roc["false_positive_rate"], roc["true_positive_rate"], color=_OURS, lw=2, label=label)
    axes.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    if compare:
        axes.plot([], [], " ", label=f"reference: AUC {reference.AUC:.2f}")
    axes.set(title="ROC curve", xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right")
    return figure


def _curve(history: Sequence[Epoch], quantity: str, *, compare: bool) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [epoch.number for epoch in history]
    axes.plot(
        epochs, [getattr(epoch, quantity) for epoch in history], ".-", color=_TRAINING, label="training (augmented)"
    )
    axes.plot(
        epochs, [getattr(epoch, f"val_{quantity}") for epoch in history], ".-", color=_OURS, lw=2, label="validation"
    )
    if compare:
        published = reference.VALIDATION_ACCURACY
        axes.plot(range(1, len(published) + 1), published, ".--", color=_THEIRS, label="validation, reference")
    axes.set(title=quantity, xlabel="epoch", ylabel=quantity)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _diagram(network: Network) -> Figure:
    """Draw a box for each layer from input to output, with its type, output shape and parameters."""
    keras = load_keras("train")
    inner = [layer for layer in network.backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    columns = [inner[:10], inner[10:], network.head.layers[1:]]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 3), ylim=(-10.2, 0.9))
    axes.axis("off")
    axes.text(0.5, 0.5, f"input {network.whole.input_shape[1:]}", ha="center", va="center", weight="bold")
    for column, layers in enumerate(columns):
        color = "#e8eef6" if column < 2 else "#fdeedd"
        for row, layer in enumerate(layers):
            shape = tuple(layer.output.shape[1:])
            text = f"{layer.name}  ({type(layer).__name__})\n{shape}  {layer.count_params():,} parameters"
            box = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "#777777"}
            axes.text(column + 0.5, -row - 0.4, text, ha="center", va="center", fontsize=8.5, bbox=box)
            above = (column + 0.5, -row + 0.25) if row or not column else None
            if above:
                arrow = {"arrowstyle": "->", "color": "#777777"}
                axes.annotate("", (column + 0.5, -row - 0.12), above, arrowprops=arrow)
        if column < 2:
            target = (column + 1.12, -0.4)
            start = (column + 0.92, -len(layers) + 0.6)
            axes.annotate("", target, start, arrowprops={"arrowstyle": "->", "color": "#777777"})
    axes.text(1, -10.1, "VGG16, frozen", ha="center", color="#555555")
    axes.text(2.5, -10.1, "head, trained", ha="center", color="#555555")
    return figure


def _activation_maps(network: Network, picture: NDArray[np.float32]) -> dict[str, Figure]:
    """Draw the first channels of each convolution and pooling layer, each scaled to its own range."""
    keras = load_keras("train")
    layers = [layer for layer in network.backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    maps = keras.Model(network.backbone.input, [layer.output for layer in layers]).predict_on_batch(picture)
    figures = {}
    for number, (layer, values) in enumerate(zip(layers, maps, strict=True), 1):
        channels = np.moveaxis(values[0], -1, 0)[:_MAPS]
        side = int(np.ceil(np.sqrt(len(channels))))
        low = channels.min(axis=(1, 2), keepdims=True)
        span = np.maximum(channels.max(axis=(1, 2), keepdims=True) - low, 1e-12)
        framed = np.pad(
            (channels - low) / span, ((0, side * side - len(channels)), (0, 1), (0, 1)), constant_values=np.nan
        )
        height, width = framed.shape[1:]
        sheet = framed.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, side * width)
        figure = Figure(figsize=(5, 5.3), layout="constrained")
        axes = figure.subplots()
        axes.imshow(sheet, cmap="viridis", interpolation="nearest")
        axes.set_title(
            f"{layer.name}: {len(channels)} of {values.shape[-1]} channels, {values.shape[1]} x {values.shape[2]}"
        )
        axes.axis("off")
        figures[f"activation-{number:02}-{layer.name}.png"] = figure
    return figures


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _page(
    pictures: dict[str, bytes],
    plots: Collection[str],
    report: dict[str, dict[str, float]],
    metrics: dict[str, Metric],
    network: Network,
    recipe: RecipeSpec,
    *,
    compare: bool,
) -> str:
    heads = ["figure", HEAD, "images"]
    rows = [
        [name, with_interval(metric.value, metric.low, metric.high), str(metric.images)]
        for name, metric in metrics.items()
    ]
    if compare:
        heads.append("reference")
        published = {"accuracy": f"{reference.ACCURACY:.2f}", "auc": f"{reference.AUC:.2f}"}
        for row in rows:
            row.append(published.get(row[0], "–"))
    return render(
        _TEMPLATE,
        title=f"Training report: recipe {recipe.name}",
        notice=NOTICE,
        metric_heads=heads,
        metric_rows=rows,
        report_rows=_report_rows(report, compare=compare),
        plots={name: pictures[name] for name in plots},
        summary=_summary(network),
        reference_parameters=reference.PARAMETERS if compare else None,
        maps={name: content for name, content in pictures.items() if name not in plots},
    )


def _report_rows(report: dict[str, dict[str, float]], *, compare: bool) -> list[tuple[str, ...]]:
    rows = []
    for name, row in report.items():
        if not isinstance(row, dict):  # the table of metrics shows the accuracy
            continue
        figures = (f"{row[key]:.2f}" for key in ("precision", "recall", "f1-score"))
        rows.append((name, *figures, f"{row['support']:.0f}"))
        for run, published in (("reference", reference.REPORT), ("reference, other run", reference.OTHER_RUN)):
            if compare and name in published:
                *values, support = published[name]
                rows.append((f"{name} ({run})", *(f"{value:.2f}" for value in values), str(support)))
    return rows


def _summary(network: Network) -> str:
    lines: list[str] = []
    network.whole.summary(print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines)
