"""Show the record of an evaluation as a self-contained HTML page and as tables on a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mri_edge.authoring.intervals import HEAD, with_interval
from mri_edge.authoring.pages import render
from mri_edge.commands.output import table as text_table

if TYPE_CHECKING:  # the tables on a terminal do not need matplotlib
    from matplotlib.figure import Figure

NAMES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
_TEMPLATE = Path(__file__).with_name("evaluation.html.jinja")
_BLUE, _GRAY, _RED = "#1f5fa8", "#9aa5b1", "#a51d24"
_PLOT_SIZE = (4.2, 4.2)  # inches
_ON_TERMINAL = 10  # mistakes listed on the terminal

_Heads = tuple[str, ...]
_Rows = list[tuple[str, ...]]
_Table = tuple[str, _Heads, _Rows]  # title, column heads, rows


def evaluation_page(record: dict[str, Any]) -> str:
    """Return the HTML page of a record of ``evaluate``. It lists file names of scans but contains no scans."""
    plots = {"ROC curve": _roc_plot(record)} if record["roc"] else {}
    plots["Reliability diagram"] = _reliability_plot(record)
    mistakes = [_mistakes(record, len(record["worst"]), "probability of the truth")]
    if record["unreadable"]:
        unreadable: _Rows = [(failure["file"], failure["error"]) for failure in record["unreadable"]]
        mistakes.append(("Unreadable", ("file", "reason"), unreadable))
    return render(
        _TEMPLATE,
        title=f"Evaluation of {record['model']}: {record['artefact']}",
        warnings=_warnings(record),
        facts=_facts(record),
        notice=record["notice"],
        tables=_tables(record),
        methods=_methods(record),
        plots=plots,
        mistakes=mistakes,
    )


def print_evaluation(record: dict[str, Any]) -> None:
    """Print the record as tables on stdout."""
    for line in _facts(record):
        click.echo(line)
    for warning in _warnings(record):
        click.secho(warning, fg="yellow", bold=True)
    click.echo()
    tables = _tables(record)
    if record["worst"]:
        tables.append(_mistakes(record, _ON_TERMINAL, "p of truth"))
    for title, heads, rows in tables:
        click.secho(title, bold=True)
        for line in text_table([heads, *rows], right=range(1, len(heads)), heading=False):
            click.echo(line)
        click.echo()
    click.echo(record["notice"])


def _warnings(record: dict[str, Any]) -> list[str]:
    unread = len(record["unreadable"])
    return [*record["warnings"], *([f"{unread} images could not be read and are not scored."] if unread else [])]


def _facts(record: dict[str, Any]) -> list[str]:
    data, labels = record["data"], record["labels"]
    counts = ", ".join(f"{count} {label}" for label, count in zip(labels, data["by_label"], strict=True))
    left_out = ", ".join(f"{count} {role}" for role, count in sorted(data["left_out"].items()))
    rule = "the likeliest label" if record["threshold"] is None else f"threshold {record['threshold']:.4g}"
    return [
        f"{record['model']}, {record['artefact']} ({record['precision']}) in {record['engine']}, "
        f"{record['provider']}, {record['threads']} threads",
        f"{data['folder']}: {data['images']} images ({counts}), {data['what']}"
        + (f"; not scored: {left_out}" if left_out else ""),
        f"positive label: {labels[record['positive']]}; answer: {rule}",
    ]


def _tables(record: dict[str, Any]) -> list[_Table]:
    """Return the tables that page and terminal have in common."""
    return [
        ("Metrics", ("figure", HEAD, "images"), _metrics(record)),
        ("Confusion matrix", *_confusion(record)),
        ("By folder", ("folder", "label", "correct", HEAD), _folders(record)),
    ]


def _metrics(record: dict[str, Any]) -> _Rows:
    rows: _Rows = []
    for key, name in NAMES.items():
        metric = record["metrics"].get(key)
        if metric is None:
            rows.append((name, "undefined for these images", "0"))
        else:
            rows.append((name, _with_interval(metric), str(metric["images"])))
    return rows


def _methods(record: dict[str, Any]) -> list[str]:
    """Describe how the intervals were computed, one line per method."""
    names_by_method: dict[str, list[str]] = {}
    for key, metric in record["metrics"].items():
        names_by_method.setdefault(metric["method"], []).append(NAMES[key])
    return [f"Intervals of {', '.join(names)}: {method}." for method, names in names_by_method.items()]


def _with_interval(metric: dict[str, Any]) -> str:
    return with_interval(metric["value"], metric["low"], metric["high"])


def _confusion(record: dict[str, Any]) -> tuple[_Heads, _Rows]:
    labels = record["labels"]
    heads = ("truth", *(f"called {label}" for label in labels))
    rows = zip(labels, record["confusion_matrix"], strict=True)
    return heads, [(label, *(str(count) for count in row)) for label, row in rows]


def _folders(record: dict[str, Any]) -> _Rows:
    return [
        (
            folder["folder"],
            record["labels"][folder["label"]],
            f"{round(folder['value'] * folder['images'])} of {folder['images']}",
            _with_interval(folder),
        )
        for folder in record["folders"]
    ]


def _mistakes(record: dict[str, Any], shown: int, probability_head: str) -> _Table:
    """List at most ``shown`` mistakes, the worst first."""
    total, labels = record["mistakes"], record["labels"]
    title = f"Mistakes: {total}" if total <= shown else f"The {shown} worst of {total} mistakes"
    rows: _Rows = [
        (
            mistake["file"],
            labels[mistake["label"]],
            labels[mistake["called"]],
            f"{mistake['probabilities'][mistake['label']]:.4f}",
        )
        for mistake in record["worst"][:shown]
    ]
    return title, ("file", "truth", "called", probability_head), rows


def _roc_plot(record: dict[str, Any]) -> bytes:
    """Draw the ROC curve with its AUC and the point of the threshold, from the record of ``evaluate``."""
    points, metrics = record["roc"], record["metrics"]
    auc, sensitivity, specificity = (metrics[name] for name in ("auc", "sensitivity", "specificity"))
    figure, axes = _square("1 - specificity", "sensitivity")
    label = f"AUC {with_interval(auc['value'], auc['low'], auc['high'])}"
    axes.plot(points["false_positive_rate"], points["true_positive_rate"], color=_BLUE, label=label)
    axes.errorbar(
        [1 - specificity["value"]],
        [sensitivity["value"]],
        xerr=[[specificity["high"] - specificity["value"]], [specificity["value"] - specificity["low"]]],
        yerr=[[sensitivity["value"] - sensitivity["low"]], [sensitivity["high"] - sensitivity["value"]]],
        fmt="o",
        color=_RED,
        capsize=3,
        label="at the threshold, 95% intervals",
    )
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return _svg(figure)


def _reliability_plot(record: dict[str, Any]) -> bytes:
    """Draw the fraction of positives over probability, with Wilson intervals, above a histogram of probabilities."""
    points, positive = record["reliability"], record["positive"]
    figure, axes = _square("probability of the positive label", "fraction of positives")
    axes.errorbar(
        [point["probability"] for point in points],
        [point["share"] for point in points],
        yerr=[
            [point["share"] - point["low"] for point in points],
            [point["high"] - point["share"] for point in points],
        ],
        fmt="o-",
        color=_BLUE,
        capsize=3,
        label=f"{len(points)} bins of equal count",
    )
    scores = [prediction["probabilities"][positive] for prediction in record["predictions"]]
    counts, edges = np.histogram(scores, bins=20, range=(0, 1))
    axes.stairs(counts / counts.max() / 4, edges, fill=True, color=_GRAY, alpha=0.35)  # the lower quarter of the plot
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return _svg(figure)


def _square(right: str, up: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(_PLOT_SIZE, layout="constrained")
    axes = figure.add_subplot(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=right, ylabel=up, box_aspect=1)
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=0.8, linestyle="--")
    return figure, axes


def _svg(figure: Figure) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    # With a fixed salt and no date, the same record gives the same file.
    with rc_context({"svg.hashsalt": "mri-edge"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
