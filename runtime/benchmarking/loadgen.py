"""The real load generator of MLPerf inference, ``mlcommons-loadgen``, behind the face of our own driver.

It issues the queries and decides when a run is over. Each latency is taken around its callback, as it
takes it itself, so that several runs can be pooled; for Server, where queries wait in line, from the
moment that its schedule issued the query.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from mri_edge.device.machine import installed
from mri_edge.errors import EngineError, first_line

from .scenario import RunMany, RunOne, Served

PACKAGE = "mlcommons-loadgen"
_LEAST_MS = 1


def is_installed() -> bool:
    """Whether ``mlcommons-loadgen`` is here."""
    return find_spec("mlperf_loadgen") is not None


class LoadgenDriver:
    """See ``scenario.Driver``."""

    def __init__(self) -> None:
        self.name = f"{PACKAGE} {installed((PACKAGE,)).get(PACKAGE, '')}".strip()

    def single_stream(self, run: RunOne, samples: int, *, seconds: float, queries: int) -> list[float]:
        """See ``Driver``."""
        careful = _Careful(run)
        latencies: list[float] = []

        def issue(batch: Sequence[Any]) -> None:
            for query in batch:
                start = perf_counter()
                careful(query.index)
                _complete(query)
                latencies.append((perf_counter() - start) * 1e3)

        def settings(wanted: Any) -> None:
            wanted.min_duration_ms = max(_LEAST_MS, int(seconds * 1e3))
            wanted.min_query_count = queries

        _test("SingleStream", issue, samples, settings)
        careful.check()
        return latencies

    def offline(self, run: RunMany, samples: int, *, queries: int) -> float:
        """See ``Driver``."""
        careful = _Careful(run)
        counts: list[int] = []
        spent: list[float] = []

        def issue(batch: Sequence[Any]) -> None:
            start = perf_counter()
            careful([query.index for query in batch])
            spent.append(perf_counter() - start)
            counts.append(len(batch))
            for query in batch:
                _complete(query)

        def settings(wanted: Any) -> None:
            wanted.min_duration_ms = _LEAST_MS
            wanted.min_query_count = 1
            wanted.offline_expected_qps = queries * 1e3 / _LEAST_MS  # it issues what this rate and time ask for

        _test("Offline", issue, samples, settings)
        careful.check()
        return sum(counts) / sum(spent)

    def server(self, run: RunOne, samples: int, *, rate: float, queries: int) -> Served:
        """See ``Driver``; one thread answers, in the order in which the queries come."""
        careful = _Careful(run)
        line: queue.SimpleQueue[tuple[float, Any] | None] = queue.SimpleQueue()
        latencies: list[float] = []

        def issue(batch: Sequence[Any]) -> None:
            now = perf_counter()
            for query in batch:
                line.put((now, query))

        def answer() -> None:
            while (waiting := line.get()) is not None:
                due, query = waiting
                careful(query.index)
                _complete(query)
                latencies.append((perf_counter() - due) * 1e3)

        def settings(wanted: Any) -> None:
            wanted.min_duration_ms = _LEAST_MS
            wanted.min_query_count = queries
            wanted.max_query_count = queries
            wanted.server_target_qps = rate

        worker = threading.Thread(target=answer, name="server")
        worker.start()
        try:
            _test("Server", issue, samples, settings)
        finally:
            line.put(None)
            worker.join()
        careful.check()
        return Served(rate, tuple(latencies))


class _Careful:
    """Calls a function until it fails once: the load generator cannot be stopped, and waits for every answer."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function
        self._failure: Exception | None = None

    def __call__(self, argument: Any) -> None:
        if self._failure:
            return
        try:
            self._function(argument)
        except Exception as error:  # noqa: BLE001 (none may cross its C++ code; check() raises it)
            self._failure = error

    def check(self) -> None:
        if self._failure:
            raise EngineError(f"failed under load: {first_line(self._failure)}") from self._failure


def _complete(query: Any) -> None:
    import mlperf_loadgen

    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query.id, 0, 0)])


def _test(scenario: str, issue: Callable[[Sequence[Any]], None], samples: int, settings: Callable[[Any], None]) -> None:
    import mlperf_loadgen

    wanted = mlperf_loadgen.TestSettings()
    wanted.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    wanted.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings(wanted)
    with tempfile.TemporaryDirectory() as folder:
        logs = mlperf_loadgen.LogSettings()
        logs.log_output.outdir = folder
        logs.enable_trace = False
        system = mlperf_loadgen.ConstructSUT(issue, lambda: None)
        library = mlperf_loadgen.ConstructQSL(samples, samples, lambda indices: None, lambda indices: None)
        try:
            # It would read settings from an audit.config in the current folder: name a file that is not there.
            mlperf_loadgen.StartTestWithLogSettings(system, library, wanted, logs, str(Path(folder) / "none"))
        finally:
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(system)
