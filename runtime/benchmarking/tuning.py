"""Find the fastest engine, artifact, thread count and batch size on this device, each measured in its own process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from statistics import median

from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import cpu
from mri_edge.engines import engine_files, providers_of
from mri_edge.errors import BundleError, EngineError
from mri_edge.inference.selection import RunOptions, allowed, select, suits
from mri_edge.inference.tuned_profile import Measurement, Profile, fingerprint_of, library_versions

from .throttle import Watch
from .trial import Trial, attempt

_log = logging.getLogger(__name__)

BATCHES = (1, 4, 8)
SECONDS = 1.0

# A candidate this many times slower than the best on a single scan is not tried on batches, which save less.
_TOO_SLOW = 3.0
# The leaders are measured again in turn, so that one short disturbance does not decide.
_FINALISTS = 3
_FINAL_ROUNDS = 2
_TIME_LIMIT = 300  # seconds for one candidate, besides those of its measurement

# Yields the candidates and shows progress: (candidates, label).
Track = Callable[[Sequence["Candidate"], str], Iterable["Candidate"]]


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle."""

    artifact: str
    engine: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Tuning:
    """The profile, and the candidates that could not run, each with the reason."""

    profile: Profile
    failed: tuple[tuple[Candidate, str], ...]


_Readings = dict[Candidate, list[Measurement]]


def candidates(bundle: Bundle, *, provider: str = "auto", batches: Sequence[int] = BATCHES) -> list[Candidate]:
    """All combinations of artifacts, installed engines, threads and batch sizes.

    Artifacts that failed their parity gate, or are made for another provider, are left out.
    """
    engines = [
        file
        for file in engine_files().values()
        if not {*providers_of(file, provider)}.isdisjoint({"auto", *file.PROVIDERS}) and not file.missing()
    ]
    return [
        Candidate(artifact.file, engine.NAME, threads, batch)
        for batch in sorted({1, *batches})
        for artifact in allowed(bundle)
        if suits(artifact, provider)
        for engine in engines
        if artifact.file.endswith(engine.SUFFIXES)
        for threads in thread_counts(available_cpus())
    ]


def default_batches(bundle: Bundle, provider: str = "auto") -> list[int]:
    """Return the batch sizes to try: the usual ones, and that of the rule which applies without a profile."""
    return sorted({*BATCHES, default_candidate(bundle, provider, many=True).batch})


def default_candidate(bundle: Bundle, provider: str, *, many: bool) -> Candidate:
    """Return what runs without a profile."""
    chosen = select(bundle, RunOptions(provider=provider), tuned=False)
    threads = chosen.threads or available_cpus()
    return Candidate(chosen.artifact.file, chosen.engine, threads, chosen.batch if many else 1)


def default_of(profile: Profile, bundle: Bundle, *, provider: str, many: bool) -> Measurement | None:
    """Return the measurement of what runs without a profile; None if it was not measured, or failed."""
    default = default_candidate(bundle, provider, many=many)
    for found in profile.measurements:
        same = Candidate(found.artifact, found.engine, found.threads, found.batch) == default
        if same and found.provider == provider:
            return found
    return None


def thread_counts(cores: int) -> list[int]:
    """Powers of two below the number of cores, and all cores: ``6 -> [1, 2, 4, 6]``."""
    return sorted({*(1 << power for power in range(cores.bit_length()) if 1 << power <= cores), cores})


def tune(
    bundle: Bundle,
    *,
    provider: str = "auto",
    batches: Sequence[int] = BATCHES,
    seconds: float = SECONDS,
    signed_by: str | None = None,
    track: Track = lambda items, label: items,
) -> Tuning:
    """Measure all candidates, then the leaders again. Returns the profile without saving it.

    Raises
    ------
    IntegrityError
        A file of the bundle was changed.
    BundleError
        No artifact of the bundle can run on this machine.
    EngineError
        Every candidate failed.
    """
    bundle.verify()
    to_measure = candidates(bundle, provider=provider, batches=batches)
    if not to_measure:
        available = ", ".join(artifact.file for artifact in bundle.manifest.artifacts) or "no model"
        raise BundleError(f"{bundle.folder}: no artifact for the installed engines. It has: {available}")
    watch = Watch()
    readings: _Readings = {}
    failed: dict[Candidate, str] = {}

    def measure(candidate: Candidate) -> None:
        trial = Trial(
            engine=candidate.engine,
            bundle=str(bundle.folder),
            artifact=candidate.artifact,
            provider=provider,
            threads=candidate.threads,
            batch=candidate.batch,
            seconds=seconds,
            signed_by=signed_by,
        )
        outcome = attempt(trial, time_limit=_TIME_LIMIT + seconds)
        if outcome.problem:
            failed[candidate] = outcome.problem
            readings.pop(candidate, None)
            return
        where = candidate.artifact, candidate.engine, provider, outcome.provider or ""
        measurement = Measurement(*where, candidate.threads, candidate.batch, outcome.ms, outcome.runs)
        readings.setdefault(candidate, []).append(measurement)

    for candidate in track(to_measure, "measure"):
        if _is_worth_batching(candidate, readings, failed):
            measure(candidate)
    # What runs without a profile is measured as often as the leaders are, so that the gain is a fair one.
    defaults = [default_candidate(bundle, provider, many=many) for many in (False, True)]
    finalists = dict.fromkeys(
        [*_leaders(readings, _FINALISTS), *(default for default in defaults if default in readings)]
    )
    for candidate in track([*finalists] * _FINAL_ROUNDS, "leaders again"):
        measure(candidate)
    # The leader may have been measured only once, in a quiet second: repeat until it was measured as often as others.
    while unsure := [leader for leader in _leaders(readings, 1) if len(readings[leader]) <= _FINAL_ROUNDS]:
        for candidate in unsure:
            measure(candidate)
    if not readings:
        reason = next(iter(failed.values()))
        raise EngineError(f"{bundle.folder}: no candidate could run here: {reason}", "See 'mri-edge doctor'")
    for mark in watch.marks():
        _log.warning("%s: on a quiet machine another candidate may be the fastest", mark)
    profile = Profile(
        bundle=fingerprint_of(bundle),
        cpu=str(cpu()),
        cores=available_cpus(),
        libraries=library_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        measurements=tuple(sorted(map(_merged, readings.values()), key=lambda reading: reading.ms_per_scan)),
    )
    return Tuning(profile, tuple(failed.items()))


def _is_worth_batching(candidate: Candidate, readings: _Readings, failed: dict[Candidate, str]) -> bool:
    """Whether a candidate's single scan is fast enough to try it on batches."""
    single = replace(candidate, batch=1)
    if candidate == single:
        return True
    if single in failed:
        return False
    best = min(_merged(found).ms for candidate, found in readings.items() if candidate.batch == 1)
    return _merged(readings[single]).ms <= _TOO_SLOW * best


def _leaders(readings: _Readings, count: int) -> list[Candidate]:
    """The ``count`` fastest on a single scan and the ``count`` fastest per scan in batches."""
    ordered = sorted(readings, key=lambda candidate: _merged(readings[candidate]).ms_per_scan)
    single = [candidate for candidate in ordered if candidate.batch == 1]
    return list(dict.fromkeys([*single[:count], *ordered[:count]]))


def _merged(readings: list[Measurement]) -> Measurement:
    ms = median(reading.ms for reading in readings)
    return replace(readings[0], ms=ms, runs=sum(reading.runs for reading in readings))
