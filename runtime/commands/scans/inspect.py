"""``mri-edge inspect``: show the series that scans belong to, from their headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from mri_edge.commands.options import ANY_MODALITY
from mri_edge.commands.output import report, table
from mri_edge.commands.progress import track
from mri_edge.errors import printable
from mri_edge.inference.prediction import stdout_json
from mri_edge.inference.series import Plan, plan
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.series import Series
from mri_edge.scans.sources import expand

EXAMPLES = """\b
Examples:
  mri-edge inspect study/ -r
  mri-edge inspect study/ -r --json | jq '.series[] | select(.plane == "axial") | .files[]'
"""
_HEADING = ("slices", "plane", "matrix", "pixel mm", "apart mm", "echo", "stored as", "window", "first file", "state")
_RIGHT = range(6)


@click.command(epilog=EXAMPLES)
@click.argument("scans", nargs=-1, required=True, metavar="SCAN...")
@click.option("-r", "--recursive", is_flag=True, help="Read the scans in subfolders too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every file of every series.")
@ANY_MODALITY
def inspect(scans: tuple[str, ...], recursive: bool, as_json: bool, any_modality: bool) -> int:
    """Show the series that scans belong to.

    It reads headers only, and shows for each series whether 'predict --by series' would classify
    it, or why not. A SCAN is a file, a folder, a pattern, or - for paths on standard input.

    The exit code is 1 if a header cannot be read.
    """
    reading = ReadOptions(any_modality=any_modality)
    found = track(slice_facts(expand(scans, recursive=recursive, notify=report), reading), "headers")
    planned = plan(found)
    if as_json:
        click.echo(stdout_json(_record(planned), indent=2))
    elif planned.series:
        for line in _lines(planned):
            click.echo(line)
    for failure in planned.failures:
        report(str(failure.error))
    return 1 if planned.failures else 0


def _record(planned: Plan) -> dict[str, Any]:
    return {
        "series": [
            _series_record(series, reason) for series, reason in zip(planned.series, planned.skipped, strict=True)
        ],
        "unreadable": [
            {"file": failure.source, "error": failure.error.problem, "code": failure.error.code}
            for failure in planned.failures
        ],
    }


def _series_record(series: Series, reason: ResultWarning | None) -> dict[str, Any]:
    first = series.first
    return {
        "study": series.study,
        "series": series.uid,
        "part": series.part,
        "parts": series.parts,
        "format": first.kind,
        "count": len(series.slices),
        "plane": series.plane,
        "matrix": first.matrix,
        "spacing_mm": first.spacing,
        "distance_mm": None if series.distance is None else round(series.distance, 3),
        "echo": first.echo,
        "image_type": first.image_type,
        "syntaxes": _syntaxes(series),
        "windows": _windows(series),
        "skipped": None if reason is None else asdict(reason),
        "refused": [
            {"file": facts.source, "index": facts.index, "error": facts.refusal.problem, "code": facts.refusal.code}
            for facts in series.slices
            if facts.refusal is not None
        ],
        "warnings": [asdict(warning) for warning in series.warnings],
        "files": list(dict.fromkeys(facts.source for facts in series.slices)),
    }


def _lines(planned: Plan) -> Iterator[str]:
    """Yield a table with a row for each series. Its warnings follow below it."""
    rows = [_row(series, reason) for series, reason in zip(planned.series, planned.skipped, strict=True)]
    heading, *lines = table([_HEADING, *rows], right=_RIGHT)
    yield heading
    for line, series in zip(lines, planned.series, strict=True):
        yield line
        for warning in series.warnings:
            yield click.style(f"        warning: {printable(str(warning))}", fg="yellow")


def _row(series: Series, reason: ResultWarning | None) -> tuple[str, ...]:
    first = series.first
    windows = _windows(series)
    return (
        str(len(series.slices)),
        series.plane or "-",
        "-" if first.matrix is None else f"{first.matrix[1]} x {first.matrix[0]}",
        "-" if first.spacing is None else " x ".join(f"{value:.2f}" for value in reversed(first.spacing)),
        "-" if series.distance is None else f"{series.distance:.2f}",
        "-" if first.echo is None else f"{first.echo:g}",
        printable(", ".join(_syntaxes(series))) or "-",
        "-" if not windows else f"{len(windows)} of them" if len(windows) > 1 else "{:g}, {:g}".format(*windows[0]),
        printable(first.source),
        _state(series, reason),
    )


def _state(series: Series, reason: ResultWarning | None) -> str:
    if reason is not None:
        return click.style(f"skipped: {printable(str(reason))}", fg="red")
    refusals = [facts.refusal for facts in series.slices if facts.refusal is not None]
    part = f"part {series.part} of {series.parts}" if series.parts > 1 else ""
    if not refusals:
        return ", ".join(filter(None, ("ok", part)))
    every = len(refusals) == len(series.slices)
    which = "refused" if every else f"{len(refusals)} of its slices will be refused"
    reason_given = refusals[0].problem.removeprefix(f"{series.first.source}: ")
    problem = f"{which}: {printable('. '.join(filter(None, (reason_given, refusals[0].hint))))}"
    return click.style(", ".join(filter(None, (problem, part))), fg="red")


def _syntaxes(series: Series) -> list[str]:
    return list(dict.fromkeys(facts.syntax for facts in series.slices if facts.syntax))


def _windows(series: Series) -> list[tuple[float, float]]:
    """Return the different windows (center, width) of a series."""
    return list(dict.fromkeys(facts.window for facts in series.slices if facts.window))
