"""Write a benchmark for github-action-benchmark, which draws a chart of each figure over the commits of a repository.

Its README describes the format for ``tool: customSmallerIsBetter``: a list of objects with ``name``, ``unit`` and
``value``, and optionally ``range`` and ``extra``. See https://github.com/benchmark-action/github-action-benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .benchmark import Report, Row, Spread
from .figures import FIGURES

# The tool has one direction for a whole file, so rates become times.
_TIMES = {"images/s": "ms/image", "queries/s": "ms/query"}


def entries(report: Report) -> list[dict[str, Any]]:
    """Return one entry for each figure of each row that ran. In all of them, smaller is better.

    The name contains the machine, provider and threads: the tool compares entries of one name, and times of different
    machines must not be compared.
    """
    return [entry for row in report.rows if not row.problem for entry in _entries(report, row)]


def _entries(report: Report, row: Row) -> Iterator[dict[str, Any]]:
    cpu = str(report.machine["cpu"]).rpartition(" (")[0]  # without its instructions
    machine = report.machine.get("board") or cpu
    subject = f"{report.model}, {row.artifact} in {row.engine} on {row.provider}, {row.threads} threads of {machine}"
    for figure in FIGURES:
        spread, unit = figure.value(row), figure.unit
        if spread is None:
            continue
        if figure.bigger_is_better:
            spread, unit = Spread(1e3 / spread.value, 1e3 / spread.high, 1e3 / spread.low), _TIMES[unit]
        yield {
            "name": f"{subject}: {figure.name}",
            "unit": unit,
            "value": spread.value,
            # The tool reads the number after the sign.
            "range": f"± {max(spread.high - spread.value, spread.value - spread.low):.3g}",
            "extra": f"lowest to highest round: {spread.low:.4g} to {spread.high:.4g} {unit}\n"
            f"{report.bundle}, profile {report.profile}\n{report.machine['cpu']}",
        }
