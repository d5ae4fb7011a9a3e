"""Try one engine in a separate process, so that a crash of its library becomes a result.

``attempt`` opens one artifact in one engine in a new process and runs it on noise: ``doctor`` reports whether that
works, ``tune`` how fast it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from time import perf_counter

import numpy as np

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import TensorSpec
from mri_edge.engines import Batch, ModelFile, engine_file, open_engine

from .isolated import run_isolated

_log = logging.getLogger(__name__)
_MIN_RUNS = 3  # on slow machines, even if they exceed the time


@dataclass(frozen=True)
class Trial:
    """What to try: an ``artifact`` of a ``bundle``. Without a bundle, only the engine's library is imported.

    ``seconds`` is how long to repeat the run, after two runs that do not count; 0 runs once.
    """

    engine: str
    bundle: str | None = None
    artifact: str = ""
    provider: str = "auto"
    threads: int | None = None
    batch: int = 1
    seconds: float = 0
    signed_by: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a trial. ``problem`` is None on success.

    ``ms`` is the median of ``runs`` runs, ``open_ms`` the time to open the engine.
    """

    problem: str | None = None
    provider: str | None = None
    threads: int = 0
    open_ms: float = 0
    ms: float = 0
    runs: int = 0


def attempt(trial: Trial, *, time_limit: float) -> Outcome:
    """Run a trial in a new process. Failures there are returned, not raised. ``time_limit`` is in seconds."""
    answer = run_isolated("benchmarking.trial:perform", trial, time_limit=time_limit)
    if isinstance(answer, str):
        return Outcome(answer)
    outcome = Outcome(**answer)
    if outcome.provider:
        _log.info(
            "%s, engine %s, provider %s, threads %d, batch %d; opened in %.0f ms",
            trial.artifact,
            trial.engine,
            outcome.provider,
            outcome.threads,
            trial.batch,
            outcome.open_ms,
        )
    return outcome


def perform(trial: Trial) -> Outcome:
    """Run a trial in this process."""
    if trial.bundle is None:
        if module := engine_file(trial.engine).MODULE:
            import_module(module)
        return Outcome()
    bundle = Bundle.open(trial.bundle, signed_by=trial.signed_by)
    start = perf_counter()
    model = ModelFile.of(bundle, bundle.artifact(trial.artifact))
    engine = open_engine(model, engine=trial.engine, provider=trial.provider, threads=trial.threads)
    open_ms = (perf_counter() - start) * 1e3
    del model
    batch = noise(engine.input, trial.batch)
    times: list[float] = []

    def run() -> None:
        begin = perf_counter()
        engine.run(batch)
        times.append((perf_counter() - begin) * 1e3)

    if trial.seconds:
        run()
        if times[0] < trial.seconds * 250:  # less than a quarter of the time: warm up with a second run
            run()
        times.clear()
        end = perf_counter() + trial.seconds
        while perf_counter() < end or len(times) < _MIN_RUNS:
            run()
    else:
        run()
    return Outcome(None, engine.provider, engine.threads, open_ms, median(times), len(times))


def noise(spec: TensorSpec, batch: int) -> Batch:
    """Random uint8 input with a fixed seed, in the shape that an engine declares, for ``batch`` scans."""
    shape = (batch, *(size or 1 for size in spec.shape[1:]))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
