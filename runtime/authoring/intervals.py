"""Wilson's score interval, which training, evaluation and export put beside every proportion."""

from __future__ import annotations

from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95% confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, total: int) -> Interval:
    """Proportion ``successes / total`` with its 95% score interval; 0 with [0, 1] if ``total`` is 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    from scipy.stats import binomtest

    if total == 0:
        return Interval(0.0, 0.0, 1.0)
    bounds = binomtest(int(successes), int(total)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / total, float(bounds.low), float(bounds.high))
