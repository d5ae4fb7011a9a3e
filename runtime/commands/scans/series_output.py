"""Format the results of ``predict --by series`` and ``--by study`` as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

import click

from mri_edge.commands.output import csv_line, json_lines
from mri_edge.errors import printable
from mri_edge.inference.aggregate import rule_of
from mri_edge.inference.prediction import NOTICE, Failure
from mri_edge.inference.series import SeriesPrediction, StudyPrediction

if TYPE_CHECKING:
    from mri_edge.inference.classifier import Classifier

Result = SeriesPrediction | StudyPrediction | Failure
Results = Iterable[Result]

_CURVE = 40  # characters of the curve in the table
_RAN = ("model", "model_hash", "artefact", "engine", "provider")
_SERIES_COLUMNS = (
    *("study", "series", "part", "parts", "file", "plane", "distance_mm", "label", "score", "threshold", "count"),
    *("failed", "window_first", "window_last", "window_from_mm", "window_to_mm", "probabilities", *_RAN),
    *("skipped", "warnings", "warning_codes", "error", "error_code"),
)
_STUDY_COLUMNS = (
    *("study", "file", "label", "score", "threshold", "series", "skipped", "count", "failed", "series_scores", *_RAN),
    *("error", "error_code"),
)


def _csv_lines(results: Results, classifier: Classifier, *, identified: bool = False) -> Iterator[str]:
    """Yield CSV: a header, then one row per series or study. The probabilities of the slices are in one cell.

    With ``identified``, there are columns with what identifies the patient.
    """
    results = iter(results)
    first = list(islice(results, 1))
    while first and isinstance(first[-1], Failure):  # the columns depend on the first answer
        if not (following := list(islice(results, 1))):
            break
        first += following
    by_study = bool(first) and isinstance(first[-1], StudyPrediction)
    columns: tuple[str, ...] = _STUDY_COLUMNS if by_study else _SERIES_COLUMNS
    if identified:
        from mri_edge.scans.patient import IDENTIFIERS

        columns += IDENTIFIERS
    yield csv_line(columns)
    for result in chain(first, results):
        if isinstance(result, Failure):
            cells: dict[str, object] = {
                "file": result.source,
                "error": str(result.error),
                "error_code": result.error.code,
            }
        else:
            cells = _study_cells(result) if isinstance(result, StudyPrediction) else _series_cells(result)
            cells |= result.ran.to_dict()
            if identified:
                member = result.series[0] if isinstance(result, StudyPrediction) else result
                cells |= member.identifiers
        yield csv_line([cells.get(column, "") for column in columns])


def _series_cells(result: SeriesPrediction) -> dict[str, object]:
    series, window = result.series, result.window
    cells: dict[str, object] = {
        "study": series.study,
        "series": series.uid,
        "part": series.part,
        "parts": series.parts,
        "file": series.first.source,
        "plane": series.plane,
        "distance_mm": None if series.distance is None else round(series.distance, 3),
        "label": None if result.label is None else printable(result.label),
        "score": _figure(result.score),
        "threshold": result.threshold,
        "count": len(series.slices),
        "failed": result.failed,
        "probabilities": " ".join(_figure(probability) or "-" for probability in result.probabilities),
        "skipped": result.skipped,
        "warnings": "; ".join(map(str, result.warnings)),
        "warning_codes": "; ".join(warning.code for warning in result.warnings),
    }
    if window is not None:
        cells |= {"window_first": window[0], "window_last": window[1]}
        cells |= {"window_from_mm": series.positions[window[0]], "window_to_mm": series.positions[window[1]]}
    return cells


def _study_cells(result: StudyPrediction) -> dict[str, object]:
    taken = [member for member in result.series if member.skipped is None]
    return {
        "study": result.study,
        "file": result.series[0].series.first.source,
        "label": None if result.label is None else printable(result.label),
        "score": _figure(result.score),
        "threshold": result.threshold,
        "series": len(taken),
        "skipped": len(result.series) - len(taken),
        "count": sum(len(member.series.slices) for member in taken),
        "failed": result.failed,
        "series_scores": " ".join(_figure(member.score) or "-" for member in taken),
    }


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _table(results: Results, classifier: Classifier) -> Iterator[str]:
    """Yield a table for a terminal. A study is a row of its own after the rows of its series.

    If no file could be read there is no table, because stderr already gives the reasons.
    """
    manifest, engine = classifier.bundle.manifest, classifier.engine
    width = max(len("label"), *(len(printable(label)) for label in manifest.labels))
    curve = f"p({printable(manifest.positive_label)}) of each slice" if manifest.positive_label else "slices"
    started = False
    for result in results:
        if not started:
            if isinstance(result, Failure):
                continue
            started = True
            title = f"{manifest.title} | {classifier.artifact.file} | {engine.name} | {engine.provider}"
            yield click.style(title, dim=True)
            heading = f"{'label':<{width}}  {'score':>5}  {'slices':>6}  {'plane':<8}  {curve:<{_CURVE}}  file"
            yield click.style(heading, bold=True)
        if isinstance(result, Failure):
            yield f"{'-':<{width}}  {'-':>5}  {'-':>6}  {'-':<8}  {'-':<{_CURVE}}  {_not_classified(result)}"
        elif isinstance(result, SeriesPrediction):
            yield from _series_rows(result, width)
        else:
            for member in result.series:
                yield from _series_rows(member, width)
            label = _label(result.label, width, manifest.positive_label)
            taken = sum(member.score is not None for member in result.series)
            yield f"{label}  {_score(result.score)}  {'':>6}  {'':<8}  {f'= the study, from {taken} series':<{_CURVE}}"
    if started:
        yield click.style(
            f"p in tenths; score: reached by half of the slices in a window of neighbors "
            f"({rule_of(manifest).calibration})",
            dim=True,
        )
        yield click.style(NOTICE, dim=True)


def _series_rows(result: SeriesPrediction, width: int) -> Iterator[str]:
    series = result.series
    file = printable(series.first.source)
    label = _label(result.label, width, result.ran.manifest.positive_label)
    facts = f"{label}  {_score(result.score)}  {len(series.slices):>6}  {series.plane or '-':<8}"
    if result.skipped is not None:
        yield f"{facts}  {'skipped':<{_CURVE}}  {file} ({printable(str(result.skipped))})"
        return
    yield f"{facts}  {tenths(result.probabilities, _CURVE):<{_CURVE}}  {file}"
    for warning in result.warnings:
        yield click.style(f"{'':<{width}}  warning: {printable(str(warning))}", fg="yellow")


def _label(label: str | None, width: int, positive: str | None) -> str:
    color = None if positive is None or label is None else "red" if label == positive else "green"
    return click.style(f"{'-' if label is None else printable(label):<{width}}", fg=color)


def _score(score: float | None) -> str:
    return f"{'-':>5}" if score is None else f"{score:>5.3f}"


def _not_classified(failure: Failure) -> str:
    return f"{printable(failure.source or '')} (not classified)"


def tenths(probabilities: Sequence[float | None], width: int) -> str:
    """Return one character for each slice: its probability in tenths, rounded down, or ``x`` without an answer.

    Of more slices than ``width``, each character is the highest of some neighbors.
    """
    count = min(width, len(probabilities))
    bounds = [number * len(probabilities) // count for number in range(count)] + [len(probabilities)] if count else []
    text = ""
    for start, end in pairwise(bounds):
        values = [probability for probability in probabilities[start:end] if probability is not None]
        text += str(min(9, int(max(values) * 10))) if values else "x"
    return text


SERIES_FORMS: dict[str, Callable[[Results, Classifier], Iterator[str]]] = {
    "table": _table,
    "json": json_lines,
    "csv": _csv_lines,
    "identified csv": partial(_csv_lines, identified=True),
}
