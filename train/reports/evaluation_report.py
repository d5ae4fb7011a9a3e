"""Show the record of an evaluation: as one HTML page that needs no network, and as tables on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mri_edge.authoring.intervals import HEAD, with_interval
from mri_edge.authoring.pages import render
from mri_edge.commands.output import table as text_table

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
_ON_TERMINAL = 10  # mistakes that the terminal names

_Heads = tuple[str, ...]
_Rows = list[tuple[str, ...]]
_Table = tuple[str, _Heads, _Rows]  # title, column heads, rows


def evaluation_page(record: dict[str, Any]) -> str:
    """HTML text from the record of ``evaluate``; it names the scans and contains none."""
    from .evaluation_plots import reliability_plot, roc_plot

    plots = {"ROC curve": roc_plot(record)} if record["roc"] else {}
    plots["Reliability diagram"] = reliability_plot(record)
    mistakes = [_mistakes(record, len(record["worst"]), "probability of the truth")]
    if record["unreadable"]:
        unreadable: _Rows = [(failure["file"], failure["error"]) for failure in record["unreadable"]]
        mistakes.append(("Unreadable", ("file", "why"), unreadable))
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
    """The tables that page and terminal share."""
    return [
        ("How good", ("figure", HEAD, "images"), _metrics(record)),
        ("Confusion matrix", *_confusion(record)),
        ("By folder", ("folder", "label", "right", "share (95% interval)"), _folders(record)),
    ]


def _metrics(record: dict[str, Any]) -> _Rows:
    rows: _Rows = []
    for key, name in NAMES.items():
        metric = record["metrics"].get(key)
        if metric is None:
            rows.append((name, "these images cannot tell", "0"))
        else:
            rows.append((name, _with_interval(metric), str(metric["images"])))
    return rows


def _methods(record: dict[str, Any]) -> list[str]:
    """How the intervals were computed: one line for each method."""
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
    """At most ``shown`` mistakes, the worst first."""
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
