"""Load scenarios SingleStream, Offline and Server, as the MLPerf inference rules define them.

Definitions and early stopping follow https://github.com/mlcommons/inference_policies, ``inference_rules.adoc``
("Scenarios"; "Early Stopping"). ``benchmarks/suites/test_loadgen.py`` compares them with MLCommons' load generator.
No result is an MLPerf result: those require MLCommons' models, durations and review.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

import numpy as np

CONFIDENCE = 0.99
PERCENTILES = (0.5, 0.9, 0.99)
_SERVER_PERCENTILE = 0.99
# Limits of the search in highest_rate: the rate is halved at most 7 times, then bisected 4 times.
_HALVINGS = 7
_BISECTIONS = 4
_SEED = 0

# Run the sample with that index, or the samples with those indices, and return when the answer is available.
RunOne = Callable[[int], object]
RunMany = Callable[[Sequence[int]], object]


@dataclass(frozen=True)
class Served:
    """One Server run: its rate in queries per second, and the latency of each query since it was due, in ms."""

    rate: float
    latencies_ms: tuple[float, ...]


def percentile_bound(latencies: Sequence[float], percentile: float) -> float | None:
    """Upper bound of a latency percentile at 99% confidence; None if there are too few queries.

    This is the early stopping estimate of the MLPerf inference rules: the ``t``-th highest latency, for the largest
    ``t`` such that a system with a higher true percentile shows ``t`` or fewer slow queries in at most 1 of 100 runs
    (binomial). It needs 11 queries for the median, 64 for the 90th and 662 for the 99th percentile.

    Parameters
    ----------
    latencies
        Latencies of all queries, in any order.
    percentile
        Between 0 and 1.
    """
    allowed = slow_queries(len(latencies), percentile)
    return sorted(latencies)[-allowed] if allowed else None


def slow_queries(queries: int, percentile: float) -> int:
    """The largest t with P(Binomial(queries, 1 - percentile) <= t) <= 1%; 0 if even 1 is too many."""
    slow = 1 - percentile
    total, allowed = 0.0, 0
    for count in range(queries + 1):
        logarithm = (
            math.lgamma(queries + 1)
            - math.lgamma(count + 1)
            - math.lgamma(queries - count + 1)
            + count * math.log(slow)
            + (queries - count) * math.log(percentile)
        )
        total += math.exp(logarithm)
        if total > 1 - CONFIDENCE:
            break
        allowed = count
    return allowed


def queries_needed(percentile: float) -> int:
    """Smallest number of queries that supports a percentile: 64 for 0.9, 662 for 0.99."""
    queries = 1
    while not slow_queries(queries, percentile):
        queries += 1
    return queries


def single_stream(run: RunOne, samples: int, *, seconds: float, queries: int) -> list[float]:
    """Send each query when the last one is done, for at least ``seconds`` and ``queries``.

    Returns the latency of each query in milliseconds.
    """
    latencies: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(latencies) < queries:
        start = perf_counter()
        run(len(latencies) % samples)
        latencies.append((perf_counter() - start) * 1e3)
    return latencies


def offline(run: RunMany, samples: int, *, queries: int) -> float:
    """Hand over all ``queries`` samples at the start. Returns samples per second."""
    start = perf_counter()
    run([index % samples for index in range(queries)])
    return queries / (perf_counter() - start)


def server(run: RunOne, samples: int, *, rate: float, queries: int, bound_ms: float = math.inf) -> Served:
    """Send queries at random times (Poisson), ``rate`` per second on average; each waits for those before it.

    The run ends as soon as too many queries took longer than ``bound_ms`` for the 99th percentile to meet it.
    """
    too_many = max(1, slow_queries(queries, _SERVER_PERCENTILE))
    late = 0
    due = np.cumsum(np.random.default_rng(_SEED).exponential(1 / rate, queries))
    start = perf_counter()
    latencies = []
    for index, moment in enumerate(due):
        if (early := start + moment - perf_counter()) > 0:
            sleep(early)
        run(index % samples)
        latencies.append((perf_counter() - start - moment) * 1e3)
        late += latencies[-1] > bound_ms
        if late == too_many:
            break
    return Served(rate, tuple(latencies))


def highest_rate(run: Callable[[float], Served], bound_ms: float, single_stream_rate: float) -> float | None:
    """Find the highest Poisson rate with a 99th percentile of at most ``bound_ms``; None if there is none.

    ``run`` serves at a rate in queries per second. Above ``single_stream_rate`` the queue grows without end, even if
    one run is too short to exceed the bound. The search starts at half of it, doubles or halves, then bisects to
    within a sixteenth.
    """

    def meets_bound(rate: float) -> bool:
        bound = percentile_bound(run(rate).latencies_ms, _SERVER_PERCENTILE)
        return bound is not None and bound <= bound_ms

    good, bad, rate = 0.0, single_stream_rate, single_stream_rate / 2
    if meets_bound(rate):
        if meets_bound(single_stream_rate):
            return single_stream_rate
        good = rate
    else:
        while not good:
            bad, rate = rate, rate / 2
            if rate < single_stream_rate / 2**_HALVINGS:
                return None
            if meets_bound(rate):
                good = rate
    for _ in range(_BISECTIONS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if meets_bound(middle) else (good, middle)
    return good
