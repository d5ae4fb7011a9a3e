"""Format output as lines of text: tables, results of ``predict`` as a table, JSON or CSV, and messages of services."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from mri_edge.errors import DISK_ERRORS, printable
from mri_edge.inference.prediction import NOTICE, Failure, Prediction, displayed_label, frame_name, stdout_json

if TYPE_CHECKING:
    from mri_edge.inference.classifier import Classifier

Results = Iterable[Prediction | Failure]


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), heading: bool = True) -> list[str]:
    """Return the lines of a table. Each column is as wide as its widest cell, and columns are two spaces apart.

    Long text in the last column is not wrapped, so that it can be searched and copied. Cells may be styled.

    Parameters
    ----------
    rows
        Rows with the same number of cells.
    right
        Positions of the columns that are aligned to the right, such as numbers.
    heading
        Whether the first row is a heading, which is drawn bold.
    """
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_pad(cell, widths[i], right=i in right) for i, cell in enumerate(row)).rstrip() for row in rows]
    if heading and lines:
        lines[0] = click.style(lines[0], bold=True)
    return lines


def print_problems(record: Mapping[str, Any]) -> None:
    """Print the unreadable scans and the warnings of a record of ``evaluate`` or ``recalibrate`` on stderr."""
    for failure in record.get("unreadable", ()):
        click.echo(f"mri-edge: {failure['error']}", err=True)
    for warning in record["warnings"]:
        click.echo(f"mri-edge: warning: {warning}", err=True)


def _pad(cell: str, width: int, *, right: bool) -> str:
    padding = " " * (width - len(click.unstyle(cell)))
    return padding + cell if right else cell + padding


def json_lines(results: Iterable[Any], classifier: Classifier) -> Iterator[str]:
    """Yield one JSON object per line: ``to_dict`` of each result."""
    for result in results:
        yield stdout_json(result.to_dict())


def _csv_lines(results: Results, classifier: Classifier, *, identified: bool = False) -> Iterator[str]:
    """Yield CSV (RFC 4180): a header, then one row per scan. A failed scan only has its name, the error and its code.

    A cell that a spreadsheet would read as a formula gets a leading apostrophe. So does a cell that begins with an
    apostrophe, so that removing one leading apostrophe always restores the cell.

    With ``identified``, there are columns with what identifies the patient.
    """
    labels = classifier.bundle.manifest.labels
    columns = ["file", "label", *(f"probability of {printable(label)}" for label in labels), "threshold"]
    columns += ["model", "model_hash", "artefact", "engine", "provider", "decode_ms", "resize_ms", "infer_ms"]
    columns += ["warnings", "warning_codes", "error", "error_code"]
    added: tuple[str, ...] = ()
    if identified:
        from mri_edge.scans.patient import IDENTIFIERS

        added = IDENTIFIERS
    yield csv_line([*columns, *added])
    for result in results:
        if isinstance(result, Failure):
            cells = [_name(result), *[""] * (len(columns) - 3), str(result.error), result.error.code]
            yield csv_line([*cells, *[""] * len(added)])
            continue
        latency = result.latency_ms
        yield csv_line(
            [
                _name(result),
                printable(result.label),
                *(f"{result.probabilities[label]:.6f}" for label in labels),
                result.threshold,
                result.model,
                result.model_hash,
                result.artifact,
                result.engine,
                result.provider,
                *(f"{part:.3f}" for part in (latency.decode, latency.resize, latency.infer)),
                "; ".join(map(str, result.warnings)),
                "; ".join(warning.code for warning in result.warnings),
                "",
                "",
                *(result.metadata.get("identifiers", {}).get(key) for key in added),
            ]
        )


def _result_table(results: Results, classifier: Classifier) -> Iterator[str]:
    """Yield a table for a terminal: what ran, one row per scan, and the notice. The column of unknown width is last.

    It shows the probability of the positive label or, of a model with more than two labels, of the answer.

    If the only scan fails there is no table, because stderr already gives the reason.
    """
    results = iter(results)
    first = list(islice(results, 1))
    if first and isinstance(first[0], Failure):
        first += islice(results, 1)
        if len(first) == 1:
            return
    yield from _rows(chain(first, results), classifier)


def _rows(results: Results, classifier: Classifier) -> Iterator[str]:
    manifest, engine = classifier.bundle.manifest, classifier.engine
    labels, positive = manifest.labels, manifest.positive_label
    printable_labels = {label: printable(label) for label in labels}
    ran = [manifest.title, classifier.artifact.file, engine.name, engine.provider, *["tuned"] * classifier.tuned]
    yield click.style(" | ".join(ran), dim=True)
    label_width = max(len("label"), *map(len, printable_labels.values()))
    shown = displayed_label("label", positive, labels)
    heading = f"p({printable_labels.get(shown, shown)})"
    yield click.style(f"{'label':<{label_width}}  {heading:>{len(heading)}}  {'ms':>7}  file", bold=True)
    for result in results:
        if isinstance(result, Failure):
            yield f"{'-':<{label_width}}  {'-':>{len(heading)}}  {'-':>7}  {printable(_name(result))} (not classified)"
            continue
        color = None if positive is None else "red" if result.label == positive else "green"
        label = click.style(f"{printable_labels[result.label]:<{label_width}}", fg=color)
        probability = result.probabilities[displayed_label(result.label, positive, labels)]
        figures = f"{probability:>{len(heading)}.3f}  {result.latency_ms.total:>7.1f}"
        yield f"{label}  {figures}  {printable(_name(result))}"
        for warning in result.warnings:
            yield click.style(f"{'':<{label_width}}  warning: {printable(str(warning))}", fg="yellow")
    yield click.style(NOTICE, dim=True)


def _name(result: Prediction | Failure) -> str:
    """Return the path of a scan, with the index of the frame if it has several."""
    return frame_name(result.source or "", result.index, result.frames)


FORMS: dict[str, Callable[[Results, Classifier], Iterator[str]]] = {
    "table": _result_table,
    "json": json_lines,
    "csv": _csv_lines,
    "identified csv": partial(_csv_lines, identified=True),
}


# Characters that start a formula in a spreadsheet (OWASP, "CSV Injection"), their full-width forms, and the apostrophe.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def csv_line(cells: Iterable[object]) -> str:
    """Return one row of CSV without its line end. Cells that a spreadsheet would take for formulas are marked."""
    import csv

    text = io.StringIO()
    plain = [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells]
    csv.writer(text).writerow(plain)  # the default line ending makes it quote cells that contain one
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace").decode()


def report(message: str) -> None:
    """Print a message on stderr."""
    try:
        click.echo(f"mri-edge: {printable(message)}", err=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:  # a full disk under the log must not end the service
            raise
