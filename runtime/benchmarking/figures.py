"""The figures of a benchmark's row that can be compared with those of another run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .benchmark import Row, Spread, Stream

ENERGY_UNIT = "J/scan"


@dataclass(frozen=True)
class Figure:
    """A figure of a row. ``judged`` figures can fail a comparison; the others are only shown.

    ``value`` returns None if the row has no such figure.
    """

    name: str
    unit: str
    value: Callable[[Row], Spread | None]
    judged: bool = False
    bigger_is_better: bool = False


def _median(stream: Stream | None) -> Spread | None:
    return stream.median if stream else None


# Loading and the first answer happen once in a round, and depend on the disk cache: they are not judged.
FIGURES = (
    Figure("model only, SingleStream median", "ms", lambda row: _median(row.model), judged=True),
    Figure("model only, Offline", "images/s", lambda row: row.model_rate, judged=True, bigger_is_better=True),
    Figure("file to answer, SingleStream median", "ms", lambda row: _median(row.file), judged=True),
    Figure("file to answer, Offline", "images/s", lambda row: row.file_rate, judged=True, bigger_is_better=True),
    Figure("Server", "queries/s", lambda row: row.server_rate, judged=True, bigger_is_better=True),
    Figure("load", "ms", lambda row: row.load_ms),
    Figure("first answer", "ms", lambda row: row.first_ms),
    Figure("peak memory", "MiB", lambda row: row.peak_mib),
    Figure("model only, energy", ENERGY_UNIT, lambda row: row.model_joules),
    Figure("file to answer, energy", ENERGY_UNIT, lambda row: row.file_joules),
)
