"""One engine, tried in a process of its own: whatever dies there is a finding, not a crash.

``attempt`` starts a new Python, which opens one artefact in one engine and runs it on noise;
``doctor`` asks whether it works, ``tune`` how fast it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from .engines import Batch, engine_file, open_engine
from .errors import MriEdgeError
from .manifest import TensorSpec

# Python puts the current folder first in its path, where anything may lie: take it out before any import.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from mri_edge.trial import main; main()"
# How a process dies of a library, by its exit code: minus the signal's number on POSIX, else NTSTATUS.
_ILLEGAL = "illegal instruction: the library was built for a newer CPU"
_CRASHED = "crashed: the library does not fit this system or driver"
_DEATHS = {
    -4: f"{_ILLEGAL} (SIGILL)",
    -6: f"{_CRASHED} (SIGABRT)",
    -9: "killed, most likely for want of memory (SIGKILL)",
    -11: f"{_CRASHED} (SIGSEGV)",
    0xC000001D: f"{_ILLEGAL} (STATUS_ILLEGAL_INSTRUCTION)",
    0xC0000005: f"{_CRASHED} (STATUS_ACCESS_VIOLATION)",
}
_LEAST_RUNS = 3  # of a slow machine, however short the time


@dataclass(frozen=True)
class Trial:
    """What to try. Without a ``path`` the engine's library is imported and nothing is opened.

    ``seconds`` is how long to repeat the run after two that do not count; 0: run once.
    """

    engine: str
    path: str | None = None
    provider: str = "auto"
    threads: int | None = None
    batch: int = 1
    seconds: float = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it: ``problem`` is None if all went well.

    ``ms`` is the median of ``runs`` runs, ``open_ms`` the time until the engine was open.
    """

    problem: str | None = None
    provider: str | None = None
    threads: int = 0
    open_ms: float = 0
    ms: float = 0
    runs: int = 0


def attempt(trial: Trial, *, time_limit: float) -> Outcome:
    """Run a trial in a new process; never raises for what happens in there. ``time_limit`` in seconds."""
    try:
        done = subprocess.run(  # noqa: S603 (our own program, no shell)
            [sys.executable, "-c", _PROGRAM, json.dumps(asdict(trial))],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(f"no answer within {time_limit:.0f} s")
    if done.returncode:
        return Outcome(_last_words(done.returncode, done.stderr))
    try:
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        return Outcome(f"its answer cannot be read: {done.stdout[-80:]!r}")


def perform(trial: Trial) -> Outcome:
    """Run a trial in this process."""
    if trial.path is None:
        if module := engine_file(trial.engine).MODULE:
            import_module(module)
        return Outcome()
    start = perf_counter()
    engine = open_engine(Path(trial.path), engine=trial.engine, provider=trial.provider, threads=trial.threads)
    open_ms = (perf_counter() - start) * 1e3
    batch = noise(engine.input, trial.batch)
    times: list[float] = []

    def run() -> None:
        begun = perf_counter()
        engine.run(batch)
        times.append((perf_counter() - begun) * 1e3)

    if trial.seconds:
        run()
        if times[0] < trial.seconds * 250:  # a quarter of the time: a second one to warm up costs little
            run()
        times.clear()
        until = perf_counter() + trial.seconds
        while perf_counter() < until or len(times) < _LEAST_RUNS:
            run()
    else:
        run()
    return Outcome(None, engine.provider, engine.threads, open_ms, median(times), len(times))


def noise(spec: TensorSpec, batch: int) -> Batch:
    """Seeded uint8 values in the shape that an engine's input declares, for ``batch`` scans."""
    shape = (batch, *(size or 1 for size in spec.shape[1:]))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _last_words(code: int, errors: str) -> str:
    if code in _DEATHS:
        return _DEATHS[code]
    if code < 0:
        return f"killed by signal {-code}"
    return (errors.strip().splitlines() or [f"failed without a word, exit code {code}"])[-1]


def main() -> None:
    """Entry of the new process: a trial as JSON in, an outcome as the last line out."""
    trial = Trial(**json.loads(sys.argv[1]))
    outcome: dict[str, Any]
    try:
        outcome = asdict(perform(trial))
    except (MriEdgeError, ImportError) as error:
        outcome = {"problem": str(error)}
    print(json.dumps(outcome))
