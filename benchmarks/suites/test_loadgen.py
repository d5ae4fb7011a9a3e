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


def sleep(index: int) -> None:
    """Stand for an engine of known speed."""
    time.sleep(0.003)


def sleep_many(indices) -> None:
    for index in indices:
        sleep(index)


def run_loadgen(folder: Path, scenario: str, **settings) -> list[float]:
    """Return the latency in ms of each query since it was issued; a thread answers them in the order of their arrival.

    Queries are for ten samples. The load generator issues them until its conditions in ``settings`` are met.
    """
    wanted, logs = mlperf_loadgen.TestSettings(), mlperf_loadgen.LogSettings()
    wanted.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    wanted.mode = mlperf_loadgen.TestMode.PerformanceOnly
    for name, value in {"min_duration_ms": 1, **settings}.items():
        setattr(wanted, name, value)
    logs.log_output.outdir, logs.enable_trace = str(folder), False
    waiting, latencies = queue.SimpleQueue(), []

    def issue(batch) -> None:
        issued = time.perf_counter()
        for query in batch:
            waiting.put((issued, query))

    def answer() -> None:
        while item := waiting.get():
            issued, query = item
            sleep(query.index)
            latencies.append((time.perf_counter() - issued) * 1e3)
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(query.id, 0, 0)])

    worker = threading.Thread(target=answer)
    worker.start()
    system = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(10, 10, lambda indices: None, lambda indices: None)
    try:
        # By default it reads audit.config in the current folder, so this names a file that does not exist.
        mlperf_loadgen.StartTestWithLogSettings(system, library, wanted, logs, str(folder / "none"))
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)
        waiting.put(None)
        worker.join()
    return latencies


def test_latencies_and_rates_agree(tmp_path):
    """Both run in turn: medians and rates differ only by noise."""
    streams, rates = ([], []), ([], [])
    for _ in range(4):
        streams[0].extend(scenarios.single_stream(sleep, 10, seconds=0.2, queries=10))
        streams[1].extend(run_loadgen(tmp_path, "SingleStream", min_duration_ms=200, min_query_count=10))
        rates[0].append(scenarios.offline(sleep_many, 10, queries=40))
        # It issues rate times duration queries, 40, at once.
        latencies = run_loadgen(tmp_path, "Offline", min_query_count=1, offline_expected_qps=40_000)
        rates[1].append(len(latencies) / max(latencies) * 1e3)
    # The lower quartile is the time of the sleep when no other program has the CPU.
    ours, theirs = (np.quantile(latencies, 0.25) for latencies in streams)
    assert 0.9 < theirs / ours < 1.1
    assert 0.8 < max(rates[1]) / max(rates[0]) < 1.25


def test_server_latency_includes_the_wait(tmp_path):
    """At twice the rate that can be served, queries wait; at a tenth of it they do not."""
    ours = [np.median(scenarios.server(sleep, 10, rate=rate, queries=40).latencies_ms) for rate in (600, 30)]
    limits = {"min_query_count": 40, "max_query_count": 40}
    theirs = [np.median(run_loadgen(tmp_path, "Server", server_target_qps=rate, **limits)) for rate in (600, 30)]
    assert all(busy > 3 * idle for busy, idle in (ours, theirs))
