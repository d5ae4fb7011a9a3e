"""Cross-check of our scenarios: the same functions on the load generator of MLPerf inference, ``mlcommons-loadgen``.

The load generator issues the queries and decides when a run is over. Latencies are measured around its callback, as it
measures them itself, so that several runs can be pooled. In Server, where queries wait in a queue, a latency starts
when the schedule issued the query.
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

from mri_edge.benchmarking.scenarios import RunMany, RunOne, Served
from mri_edge.errors import EngineError, first_line

_MIN_DURATION_MS = 1


def is_installed() -> bool:
    """Whether ``mlcommons-loadgen`` is installed."""
    return find_spec("mlperf_loadgen") is not None


def single_stream(run: RunOne, samples: int, *, seconds: float, queries: int) -> list[float]:
    """See ``scenarios.single_stream``."""
    call = _StopOnFailure(run)
    latencies: list[float] = []

    def issue(batch: Sequence[Any]) -> None:
        for query in batch:
            start = perf_counter()
            call(query.index)
            _complete(query)
            latencies.append((perf_counter() - start) * 1e3)

    def settings(wanted: Any) -> None:
        wanted.min_duration_ms = max(_MIN_DURATION_MS, int(seconds * 1e3))
        wanted.min_query_count = queries

    _test("SingleStream", issue, samples, settings)
    call.check()
    return latencies


def offline(run: RunMany, samples: int, *, queries: int) -> float:
    """See ``scenarios.offline``."""
    call = _StopOnFailure(run)
    counts: list[int] = []
    spent: list[float] = []

    def issue(batch: Sequence[Any]) -> None:
        start = perf_counter()
        call([query.index for query in batch])
        spent.append(perf_counter() - start)
        counts.append(len(batch))
        for query in batch:
            _complete(query)

    def settings(wanted: Any) -> None:
        wanted.min_duration_ms = _MIN_DURATION_MS
        wanted.min_query_count = 1
        wanted.offline_expected_qps = queries * 1e3 / _MIN_DURATION_MS  # it issues rate times duration queries

    _test("Offline", issue, samples, settings)
    call.check()
    return sum(counts) / sum(spent)


def server(run: RunOne, samples: int, *, rate: float, queries: int) -> Served:
    """See ``scenarios.server``. One thread answers the queries in the order of their arrival."""
    call = _StopOnFailure(run)
    waiting: queue.SimpleQueue[tuple[float, Any] | None] = queue.SimpleQueue()
    latencies: list[float] = []

    def issue(batch: Sequence[Any]) -> None:
        now = perf_counter()
        for query in batch:
            waiting.put((now, query))

    def answer() -> None:
        while (item := waiting.get()) is not None:
            due, query = item
            call(query.index)
            _complete(query)
            latencies.append((perf_counter() - due) * 1e3)

    def settings(wanted: Any) -> None:
        wanted.min_duration_ms = _MIN_DURATION_MS
        wanted.min_query_count = queries
        wanted.max_query_count = queries
        wanted.server_target_qps = rate

    worker = threading.Thread(target=answer, name="server")
    worker.start()
    try:
        _test("Server", issue, samples, settings)
    finally:
        waiting.put(None)
        worker.join()
    call.check()
    return Served(rate, tuple(latencies))


class _StopOnFailure:
    """Call a function until it fails once. The load generator cannot be stopped and waits for every answer."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function
        self._failure: Exception | None = None

    def __call__(self, argument: Any) -> None:
        if self._failure:
            return
        try:
            self._function(argument)
        except Exception as error:  # noqa: BLE001 (exceptions must not cross its C++ code; check() raises it)
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
            # By default it reads audit.config in the current folder: name a file that does not exist.
            mlperf_loadgen.StartTestWithLogSettings(system, library, wanted, logs, str(Path(folder) / "none"))
        finally:
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(system)
