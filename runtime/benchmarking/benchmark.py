"""Measure every artifact of a bundle in every engine for ``mri-edge bench``.

Each subject runs once per round (A B C, A B C, …) in a new process, so that a disturbance of the machine affects all of
them alike. Every latency counts.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mri_edge.bundles.bundle import DEFAULT_MODEL, Bundle
from mri_edge.bundles.decode import to_plain
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
from mri_edge.scans.readers import picture
from mri_edge.scans.sources import expand

from .isolated import run_isolated
from .scenarios import PERCENTILES, percentile_bound, queries_needed
from .throttle import Watch, slow_clock, temperature
from .workload import Reading, Request

_log = logging.getLogger(__name__)
# Ratio of the highest to the lowest median of the rounds above which a result is marked as disturbed.
_NOISY = 1.25
_TIME_LIMIT = 3600  # seconds for one subject in one round
_REPEATS = 2
_MOST_SCANS = 256  # they stay in memory, which is measured too

# Yields the subjects and shows progress: (subjects, label).
Track = Callable[[Sequence[tuple[int, "Subject"]], str], Iterable[tuple[int, "Subject"]]]


@dataclass(frozen=True)
class Plan:
    """How much to measure: rounds, minimum seconds and queries of a SingleStream run, samples of an Offline run."""

    rounds: int
    seconds: float
    queries: int
    samples: int


PROFILES = {
    # Two rounds with half of the queries that the 90th percentile needs.
    "smoke": Plan(rounds=2, seconds=0.3, queries=queries_needed(0.9) // 2, samples=16),
    # Three rounds with a third of the queries that the 99th percentile needs.
    "full": Plan(rounds=3, seconds=2.0, queries=-(-queries_needed(0.99) // 3), samples=64),
}


@dataclass(frozen=True, eq=False)
class Subject:
    """One artifact in one engine. ``problem`` is the reason, if it is known in advance that it cannot run here."""

    artifact: Artifact
    engine: str
    problem: str | None = None


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest value of a figure over the rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stream:
    """SingleStream over all rounds, in milliseconds.

    ``bounds`` are upper bounds of p50, p90 and p99 at 99% confidence, None where ``queries`` are too few. ``median`` is
    the observed median of all queries, with the lowest and highest median of a round.
    """

    queries: int
    median: Spread
    bounds: dict[str, float | None]
    slowest: float


@dataclass(frozen=True)
class Row:
    """Results of one subject. Figures are None if it could not run.

    ``model_joules`` and ``file_joules`` are the energy for each scan, in joules, by ``Report.energy_source``.
    ``bound_by`` is what limits Offline from files: ``decoding`` if decoding and resizing on all threads alone would be
    slower than the engine alone, else ``engine``.
    """

    artifact: str
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
    model_joules: Spread | None = None
    file_joules: Spread | None = None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results with machine, versions and plan.

    ``bundle`` is the model with its version and hash, ``model`` only its name. ``marks`` are disturbances of the
    machine during the measurement. ``energy_source`` is None where the machine has no readable energy counter.
    """

    bundle: str
    created: str
    profile: str
    plan: Plan
    scans: int
    batch: int
    server_ms: float | None
    machine: dict[str, Any]
    libraries: dict[str, str]
    rows: tuple[Row, ...]
    marks: tuple[str, ...]
    model: str | None = None
    energy_source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``mri-edge bench --json`` prints them."""
        return {**to_plain(self), "notice": f"{NOTICE} Not an MLPerf result."}


def subjects(bundle: Bundle, *, artifact: str | None = None, engine: str | None = None) -> list[Subject]:
    """All pairs of an artifact and an engine that opens its file, installed or not, or only the named ones."""
    named = (bundle.artifact(artifact),) if artifact else bundle.manifest.artifacts
    files = [engine_file(engine)] if engine else list(engine_files().values())
    found = [
        Subject(chosen, file.NAME, f"{reason}. {remedy(file)}" if (reason := file.missing()) else None)
        for chosen in named
        for file in files
        if chosen.file.endswith(file.SUFFIXES)
    ]
    if not found:
        available = ", ".join(artifact.file for artifact in bundle.manifest.artifacts) or "no model"
        raise BundleError(
            f"{bundle.folder}: no artifact that an engine opens. It has: {available}", "See 'mri-edge export'"
        )
    return found


def scans_for(bundle: Bundle, named: Sequence[str], notify: Callable[[str], None] = lambda message: None) -> list[str]:
    """The scans to measure with: the named ones (files, folders, patterns), else the golden scans of the bundle, else
    those of the embedded model.

    ``notify`` is called with a message about files in a folder that are not scans, and if there are more scans than are
    used.

    Raises
    ------
    UsageError
        A named scan cannot be found or read. All are decoded once before the measurement.
    """
    if named:
        found: list[str] = []
        for item in expand(named, recursive=True, notify=notify):
            if len(found) == _MOST_SCANS:
                notify(f"only the first {_MOST_SCANS} scans are used: they stay in memory")
                break
            try:
                if isinstance(item, InputError):
                    raise item
                readers.load(item)
            except InputError as error:
                raise UsageError(error.problem, error.hint) from error
            found.append(item)
        return found
    golden = _golden(bundle) or _golden(Bundle.open_unsigned(DEFAULT_MODEL))
    return [str(path) for path in golden]


def measure(
    bundle: Bundle,
    scans: Sequence[str],
    profile: str = "smoke",
    *,
    artifact: str | None = None,
    engine: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    server_ms: float | None = None,
    signed_by: str | None = None,
    track: Track = lambda items, label: items,
    repeat: Callable[[Report], Collection[tuple[str, str]]] = lambda report: (),
) -> Report:
    """Measure all subjects, round by round.

    ``repeat`` is called with the report and returns which artifacts and engines to measure again, at most twice. The
    new rounds are added to the first ones.

    Raises
    ------
    IntegrityError, BundleError, UsageError
        The bundle was changed, has no artifact for the engines, or a name is unknown.
    EngineError
        No subject could run.
    """
    check_threads(threads)
    bundle.verify()
    found = subjects(bundle, artifact=artifact, engine=engine)
    plan = PROFILES[profile]
    request = Request(
        bundle=str(bundle.folder),
        artifact="",
        engine="",
        provider=provider,
        threads=threads or available_cpus(),
        scans=scans,
        seconds=plan.seconds,
        queries=plan.queries,
        samples=plan.samples,
        batch=DEFAULT_BATCH,
        server_ms=server_ms,
        signed_by=signed_by,
    )
    run = _Run(bundle, profile, found, request)
    run.rounds(found, track)
    report = run.report()
    for _ in range(_REPEATS):
        wanted = repeat(report)
        if not wanted:
            break
        run.rounds([subject for subject in found if (subject.artifact.file, subject.engine) in wanted], track)
        report = run.report()
    return report


class _Run:
    """The readings of all subjects so far. ``request`` is what to measure, without artifact and engine."""

    def __init__(self, bundle: Bundle, profile: str, found: Sequence[Subject], request: Request) -> None:
        self._bundle, self._profile, self._found, self._request = bundle, profile, found, request
        self._readings: dict[Subject, list[Reading]] = {subject: [] for subject in found}
        self._problems = {subject: subject.problem for subject in found if subject.problem}
        self._watch = Watch()

    def rounds(self, chosen: Sequence[Subject], track: Track) -> None:
        """Measure subjects in turn, each as often as the profile has rounds. One that fails is not tried again."""
        rounds = PROFILES[self._profile].rounds
        for _, subject in track([(number, subject) for number in range(rounds) for subject in chosen], "measure"):
            if subject in self._problems:
                continue
            answer = run_isolated(
                "benchmarking.workload:measure",
                replace(self._request, artifact=subject.artifact.file, engine=subject.engine),
                time_limit=_TIME_LIMIT,
            )
            if isinstance(answer, str):
                self._problems[subject] = answer
            else:
                reading = Reading(**answer)
                self._readings[subject].append(reading)
                _log.info(
                    "%s, engine %s, provider %s, threads %d; opened in %.0f ms",
                    subject.artifact.file,
                    subject.engine,
                    reading.provider,
                    reading.threads,
                    reading.load_ms,
                )

    def report(self) -> Report:
        """Summarize the readings. Raises EngineError if no subject could run."""
        bundle, request, problems = self._bundle, self._request, self._problems
        if all(subject in problems for subject in self._found):
            # Prefer the failure of an installed engine to the message that another is not installed.
            reasons = [problems[subject] for subject in sorted(self._found, key=lambda subject: bool(subject.problem))]
            raise EngineError(f"{bundle.folder}: no artifact could run: {reasons[0]}", "See 'mri-edge doctor'")
        readings = [reading for runs in self._readings.values() for reading in runs]
        slow = slow_clock([reading.clock for reading in readings if reading.clock is not None])
        return Report(
            bundle=bundle.manifest.title,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            profile=self._profile,
            plan=PROFILES[self._profile],
            scans=len(request.scans),
            batch=request.batch,
            server_ms=request.server_ms,
            machine=machine_facts(),
            libraries=library_versions(),
            rows=tuple(_row(subject, self._readings[subject], problems.get(subject)) for subject in self._found),
            marks=(*self._watch.marks(), *((slow,) if slow else ())),
            model=bundle.manifest.name,
            energy_source=next((reading.energy_source for reading in readings if reading.energy_source), None),
        )


def machine_facts() -> dict[str, Any]:
    """The machine: CPU, cores that this process may use, memory, system, temperature at the end."""
    ram = memory()
    facts = {
        "board": board(),
        "cpu": str(cpu()),
        "cores": available_cpus(),
        "memory_gib": round(ram.usable / 2**30, 1) if ram else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "temperature": temperature(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1])


def stream(rounds: Sequence[Sequence[float]]) -> Stream:
    """Summarize the SingleStream latencies of all rounds."""
    pooled = [value for latencies in rounds for value in latencies]
    by_round = [median(latencies) for latencies in rounds]
    return Stream(
        queries=len(pooled),
        median=Spread(median(pooled), min(by_round), max(by_round)),
        bounds={f"p{percentile * 100:.0f}": percentile_bound(pooled, percentile) for percentile in PERCENTILES},
        slowest=max(pooled),
    )


def _row(subject: Subject, readings: list[Reading], problem: str | None) -> Row:
    parity = subject.artifact.parity
    row: dict[str, Any] = {
        "artifact": subject.artifact.file,
        "engine": subject.engine,
        "precision": subject.artifact.precision,
        "size_bytes": subject.artifact.size_bytes,
        "parity": parity.verdict if parity else None,
        "problem": problem,
    }
    if problem or not readings:
        return Row(**row)
    model, file = (stream([getattr(reading, view) for reading in readings]) for view in ("model_ms", "file_ms"))
    model_rate = spread(reading.model_rate for reading in readings)
    stages = {stage: median(reading.stages_ms[stage] for reading in readings) for stage in readings[0].stages_ms}
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
        load_ms=spread(reading.load_ms for reading in readings),
        first_ms=spread(reading.first_ms for reading in readings),
        peak_mib=_spread_of_known(reading.peak_mib for reading in readings),
        model=model,
        model_rate=model_rate,
        file=file,
        file_rate=spread(reading.file_rate for reading in readings),
        bound_by="decoding" if decoding_rate < model_rate.value else "engine",
        stages_ms=stages,
        server_rate=_spread_of_known(reading.server_rate for reading in readings),
        model_joules=_spread_of_known(reading.model_joules for reading in readings),
        file_joules=_spread_of_known(reading.file_joules for reading in readings),
        marks=tuple(noisy),
    )


def _spread_of_known(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def _golden(bundle: Bundle) -> list[Path]:
    if bundle.archive:
        return []
    files = (document.file for document in bundle.manifest.documents if document.file.startswith(FOLDER))
    # A DICOM slice needs an extra, and would make the figures differ from those of earlier releases.
    return [bundle.folder / file for file in files if file.lower().endswith(picture.SUFFIXES)]
