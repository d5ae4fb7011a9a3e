"""Format a figure with its confidence interval."""

from __future__ import annotations

HEAD = "value (95% interval)"  # heading of a column of such figures


def with_interval(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """``0.961 (0.868 to 0.989)``; ``signed``, for differences: ``+0.010 (-0.004 to +0.024)``."""
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"
