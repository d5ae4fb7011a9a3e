"""The record of an evaluation as a page that needs nothing else, and as tables on a terminal."""

from __future__ import annotations

from html import escape
from typing import Any

import click

from mri_edge.authoring.figures import HEAD, with_interval
from mri_edge.commands.output import table as text_table

from .page import page, picture, table

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
_ON_TERMINAL = 10  # mistakes that the terminal names


def evaluation_page(record: dict[str, Any]) -> str:
    """HTML text from the record of ``evaluate``; no scan is in it, only names."""
    from .evaluation_plots import reliability_plot, roc_plot

    warnings = "".join(f'<p class="warning">{escape(one)}</p>' for one in _warnings(record))
    plots = [picture(reliability_plot(record), "Reliability diagram")]
    if record["roc"]:
        plots.insert(0, picture(roc_plot(record), "ROC curve"))
    sections = [
        warnings,
        *(f"<p>{escape(line)}</p>" for line in _facts(record)),
        f'<p class="quiet">{escape(record["notice"])}</p>',
        "<h2>How good</h2>",
        table(("figure", HEAD, "images"), _metrics(record)),
        *(f'<p class="quiet">{escape(line)}</p>' for line in _methods(record)),
        "<h2>Confusion matrix</h2>",
        table(*_confusion(record)),
        "<h2>By folder</h2>",
        table(("folder", "label", "right", "share (95% interval)"), _folders(record)),
        "<h2>ROC curve and reliability</h2>",
        f'<div class="row">{"".join(plots)}</div>',
        f"<h2>{escape(_mistakes_title(record, len(record['worst'])))}</h2>",
        table(("file", "truth", "called", "probability of the truth"), _worst(record, len(record["worst"]))),
    ]
    if record["unreadable"]:
        sections += ["<h2>Unreadable</h2>", table(("file", "why"), _unreadable(record))]
    return page(f"Evaluation of {record['model']}: {record['artefact']}", "\n".join(sections))


def print_evaluation(record: dict[str, Any]) -> None:
    """Print the record as tables on stdout."""

    def draw(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        click.secho(title, bold=True)
        for line in text_table([heads, *rows], right=range(1, len(heads)), heading=False):
            click.echo(line)
        click.echo()

    for line in _facts(record):
        click.echo(line)
    for warning in _warnings(record):
        click.secho(warning, fg="yellow", bold=True)
    click.echo()
    draw("How good", ("figure", HEAD, "images"), _metrics(record))
    draw("Confusion matrix", *_confusion(record))
    draw("By folder", ("folder", "label", "right", "share (95% interval)"), _folders(record))
    if record["worst"]:
        draw(
            _mistakes_title(record, _ON_TERMINAL),
            ("file", "truth", "called", "p of truth"),
            _worst(record, _ON_TERMINAL),
        )
    click.echo(record["notice"])


def _warnings(record: dict[str, Any]) -> list[str]:
    unread = len(record["unreadable"])
    return [*record["warnings"], *([f"{unread} images could not be read and are not scored."] if unread else [])]


def _facts(record: dict[str, Any]) -> list[str]:
    data, labels = record["data"], record["labels"]
    counts = ", ".join(f"{count} {label}" for label, count in zip(labels, data["by_label"], strict=True))
    left = ", ".join(f"{count} {role}" for role, count in sorted(data["left_out"].items()))
    rule = "the likeliest label" if record["threshold"] is None else f"threshold {record['threshold']:.4g}"
    return [
        f"{record['model']}, {record['artefact']} ({record['precision']}) in {record['engine']}, "
        f"{record['provider']}, {record['threads']} threads",
        f"{data['folder']}: {data['images']} images ({counts}), {data['what']}"
        + (f"; not scored: {left}" if left else ""),
        f"positive label: {labels[record['positive']]}; answer: {rule}",
    ]


def _metrics(record: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, words in NAMES.items():
        one = record["metrics"].get(name)
        if one is None:
            rows.append((words, "these images cannot tell", "0"))
        else:
            rows.append((words, _with_interval(one), str(one["images"])))
    return rows


def _methods(record: dict[str, Any]) -> list[str]:
    """How the intervals were made: one line a method."""
    figures: dict[str, list[str]] = {}
    for name, one in record["metrics"].items():
        figures.setdefault(one["method"], []).append(NAMES[name])
    return [f"Intervals of {', '.join(names)}: {method}." for method, names in figures.items()]


def _with_interval(figure: dict[str, Any]) -> str:
    return with_interval(figure["value"], figure["low"], figure["high"])


def _confusion(record: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    labels = record["labels"]
    heads = ("truth", *(f"called {label}" for label in labels))
    rows = zip(labels, record["confusion_matrix"], strict=True)
    return heads, [(label, *(str(count) for count in row)) for label, row in rows]


def _folders(record: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            one["folder"],
            record["labels"][one["label"]],
            f"{round(one['value'] * one['images'])} of {one['images']}",
            _with_interval(one),
        )
        for one in record["folders"]
    ]


def _mistakes_title(record: dict[str, Any], shown: int) -> str:
    total = record["mistakes"]
    return f"Mistakes: {total}" if total <= shown else f"The {shown} worst of {total} mistakes"


def _worst(record: dict[str, Any], shown: int) -> list[tuple[str, ...]]:
    labels = record["labels"]
    return [
        (one["file"], labels[one["label"]], labels[one["called"]], f"{one['probabilities'][one['label']]:.4f}")
        for one in record["worst"][:shown]
    ]


def _unreadable(record: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(one["file"], one["error"]) for one in record["unreadable"]]
