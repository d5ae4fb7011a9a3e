"""How ``predict`` writes its results: each form turns results into lines as they come."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import click

from mri_edge.errors import printable
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import NOTICE, Failure, Prediction, frame_name, stdout_json

Results = Iterable[Prediction | Failure]


def json_lines(results: Results, classifier: Classifier) -> Iterator[str]:
    """One JSON object a line: ``Prediction.to_dict`` or ``Failure.to_dict``."""
    for result in results:
        yield stdout_json(result.to_dict())


def csv_lines(results: Results, classifier: Classifier) -> Iterator[str]:
    """CSV (RFC 4180): a header, then a row a scan; one that failed has only ``file``, ``error`` and ``error_code``.

    A cell that a spreadsheet would take for a formula begins with an apostrophe, and so does one that begins with an
    apostrophe by itself: whoever takes one away from the beginning has the cell back.
    """
    labels = classifier.bundle.manifest.labels
    columns = ["file", "label", *(f"probability of {printable(label)}" for label in labels), "threshold"]
    columns += ["model", "model_hash", "artefact", "engine", "provider", "decode_ms", "resize_ms", "infer_ms"]
    columns += ["warnings", "warning_codes", "error", "error_code"]
    yield _csv(columns)
    for result in results:
        if isinstance(result, Failure):
            yield _csv([_name(result), *[""] * (len(columns) - 3), str(result.error), result.error.code])
            continue
        latency = result.latency_ms
        yield _csv(
            [
                _name(result),
                printable(result.label),
                *(f"{result.probabilities[label]:.6f}" for label in labels),
                result.threshold,
                result.model,
                result.model_hash,
                result.artefact,
                result.engine,
                result.provider,
                *(f"{part:.3f}" for part in (latency.decode, latency.resize, latency.infer)),
                "; ".join(map(str, result.warnings)),
                "; ".join(warning.code for warning in result.warnings),
                "",
                "",
            ]
        )


def table(results: Results, classifier: Classifier) -> Iterator[str]:
    """For people: what ran, a row a scan with the file last so that rows can stream, and the notice.

    Of a scan that fails alone there is nothing to show: stderr says why.
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
    positive = manifest.labels[manifest.positive]
    shown = {label: printable(label) for label in manifest.labels}
    yield click.style(f"{manifest.title} | {classifier.artefact.file} | {engine.name} | {engine.provider}", dim=True)
    wide = max(len("label"), *map(len, shown.values()))
    heading = f"p({shown[positive]})"
    yield click.style(f"{'label':<{wide}}  {heading:>{len(heading)}}  {'ms':>7}  file", bold=True)
    for result in results:
        if isinstance(result, Failure):
            yield f"{'-':<{wide}}  {'-':>{len(heading)}}  {'-':>7}  {printable(_name(result))} (not classified)"
            continue
        colour = "red" if result.label == positive else "green"
        label = click.style(f"{shown[result.label]:<{wide}}", fg=colour)
        figures = f"{result.probability:>{len(heading)}.3f}  {result.latency_ms.total:>7.1f}"
        yield f"{label}  {figures}  {printable(_name(result))}"
        for warning in result.warnings:
            yield click.style(f"{'':<{wide}}  warning: {printable(str(warning))}", fg="yellow")
    yield click.style(NOTICE, dim=True)


def _name(result: Prediction | Failure) -> str:
    """Return the path of a scan, with the index of the frame if it has several."""
    return frame_name(result.source or "", result.index, result.frames)


FORMS: dict[str, Callable[[Results, Classifier], Iterator[str]]] = {
    "table": table,
    "json": json_lines,
    "csv": csv_lines,
}


# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection"), also in the full width of East
# Asian letters; and the apostrophe itself, so that it is known which one was put there.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


def _csv(cells: Iterable[object]) -> str:
    text = io.StringIO()
    plain = [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells]
    csv.writer(text).writerow(plain)  # its own line ends are among what it puts in quotes
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace").decode()
