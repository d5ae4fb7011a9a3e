"""Every artefact of a bundle in every engine, in turn and each alone: what ``mri-edge bench`` reports.

All subjects run once a round (A B C, A B C, …), each in a new process, so that a disturbance of the
machine meets all of them alike. Every latency counts: nothing is trimmed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import board, cpu, memory
from mri_edge.engines import check_threads, engine_file, engine_files, remedy
from mri_edge.errors import BundleError, EngineError, InputError, UsageError
from mri_edge.inference.prediction import NOTICE
from mri_edge.inference.replay import FOLDER
from mri_edge.inference.selection import DEFAULT_BATCH
from mri_edge.inference.tuned_profile import library_versions
from mri_edge.scans import readers
from mri_edge.scans.sources import expand

from .isolated import call
from .scenario import PERCENTILES, percentile_bound, queries_needed
from .throttle import Watch, slow_clock, temperature
from .workload import Reading, Request

# Medians of the rounds further apart than this: somebody else was at work, or the clock moved.
_NOISY = 1.25
_TIME_LIMIT = 3600  # seconds for one subject in one round

# Passes subjects through while it draws how far they are: (subjects, label).
Track = Callable[[Sequence[tuple[int, "Subject"]], str], Iterable[tuple[int, "Subject"]]]


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, then the least of each SingleStream run and the samples of each Offline run."""

    rounds: int
    seconds: float
    queries: int
    samples: int


PROFILES = {
    # Half of what the 90th percentile needs, twice.
    "smoke": Plan(rounds=2, seconds=0.3, queries=queries_needed(0.9) // 2, samples=16),
    # A third of what the 99th percentile needs, three times.
    "full": Plan(rounds=3, seconds=2.0, queries=-(-queries_needed(0.99) // 3), samples=64),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """One artefact in one engine; ``problem``: why it cannot run here, known before it is tried."""

    artefact: Artifact
    engine: str
    problem: str | None = None


@dataclass(frozen=True)
class Spread:
    """A figure in every round: the median of the rounds, the lowest and the highest."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stream:
    """SingleStream over all rounds, in milliseconds.

    ``bounds`` holds p50, p90 and p99 as the conservative bound at 99% confidence, None where ``queries`` are
    too few; ``median`` is what was observed, with the medians of the rounds.
    """

    queries: int
    median: Spread
    bounds: dict[str, float | None]
    slowest: float


@dataclass(frozen=True)
class Row:
    """What is known of one subject; the figures are None where it could not run.

    ``bound_by`` says what takes longest in Offline from files: ``decoding``, where decoding and resizing on all
    threads with nothing beside them would be slower than the engine alone, else the ``engine``.
    """

    artefact: str
    engine: str
    precision: str
    size_bytes: int
    parity: str | None
    problem: str | None = None
    provider: str | None = None
    threads: int | None = None
    load_ms: Spread | None = None
    first_ms: Spread | None = None
    peak_mib: Spread | None = None
    model: Stream | None = None
    model_rate: Spread | None = None
    file: Stream | None = None
    file_rate: Spread | None = None
    bound_by: Literal["decoding", "engine"] | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    server_rate: Spread | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All rows, and what they hold for: machine, versions, plan. ``marks``: what disturbed the machine meanwhile."""

    bundle: str
    created: str
    profile: str
    plan: Plan
    driver: str
    scans: int
    batch: int
    server_ms: float | None
    machine: dict[str, Any]
    libraries: dict[str, str]
    rows: tuple[Row, ...]
    marks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types: what ``mri-edge bench --json`` prints."""
        return {**asdict(self), "notice": f"{NOTICE} Not an MLPerf result."}


def subjects(bundle: Bundle, *, artefact: str | None = None, engine: str | None = None) -> list[Subject]:
    """Every artefact with every engine that opens its kind of file, installed or not; narrowed by what is named."""
    named = (bundle.artefact(artefact),) if artefact else bundle.manifest.artefacts
    files = [engine_file(engine)] if engine else list(engine_files().values())
    found = [
        Subject(item, one.NAME, f"{reason}. {remedy(one)}" if (reason := one.missing()) else None)
        for item in named
        for one in files
        if item.file.endswith(one.SUFFIXES)
    ]
    if not found:
        held = ", ".join(one.file for one in bundle.manifest.artefacts) or "no model"
        raise BundleError(f"{bundle.folder}: nothing in it for the engines. It has: {held}", "See 'mri-edge export'")
    return found


def scans_for(bundle: Bundle, named: Sequence[str], tell: Callable[[str], None] = lambda words: None) -> list[str]:
    """The scans to measure with: those named (files, folders, patterns), else the bundle's golden scans, else ours.

    ``tell`` takes a line about the files that a folder holds besides pictures.

    Raises
    ------
    UsageError
        One that was named cannot be found or read: they are all decoded here once, before anything is measured.
    """
    if named:
        found = []
        for one in expand(named, recursive=True, notify=tell):
            try:
                if isinstance(one, InputError):
                    raise one
                readers.load(one)
            except InputError as error:
                raise UsageError(error.problem, error.hint) from error
            found.append(one)
        return found
    golden = _golden(bundle) or _golden(Bundle.open_unsigned(DEFAULT_MODEL))
    return [str(path) for path in golden]


def measure(
    bundle: Bundle,
    scans: Sequence[str],
    profile: str = "smoke",
    *,
    artefact: str | None = None,
    engine: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    server_ms: float | None = None,
    signed_by: str | None = None,
    track: Track = lambda items, label: items,
) -> Report:
    """Measure all subjects, round by round.

    Raises
    ------
    IntegrityError, BundleError, UsageError
        The bundle was changed, holds nothing for the engines, or something named is not known.
    EngineError
        No subject could run.
    """
    check_threads(threads)
    bundle.verify()
    plan = PROFILES[profile]
    found = subjects(bundle, artefact=artefact, engine=engine)
    readings: dict[Subject, list[Reading]] = {one: [] for one in found}
    problems = {one: one.problem for one in found if one.problem}
    watch = Watch()
    for _, one in track([(number, one) for number in range(plan.rounds) for one in found], "measure"):
        if one in problems:
            continue
        answer = call(
            "benchmarking.workload:measure",
            Request(
                bundle=str(bundle.folder),
                artefact=one.artefact.file,
                engine=one.engine,
                provider=provider,
                threads=threads or available_cpus(),
                scans=scans,
                seconds=plan.seconds,
                queries=plan.queries,
                samples=plan.samples,
                batch=DEFAULT_BATCH,
                server_ms=server_ms,
                signed_by=signed_by,
            ),
            time_limit=_TIME_LIMIT,
        )
        if isinstance(answer, str):
            problems[one] = answer
        else:
            readings[one].append(Reading(**answer))
    rows = tuple(_row(one, readings[one], problems.get(one)) for one in found)
    if all(one in problems for one in found):
        # Why one failed that was tried says more than that another engine is not installed.
        reason = next((problems[one] for one in found if not one.problem), next(iter(problems.values())))
        raise EngineError(f"{bundle.folder}: no artefact could run: {reason}", "See 'mri-edge doctor'")
    clocks = [reading.clock for many in readings.values() for reading in many if reading.clock is not None]
    slow = slow_clock(clocks)
    return Report(
        bundle=bundle.manifest.title,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        profile=profile,
        plan=plan,
        driver=next(reading.driver for many in readings.values() for reading in many),
        scans=len(scans),
        batch=DEFAULT_BATCH,
        server_ms=server_ms,
        machine=machine_facts(),
        libraries=library_versions(),
        rows=rows,
        marks=(*watch.marks(), *((slow,) if slow else ())),
    )


def machine_facts() -> dict[str, Any]:
    """What a figure was measured on: CPU, cores that may be used, memory, system, temperature at the end."""
    room = memory()
    facts = {
        "board": board(),
        "cpu": str(cpu()),
        "cores": available_cpus(),
        "memory_gib": round(room.usable / 2**30, 1) if room else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "temperature": temperature(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def spread(values: Iterable[float]) -> Spread:
    """The median of at least one value, the lowest and the highest."""
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1])


def stream(rounds: Sequence[Sequence[float]]) -> Stream:
    """SingleStream latencies, round by round, as one figure."""
    pooled = [value for one in rounds for value in one]
    by_round = [median(one) for one in rounds]
    return Stream(
        queries=len(pooled),
        median=Spread(median(pooled), min(by_round), max(by_round)),
        bounds={f"p{percentile * 100:.0f}": percentile_bound(pooled, percentile) for percentile in PERCENTILES},
        slowest=max(pooled),
    )


def _row(one: Subject, readings: list[Reading], problem: str | None) -> Row:
    parity = one.artefact.parity
    row: dict[str, Any] = {
        "artefact": one.artefact.file,
        "engine": one.engine,
        "precision": one.artefact.precision,
        "size_bytes": one.artefact.size_bytes,
        "parity": parity.verdict if parity else None,
        "problem": problem,
    }
    if problem or not readings:
        return Row(**row)
    model, file = (stream([getattr(one, view) for one in readings]) for view in ("model_ms", "file_ms"))
    peaks = [one.peak_mib for one in readings if one.peak_mib is not None]
    rates = [one.server_rate for one in readings if one.server_rate is not None]
    model_rate = spread(one.model_rate for one in readings)
    stages = {stage: median(one.stages_ms[stage] for one in readings) for stage in readings[0].stages_ms}
    decoding_rate = 1000 * available_cpus() / (stages["decode"] + stages["resize"])
    noisy = [
        f"{name}: medians of the rounds are {found.median.low:.2f} to {found.median.high:.2f} ms"
        for name, found in (("model", model), ("file to answer", file))
        if found.median.high > _NOISY * found.median.low
    ]
    return Row(
        **row,
        provider=readings[0].provider,
        threads=readings[0].threads,
        load_ms=spread(one.load_ms for one in readings),
        first_ms=spread(one.first_ms for one in readings),
        peak_mib=spread(peaks) if peaks else None,
        model=model,
        model_rate=model_rate,
        file=file,
        file_rate=spread(one.file_rate for one in readings),
        bound_by="decoding" if decoding_rate < model_rate.value else "engine",
        stages_ms=stages,
        server_rate=spread(rates) if rates else None,
        marks=tuple(noisy),
    )


def _golden(bundle: Bundle) -> list[Path]:
    if bundle.archive:
        return []
    pictures = (one.file for one in bundle.manifest.documents if one.file.startswith(FOLDER))
    return [bundle.folder / file for file in pictures if not file.endswith("NOTICE")]
