"""Measure on this device which engine, artefact, threads and batch are the fastest, each in a process of its own."""

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
from mri_edge.inference.selection import allowed
from mri_edge.inference.tuned_profile import Measurement, Profile, fingerprint_of, library_versions

from .throttle import Watch
from .trial import Trial, attempt

_log = logging.getLogger(__name__)

BATCHES = (1, 4, 8)
SECONDS = 1.0

# What is this much slower than the best on a single scan is not tried on many: batches save less.
_HOPELESS = 3.0
# The leaders run again, in turn, so that a disturbance of a second does not choose for months.
_FINALISTS = 3
_FINAL_ROUNDS = 2
_TIME_LIMIT = 300  # seconds for one candidate

# Passes candidates through while it draws how far they are: (candidates, label).
Track = Callable[[Sequence["Candidate"], str], Iterable["Candidate"]]


@dataclass(frozen=True)
class Candidate:
    """One way to run a bundle."""

    artefact: str
    engine: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Tuning:
    """The profile, and the candidates that could not run with the reason of each."""

    profile: Profile
    failed: tuple[tuple[Candidate, str], ...]


def candidates(bundle: Bundle, *, provider: str = "auto", batches: Sequence[int] = BATCHES) -> list[Candidate]:
    """Every artefact that did not fail its parity gate, in every engine that is here, by threads and batch."""
    engines = [
        one
        for one in engine_files().values()
        if not {*providers_of(one, provider)}.isdisjoint({"auto", *one.PROVIDERS}) and not one.missing()
    ]
    return [
        Candidate(artefact.file, engine.NAME, threads, batch)
        for batch in sorted({1, *batches})
        for artefact in allowed(bundle)
        for engine in engines
        if artefact.file.endswith(engine.SUFFIXES)
        for threads in thread_counts(available_cpus())
    ]


def thread_counts(cores: int) -> list[int]:
    """Powers of two up to the cores, and all cores: ``6 -> [1, 2, 4, 6]``."""
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
    """Measure all candidates, then the leaders again; returns the profile, which is not yet saved.

    Raises
    ------
    IntegrityError
        A file of the bundle was changed.
    BundleError
        Nothing in the bundle can run here.
    EngineError
        Every candidate failed.
    """
    bundle.verify()
    todo = candidates(bundle, provider=provider, batches=batches)
    if not todo:
        held = ", ".join(one.file for one in bundle.manifest.artefacts) or "no model"
        raise BundleError(f"{bundle.folder}: nothing in it for the engines that are here. It has: {held}")
    watch = Watch()
    readings: dict[Candidate, list[Measurement]] = {}
    failed: dict[Candidate, str] = {}

    def measure(one: Candidate) -> None:
        trial = Trial(
            one.engine, str(bundle.folder), one.artefact, provider, one.threads, one.batch, seconds, signed_by
        )
        outcome = attempt(trial, time_limit=_TIME_LIMIT)
        if outcome.problem:
            failed[one] = outcome.problem
            readings.pop(one, None)
            return
        found = Measurement(
            one.artefact, one.engine, provider, outcome.provider or "", one.threads, one.batch, outcome.ms, outcome.runs
        )
        readings.setdefault(one, []).append(found)

    for one in track(todo, "measure"):
        if _is_worth_it(one, readings, failed):
            measure(one)
    for one in track(_leaders(readings, _FINALISTS) * _FINAL_ROUNDS, "leaders again"):
        measure(one)
    # Whoever leads now may be one that was measured once, by luck on a quiet second.
    while unsure := [one for one in _leaders(readings, 1) if len(readings[one]) <= _FINAL_ROUNDS]:
        for one in unsure:
            measure(one)
    if not readings:
        reason = next(iter(failed.values()))
        raise EngineError(f"{bundle.folder}: no candidate could run here: {reason}", "See 'mri-edge doctor'")
    for mark in watch.marks():
        _log.warning("%s: what was fastest here may not be so on a quiet machine", mark)
    profile = Profile(
        bundle=fingerprint_of(bundle),
        cpu=str(cpu()),
        cores=available_cpus(),
        libraries=library_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        measurements=tuple(sorted(map(_merged, readings.values()), key=lambda one: one.ms_per_scan)),
    )
    return Tuning(profile, tuple(failed.items()))


def _is_worth_it(one: Candidate, readings: dict[Candidate, list[Measurement]], failed: dict[Candidate, str]) -> bool:
    single = replace(one, batch=1)
    if one == single:
        return True
    if single in failed:
        return False
    best = min(_merged(found).ms for candidate, found in readings.items() if candidate.batch == 1)
    return _merged(readings[single]).ms <= _HOPELESS * best


def _leaders(readings: dict[Candidate, list[Measurement]], count: int) -> list[Candidate]:
    """The fastest on a single scan and the fastest by time a scan, ``count`` of each."""
    ordered = sorted(readings, key=lambda one: _merged(readings[one]).ms_per_scan)
    single = [one for one in ordered if one.batch == 1]
    return list(dict.fromkeys([*single[:count], *ordered[:count]]))


def _merged(readings: list[Measurement]) -> Measurement:
    return replace(readings[0], ms=median(one.ms for one in readings), runs=sum(one.runs for one in readings))
