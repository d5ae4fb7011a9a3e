"""Name the figures of records, and format them for the tables of the reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from mri_edge.authoring.intervals import with_interval
from mri_edge.commands.output import table as text_table
from mri_edge.errors import printable

Rows = list[tuple[str, ...]]
Table = tuple[str, tuple[str, ...], Rows]  # title, column heads, rows

NAMES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "macro_auc": "AUC, mean of the labels",
    "sensitivity": "sensitivity",
    "macro_sensitivity": "sensitivity, mean of the labels",
    "specificity": "specificity",
    "precision": "precision",
    "macro_precision": "precision, mean of the labels",
    "f1": "F1",
    "macro_f1": "F1, mean of the labels",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
_OF_LABEL = ("sensitivity", "precision", "f1", "auc")
LABEL_HEADS = ("label (95% intervals)", *(NAMES[key] for key in _OF_LABEL), "images")


def interval(metric: Mapping[str, Any]) -> str:
    """Format a metric of a record with its interval."""
    return with_interval(metric["value"], metric["low"], metric["high"])


def label_rows(by_label: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return a row for each label, to ``LABEL_HEADS``, from ``by_label`` of a record; ``–`` if undefined."""
    return [
        (
            label,
            *(interval(metrics[key]) if metrics.get(key) else "–" for key in _OF_LABEL),
            str(metrics["sensitivity"]["images"]) if metrics.get("sensitivity") else "0",
        )
        for label, metrics in by_label.items()
    ]


def ran(record: Mapping[str, Any], model: str = "model") -> str:
    """Return a line about what was run and how. ``model`` is the key of its name."""
    return (
        f"{record[model]}, {record['artefact']} ({record['precision']}) in {record['engine']}, {record['provider']}, "
        f"threads {record['threads']}"
    )


def warnings(record: Mapping[str, Any], noun: str) -> list[str]:
    """Return the warnings of a record, with one about unreadable scans; ``noun`` is what the report calls scans."""
    unread = len(record["unreadable"])
    return [*record["warnings"], *([f"{unread} {noun} could not be read and are not scored."] if unread else [])]


def methods(record: Mapping[str, Any], name_of: Callable[[str], str]) -> list[str]:
    """Describe how the intervals were computed, one line per method."""
    names_by_method: dict[str, list[str]] = {}
    for key, metric in record["metrics"].items():
        names_by_method.setdefault(metric["method"], []).append(name_of(key))
    return [f"Intervals of {', '.join(names)}: {method}." for method, names in names_by_method.items()]


def print_report(facts: Sequence[str], warnings: Sequence[str], tables: Sequence[Table], notice: str) -> None:
    """Print a report on stdout."""
    for line in facts:
        click.echo(printable(line))
    for warning in warnings:
        click.secho(printable(warning), fg="yellow", bold=True)
    click.echo()
    for title, heads, rows in tables:
        click.secho(title, bold=True)
        cells = [[printable(cell) for cell in row] for row in (heads, *rows)]
        for line in text_table(cells, right=range(1, len(heads)), heading=False):
            click.echo(line)
        click.echo()
    click.echo(notice)
