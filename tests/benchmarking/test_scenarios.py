"""Load scenarios: percentile bounds agree with the binomial, and each scenario issues and measures what it should."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

from mri_edge.benchmarking.scenarios import (
    Served,
    highest_rate,
    offline,
    percentile_bound,
    queries_needed,
    server,
    single_stream,
    slow_queries,
)
from mri_edge.errors import EngineError


def test_queries_needed_are_those_of_the_rules():
    # inference_rules.adoc, and what the load generator itself says when there are too few.
    assert (queries_needed(0.9), queries_needed(0.99)) == (64, 662)


@pytest.mark.parametrize(("queries", "percentile"), [(64, 0.9), (209, 0.9), (662, 0.99), (5000, 0.99), (11, 0.5)])
def test_slow_queries_are_the_binomials(queries, percentile):
    stats = pytest.importorskip("scipy.stats", reason="the peer is SciPy's binomial")
    allowed = slow_queries(queries, percentile)
    assert stats.binom.cdf(allowed, queries, 1 - percentile) <= 0.01
    assert stats.binom.cdf(allowed + 1, queries, 1 - percentile) > 0.01


def test_too_few_queries_support_no_percentile():
    assert percentile_bound([1.0] * 63, 0.9) is None
    assert percentile_bound([1.0] * 661, 0.99) is None
    assert percentile_bound([], 0.5) is None
    # With just enough, one slow query is the bound: it is never trimmed away.
    assert percentile_bound([1.0] * 63 + [50.0], 0.9) == 50.0


def test_the_bound_covers_the_true_percentile_in_99_of_100_runs():
    rng = np.random.default_rng(0)
    truth = -np.log(0.1)  # the 90th percentile of the exponential distribution
    covered = [percentile_bound(rng.exponential(1, 200).tolist(), 0.9) >= truth for _ in range(1000)]
    assert np.mean(covered) >= 0.985  # 0.99 less three standard errors would be 0.981


def test_single_stream_waits_for_each_answer():
    running, most = 0, 0

    def run(index):
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert 0 <= index < 7
        time.sleep(0.001)
        running -= 1

    latencies = single_stream(run, 7, seconds=0.05, queries=20)
    assert most == 1
    assert len(latencies) >= 20
    assert min(latencies) >= 1.0


def test_offline_has_all_samples_at_once():
    received = []

    def run(indices):
        received.append(list(indices))
        time.sleep(0.05)

    rate = offline(run, 5, queries=40)
    [batch] = received
    assert len(batch) >= 40
    assert set(batch) <= set(range(5))
    assert 0 < rate <= len(batch) / 0.05


def test_server_counts_the_time_in_line():
    """At twice the sustainable rate the queue grows with every query; at a tenth of it there is no queue."""

    def serve(rate, queries):
        served = []

        def run(index):
            start = time.perf_counter()
            time.sleep(0.004)
            served.append((start * 1e3, time.perf_counter() * 1e3))

        latencies = server(run, 5, rate=rate, queries=queries).latencies_ms
        assert len(latencies) == len(served) == queries
        return latencies, served

    latencies, served = serve(500, 80)
    # A latency is the moment of the answer less that at which the query was due, however long serving took.
    due_apart = served[-1][1] - served[0][1] - (latencies[-1] - latencies[0])
    # 79 times 2 ms on average, at random (Poisson): within four standard deviations. Serving takes twice as long.
    assert due_apart == pytest.approx(79 * 2, abs=4 * 79**0.5 * 2)
    latencies, served = serve(25, 20)
    spent = [end - start for start, end in served]
    waited = [latency - own for latency, own in zip(latencies, spent, strict=True)]
    assert statistics.median(waited) < statistics.median(spent)


@pytest.mark.parametrize(("queries", "needed"), [(3, 1), (662, 1), (1000, 2)])
def test_server_ends_as_soon_as_the_bound_cannot_be_met(queries, needed):
    """The bound of the percentile is the slowest of 662 queries and the second slowest of 1,000."""

    def run(index):
        time.sleep(0.003)

    latencies = server(run, 3, rate=1e5, queries=queries, bound_ms=2.0).latencies_ms
    assert len(latencies) == needed
    assert percentile_bound(latencies, 0.99) is None
    assert len(server(run, 3, rate=1e5, queries=queries, bound_ms=1e6).latencies_ms) == queries


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        (single_stream, {"seconds": 0.01, "queries": 3}),
        (offline, {"queries": 3}),
        (server, {"rate": 100, "queries": 3}),
    ],
)
def test_a_failure_under_load_ends_the_run(scenario, settings):
    def run(index):
        raise EngineError("the engine is gone")

    with pytest.raises(EngineError, match="the engine is gone"):
        scenario(run, 3, **settings)


@pytest.mark.parametrize(("capacity", "most"), [(100.0, 150.0), (100.0, 5000.0), (3.0, 50.0)])
def test_highest_rate_finds_the_capacity(capacity, most):
    def serve(rate):
        return Served(rate, tuple([1.0 if rate <= capacity else 99.0] * 662))

    assert highest_rate(serve, 10.0, most) == pytest.approx(capacity, rel=1 / 16)


def test_the_highest_rate_does_not_exceed_what_a_single_stream_reaches():
    asked = []

    def serve(rate):
        asked.append(rate)
        return Served(rate, (1.0,) * 662)

    assert highest_rate(serve, 500.0, 80.0) == 80.0
    assert max(asked) == 80.0


def test_highest_rate_gives_up_where_no_rate_holds():
    assert highest_rate(lambda rate: Served(rate, (99.0,) * 662), 10.0, 100.0) is None
    # Nor does a rate count if there were too few queries to judge it.
    assert highest_rate(lambda rate: Served(rate, (1.0,) * 661), 10.0, 100.0) is None
