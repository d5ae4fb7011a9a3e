"""Compute and format the 95% interval of the figures of training, evaluation and export."""

from __future__ import annotations

from dataclasses import dataclass

CONFIDENCE = 0.95
HEAD = "value (95% interval)"  # heading of a column that ``with_interval`` fills


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


def with_interval(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """``0.961 (0.868 to 0.989)``; ``signed``, for differences: ``+0.010 (-0.004 to +0.024)``."""
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"
