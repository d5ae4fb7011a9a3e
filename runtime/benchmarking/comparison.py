"""Compare a benchmark with an earlier one of the same machine and model, for ``mri-edge bench --compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mri_edge.bundles.decode import parse, read
from mri_edge.errors import GateError, MriEdgeError, UsageError, printable
from mri_edge.inference.selection import DEFAULT_BATCH

from .benchmark import PROFILES, Report, Row, Spread, Subject, machine_facts
from .figures import ENERGY_UNIT, FIGURES, Figure

# The properties of a machine on which every time depends. The versions of system, Python and libraries may differ,
# because their effect is what a comparison often looks for.
_MACHINE = ("board", "cpu", "cores")
_REMEDY = "Name a file from 'mri-edge bench --json'"


@dataclass(frozen=True)
class Ratio:
    """A figure of one artifact in one engine, before and now.

    ``ratio`` is above 1 if it is now worse: slower or more. Its low end compares the best round now with the worst
    round before, its high end the worst round now with the best round before. ``verdict`` is ``slower`` if the low end
    exceeds the limit, ``undecided`` if only the ratio does, and None if the figure is not judged.
    """

    artifact: str
    engine: str
    figure: str
    unit: str
    before: Spread
    now: Spread
    ratio: Spread
    verdict: Literal["ok", "undecided", "slower"] | None


@dataclass(frozen=True)
class Comparison:
    """All ratios, the limit, and the changes of versions and of the model between the two measurements.

    ``lost`` are descriptions of what was measured before and cannot be measured now. ``disturbances`` are those of the
    machine, in either measurement.
    """

    created: str
    limit: float
    ratios: tuple[Ratio, ...]
    lost: tuple[str, ...]
    changes: tuple[str, ...]
    disturbances: tuple[str, ...]

    def slower(self) -> list[Ratio]:
        """Return the figures that exceed the limit, the worst first."""
        return sorted((ratio for ratio in self.ratios if ratio.verdict == "slower"), key=lambda ratio: -ratio.ratio.low)

    def require_speed(self) -> None:
        """Raise GateError if a figure is slower than the limit, or lost."""
        if self.lost:
            raise GateError(self.lost[0], "See 'mri-edge doctor'")
        if not (slower := self.slower()):
            return
        worst = slower[0]
        more = f", and {len(slower) - 1} more" if len(slower) > 1 else ""
        raise GateError(
            f"{worst.artifact} in {worst.engine}, {worst.figure}: {worst.ratio.value:.2f} times as slow as before "
            f"({worst.ratio.low:.2f} to {worst.ratio.high:.2f}), limit {self.limit:.2f}{more}",
            f"Measure both again: {self.disturbances[0]}" if self.disturbances else "No disturbance was noticed",
        )


def read_report(path: Path) -> Report:
    """Read what ``mri-edge bench --json`` printed. Raises UsageError if the file is not such a report."""
    try:
        report = read(Report, parse(path.read_bytes(), printable(str(path))), printable(str(path)))
    except OSError as error:
        raise UsageError(f"{printable(str(path))}: cannot be read ({error.strerror})", _REMEDY) from error
    except MriEdgeError as error:
        raise UsageError(error.problem, _REMEDY) from error
    if not any(row.model for row in report.rows):
        raise UsageError(f"{printable(str(path))}: contains no result", _REMEDY)
    return report


def check_conditions(
    before: Report, subjects: Sequence[Subject], *, model: str, profile: str, scans: int, server_ms: float | None
) -> None:
    """Refuse a comparison before the measurement, if the earlier one was made under other conditions.

    Raises
    ------
    UsageError
        The machine, model, profile, number of scans or Server limit differs, or an artifact or engine is missing.
    """
    facts = machine_facts()
    conditions: list[tuple[str, Any, Any]] = [(name, before.machine.get(name), facts.get(name)) for name in _MACHINE]
    if before.model is not None:  # reports of earlier versions do not contain it
        conditions.append(("model", before.model, model))
    conditions += [
        ("profile", before.profile, profile),
        ("plan", before.plan, PROFILES[profile]),
        ("batch", before.batch, DEFAULT_BATCH),
        ("number of scans", before.scans, scans),
        ("limit of --server", before.server_ms, server_ms),
    ]
    for name, was, now in conditions:
        _require_same(name, was, now)
    runnable = {(subject.artifact.file, subject.engine) for subject in subjects if not subject.problem}
    for row in before.rows:
        if row.model and (row.artifact, row.engine) not in runnable:
            raise UsageError(
                f"cannot compare: {_name(row)} was measured before and is not measured now",
                "Measure both with the same options and engines",
            )


def compare(before: Report, now: Report, limit: float) -> Comparison:
    """Compare each figure of each row.

    Parameters
    ----------
    before, now
        Reports that ``check_conditions`` accepted.
    limit
        The highest ratio that passes; 1.1 if a figure may be 10% slower.

    Raises
    ------
    UsageError
        A provider or number of threads differs.
    """
    rows = {(row.artifact, row.engine): row for row in now.rows}
    ratios: list[Ratio] = []
    lost: list[str] = []
    for old in before.rows:
        if not old.model:
            continue
        new = rows[old.artifact, old.engine]
        if new.problem:
            lost.append(f"{_name(old)} ran before and does not run now: {printable(new.problem)}")
            continue
        _require_same(f"provider of {_name(old)}", old.provider, new.provider)
        _require_same(f"number of threads of {_name(old)}", old.threads, new.threads)
        for figure in FIGURES:
            was, value = figure.value(old), figure.value(new)
            if figure.judged and was and not value:
                lost.append(f"{_name(old)}, {figure.name}: {was.value:.3g} {figure.unit} before, none now")
            elif was and value and (figure.unit != ENERGY_UNIT or before.energy_source == now.energy_source):
                ratios.append(_ratio(old, figure, was, value, limit))
    disturbances = (*(f"before, {printable(mark)}" for mark in before.marks), *(f"now, {mark}" for mark in now.marks))
    return Comparison(before.created, limit, tuple(ratios), tuple(lost), tuple(_changes(before, now)), disturbances)


def _require_same(name: str, was: object, now: object) -> None:
    if was != now:
        raise UsageError(
            f"cannot compare: {name} differs: before {printable(str(was))}, now {printable(str(now))}",
            "Measure both on one machine with the same options",
        )


def _name(row: Row) -> str:
    return f"{printable(row.artifact)} in {printable(row.engine)}"


def _ratio(row: Row, figure: Figure, before: Spread, now: Spread, limit: float) -> Ratio:
    worse, better = (before, now) if figure.bigger_is_better else (now, before)
    ratio = Spread(_divide(worse.value, better.value), _divide(worse.low, better.high), _divide(worse.high, better.low))
    verdict: Literal["ok", "undecided", "slower"] | None = None
    if figure.judged:
        verdict = "slower" if ratio.low > limit else "undecided" if ratio.value > limit else "ok"
    return Ratio(row.artifact, row.engine, figure.name, figure.unit, before, now, ratio, verdict)


def _divide(value: float, by: float) -> float:
    if by <= 0:
        raise UsageError(f"cannot compare: a figure is {by:g}, which is not positive", _REMEDY)
    return value / by


def _changes(before: Report, now: Report) -> Iterator[str]:
    """Describe what may explain a different speed, besides the code."""
    if before.bundle != now.bundle:
        yield f"model: {printable(before.bundle)}, now {now.bundle}"
    versions = [
        {"system": report.machine.get("system"), "python": report.machine.get("python"), **report.libraries}
        for report in (before, now)
    ]
    for name in sorted({*versions[0], *versions[1]}):
        was, is_now = (version.get(name) for version in versions)
        if was != is_now:
            yield f"{printable(name)}: {printable(str(was))}, now {is_now}"
    if before.energy_source != now.energy_source:
        yield f"energy: measured by {printable(str(before.energy_source))}, now by {now.energy_source}"
