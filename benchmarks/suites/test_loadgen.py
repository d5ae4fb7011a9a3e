"""Our scenarios measure the same as the load generator of MLPerf inference, ``mlcommons-loadgen``."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mri_edge.benchmarking import scenarios

mlperf_loadgen = pytest.importorskip("mlperf_loadgen", reason="needs mlcommons-loadgen")


def run_test(folder: Path, scenario: str, issue, **settings) -> None:
    """Let the load generator issue queries for ten samples, by ``issue``, until its conditions are met."""
    wanted, logs = mlperf_loadgen.TestSettings(), mlperf_loadgen.LogSettings()
    wanted.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    wanted.mode = mlperf_loadgen.TestMode.PerformanceOnly
    for name, value in {"min_duration_ms": 1, **settings}.items():
        setattr(wanted, name, value)
    logs.log_output.outdir, logs.enable_trace = str(folder), False
    system = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(10, 10, lambda indices: None, lambda indices: None)
    try:
        # By default it reads audit.config in the current folder, so this names a file that does not exist.
        mlperf_loadgen.StartTestWithLogSettings(system, library, wanted, logs, str(folder / "none"))
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)


def complete(query) -> None:
    mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query.id, 0, 0)])


def sleep(index: int) -> None:
    """Stand for an engine of known speed."""
    time.sleep(0.003)


def sleep_many(indices) -> None:
    for index in indices:
        sleep(index)


def single_stream(folder: Path) -> list[float]:
    """Return latencies in ms, measured around the callback as the load generator does."""
    latencies = []

    def issue(batch) -> None:
        for query in batch:
            start = time.perf_counter()
            sleep(query.index)
            complete(query)
            latencies.append((time.perf_counter() - start) * 1e3)

    run_test(folder, "SingleStream", issue, min_duration_ms=200, min_query_count=10)
    return latencies


def offline(folder: Path) -> float:
    """Return samples per second."""
    rates = []

    def issue(batch) -> None:
        start = time.perf_counter()
        sleep_many([query.index for query in batch])
        rates.append(len(batch) / (time.perf_counter() - start))
        for query in batch:
            complete(query)

    # It issues rate times duration queries: 40.
    run_test(folder, "Offline", issue, min_query_count=1, offline_expected_qps=40_000)
    return max(rates)


def server(folder: Path, rate: float) -> list[float]:
    """Return latencies in ms since each query was issued. A thread answers them in the order of their arrival."""
    waiting, latencies = queue.SimpleQueue(), []

    def answer() -> None:
        while item := waiting.get():
            due, query = item
            sleep(query.index)
            complete(query)
            latencies.append((time.perf_counter() - due) * 1e3)

    worker = threading.Thread(target=answer)
    worker.start()
    try:
        counts = {"min_query_count": 40, "max_query_count": 40}
        issue = lambda batch: [waiting.put((time.perf_counter(), query)) for query in batch]  # noqa: E731
        run_test(folder, "Server", issue, server_target_qps=rate, **counts)
    finally:
        waiting.put(None)
        worker.join()
    return latencies


def test_latencies_and_rates_agree(tmp_path):
    """Both run in turn: medians and rates differ only by noise."""
    streams, rates = ([], []), ([], [])
    for _ in range(4):
        streams[0].extend(scenarios.single_stream(sleep, 10, seconds=0.2, queries=10))
        streams[1].extend(single_stream(tmp_path))
        rates[0].append(scenarios.offline(sleep_many, 10, queries=40))
        rates[1].append(offline(tmp_path))
    # The lower quartile is the time of the sleep when no other program has the CPU.
    ours, theirs = (np.quantile(latencies, 0.25) for latencies in streams)
    assert 0.9 < theirs / ours < 1.1
    assert 0.8 < max(rates[1]) / max(rates[0]) < 1.25


def test_server_latency_includes_the_wait(tmp_path):
    """At twice the rate that can be served, queries wait; at a tenth of it they do not."""
    busy = (np.median(server(tmp_path, 600)), np.median(scenarios.server(sleep, 10, rate=600, queries=40).latencies_ms))
    idle = (np.median(server(tmp_path, 30)), np.median(scenarios.server(sleep, 10, rate=30, queries=40).latencies_ms))
    assert all(waited > 3 * served for waited, served in zip(busy, idle, strict=True))
