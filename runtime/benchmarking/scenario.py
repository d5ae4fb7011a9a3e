"""How a model is loaded with queries: SingleStream, Offline and Server, as the MLPerf inference rules define them.

Definitions and early stopping are those of https://github.com/mlcommons/inference_policies,
``inference_rules.adoc`` ("Scenarios"; "Early Stopping"). No result here is an MLPerf result: those need
that body's models, durations and review.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Protocol

import numpy as np

CONFIDENCE = 0.99
PERCENTILES = (0.5, 0.9, 0.99)
SERVER_PERCENTILE = 0.99
# More than this is never asked of the Server search: by then it is the search that is wrong.
_HALVINGS = 7
_BISECTIONS = 4
_SEED = 0

# Runs the sample with that index, or those samples, and returns when the answer is there.
RunOne = Callable[[int], object]
RunMany = Callable[[Sequence[int]], object]


@dataclass(frozen=True)
class Served:
    """One Server run: latencies from the moment that each query was due, in milliseconds."""

    rate: float
    latencies_ms: tuple[float, ...]


class Driver(Protocol):
    """Who issues the queries: this module's own loops, or ``mlcommons-loadgen``."""

    name: str

    def single_stream(self, run: RunOne, samples: int, *, seconds: float, queries: int) -> list[float]:
        """Next query when the last is done; milliseconds of each, for ``seconds`` and ``queries`` at the least."""
        ...

    def offline(self, run: RunMany, samples: int, *, queries: int) -> float:
        """All of ``queries`` samples are there at the start; samples a second."""
        ...

    def server(self, run: RunOne, samples: int, *, rate: float, queries: int) -> Served:
        """Queries come at random (Poisson), ``rate`` a second on average, whether or not the last is done."""
        ...


def percentile_bound(latencies: Sequence[float], percentile: float) -> float | None:
    """What the percentile does not exceed, at 99% confidence; None if there are too few queries to tell.

    The early stopping estimate of the MLPerf inference rules: the ``t``-th highest latency, for the largest
    ``t`` at which a system whose true percentile were higher would show ``t`` or fewer slow queries in
    at most 1 of 100 runs (binomial). It needs 11 queries for the median, 64 for the 90th and 662 for the 99th
    percentile, and never lies below the plain percentile by more than chance.

    Parameters
    ----------
    latencies
        Of all queries, none left out, in any order.
    percentile
        Between 0 and 1.
    """
    allowed = slow_queries(len(latencies), percentile)
    return sorted(latencies)[-allowed] if allowed else None


def slow_queries(queries: int, percentile: float) -> int:
    """The largest t with P(Binomial(queries, 1 - percentile) <= t) <= 1%; 0 if there is none from 1 on."""
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
    """The fewest queries that support a percentile: 64 for 0.9, 662 for 0.99."""
    queries = 1
    while not slow_queries(queries, percentile):
        queries += 1
    return queries


class OwnDriver:
    """The scenarios in plain loops, for machines that have no wheel of ``mlcommons-loadgen``."""

    name = "own"

    def single_stream(self, run: RunOne, samples: int, *, seconds: float, queries: int) -> list[float]:
        """See ``Driver``."""
        latencies: list[float] = []
        until = perf_counter() + seconds
        while perf_counter() < until or len(latencies) < queries:
            start = perf_counter()
            run(len(latencies) % samples)
            latencies.append((perf_counter() - start) * 1e3)
        return latencies

    def offline(self, run: RunMany, samples: int, *, queries: int) -> float:
        """See ``Driver``."""
        start = perf_counter()
        run([index % samples for index in range(queries)])
        return queries / (perf_counter() - start)

    def server(self, run: RunOne, samples: int, *, rate: float, queries: int) -> Served:
        """See ``Driver``; queries wait in line for the one before them."""
        due = np.cumsum(np.random.default_rng(_SEED).exponential(1 / rate, queries))
        start = perf_counter()
        latencies = []
        for index, moment in enumerate(due):
            if (early := start + moment - perf_counter()) > 0:
                sleep(early)
            run(index % samples)
            latencies.append((perf_counter() - start - moment) * 1e3)
        return Served(rate, tuple(latencies))


def highest_rate(run: Callable[[float], Served], bound_ms: float, most: float) -> float | None:
    """The highest Poisson rate found whose 99th percentile stays under ``bound_ms``; None if none does.

    ``run`` serves at a rate in queries a second. ``most`` is what a single stream reaches: beyond it the line
    grows without end, even if it stays under a generous bound for as long as a run takes. The search
    begins at half of that, doubles or halves, then bisects to within a sixteenth.
    """

    def holds(rate: float) -> bool:
        bound = percentile_bound(run(rate).latencies_ms, SERVER_PERCENTILE)
        return bound is not None and bound <= bound_ms

    good, bad, rate = 0.0, most, most / 2
    if holds(rate):
        if holds(most):
            return most
        good = rate
    else:
        while not good:
            bad, rate = rate, rate / 2
            if rate < most / 2**_HALVINGS:
                return None
            if holds(rate):
                good = rate
    for _ in range(_BISECTIONS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good
