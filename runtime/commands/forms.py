"""How ``predict`` writes its results: each form turns results into lines as they come."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator

import click

from ..classifier import Classifier
from ..errors import printable
from ..prediction import NOTICE, Failure, Prediction, stdout_json

Results = Iterable[Prediction | Failure]


def json_lines(results: Results, classifier: Classifier) -> Iterator[str]:
    """One JSON object a line: ``Prediction.to_dict`` or ``Failure.to_dict``."""
    for result in results:
        yield stdout_json(result.to_dict())


def csv_lines(results: Results, classifier: Classifier) -> Iterator[str]:
    """CSV (RFC 4180): a header, then one row a scan; a scan that failed has only ``file`` and ``error``."""
    labels = classifier.bundle.manifest.labels
    columns = ["file", "label", *(f"probability of {printable(label)}" for label in labels), "threshold"]
    columns += ["model", "artefact", "engine", "provider", "decode_ms", "resize_ms", "infer_ms", "warnings", "error"]
    yield _csv(columns)
    for result in results:
        if isinstance(result, Failure):
            yield _csv([result.file, *[""] * (len(columns) - 2), str(result.error)])
            continue
        latency = result.latency_ms
        yield _csv(
            [
                result.file,
                printable(result.label),
                *(f"{result.probabilities[label]:.6f}" for label in labels),
                result.threshold,
                result.model,
                result.artefact,
                result.engine,
                result.provider,
                *(f"{part:.3f}" for part in (latency.decode, latency.resize, latency.infer)),
                "; ".join(result.warnings),
                "",
            ]
        )


def table(results: Results, classifier: Classifier) -> Iterator[str]:
    """For people: what ran, a row a scan with the file last so that rows can stream, and the notice."""
    manifest, engine = classifier.bundle.manifest, classifier.engine
    positive = manifest.labels[manifest.positive]
    shown = {label: printable(label) for label in manifest.labels}
    yield click.style(f"{manifest.title} | {classifier.artefact.file} | {engine.name} | {engine.provider}", dim=True)
    wide = max(len("label"), *map(len, shown.values()))
    heading = f"p({shown[positive]})"
    yield click.style(f"{'label':<{wide}}  {heading:>{len(heading)}}  {'ms':>7}  file", bold=True)
    for result in results:
        if isinstance(result, Failure):
            yield f"{'-':<{wide}}  {'-':>{len(heading)}}  {'-':>7}  {printable(result.file or '')} (not classified)"
            continue
        colour = "red" if result.label == positive else "green"
        label = click.style(f"{shown[result.label]:<{wide}}", fg=colour)
        figures = f"{result.probability:>{len(heading)}.3f}  {result.latency_ms.total:>7.1f}"
        yield f"{label}  {figures}  {printable(result.file or '')}"
        for warning in result.warnings:
            yield click.style(f"{'':<{wide}}  warning: {warning}", fg="yellow")
    yield click.style(NOTICE, dim=True)


FORMS: dict[str, Callable[[Results, Classifier], Iterator[str]]] = {
    "table": table,
    "json": json_lines,
    "csv": csv_lines,
}


def _csv(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # its own line ends are among what it puts in quotes
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace").decode()
