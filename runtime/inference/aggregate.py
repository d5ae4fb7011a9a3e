"""Turn the answers for the slices of a series into one answer, and those for the series of a study.

The highest probability of all slices would mislead: at 3.6% false positives a slice, 20 independent slices call half of
the healthy series positive. A lesion shows in neighboring slices, so the score of a series is the highest probability
that at least half of the slices in some window of neighbors reach. A single outlier cannot raise it, and a single miss
inside a lesion does not lower it. The window has a length in mm, because 3 slices are 15 mm of one series and 3 mm of
another. ``scripts/series_rule.py`` compares the rule with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mri_edge.bundles.manifest import Manifest, SeriesRule

DEFAULT_RULE = SeriesRule(
    window_mm=10.0, least_slices=3, threshold=None, calibration="default, not calibrated on patients"
)
"""Of bundles without a rule of their own. No patients with known diagnoses were available to choose these values."""

_SAME_POSITION_MM = 0.02
_ROUNDING_MM = 0.1  # a window of 9.95 mm is one of 10 mm


@dataclass(frozen=True)
class Score:
    """The score of a series, and the first and the last slice of the window that it comes from."""

    value: float
    first: int
    last: int


def rule_of(manifest: Manifest) -> SeriesRule:
    """Return the rule for series of a bundle."""
    return manifest.series or DEFAULT_RULE


def series_score(
    positions: Sequence[float | None], probabilities: Sequence[float | None], rule: SeriesRule
) -> Score | None:
    """Return the score of a series, or None if no slice has an answer.

    Slices at the same position count once, with their mean. A series that is shorter than a window is one window: the
    score of one slice is its probability, that of two the higher one.

    Parameters
    ----------
    positions
        mm along the normal in rising order, or None for slices without a position, which count as places of their own.
    probabilities
        Of the positive label, in the same order; None for slices without an answer.
    """
    places = _places(positions, probabilities)
    if not places:
        return None
    best: Score | None = None
    for first, last in _windows(places, rule):
        window = places[first : last + 1]
        value = sorted((place.probability for place in window), reverse=True)[(len(window) + 1) // 2 - 1]
        if best is None or value > best.value:
            best = Score(value, window[0].first, window[-1].last)
    return best


def study_score(scores: Sequence[float]) -> float | None:
    """Return the second highest score of three or more series, otherwise the highest; None without a score.

    The series of a study show the same head, and each adds its own false positives.
    """
    return sorted(scores, reverse=True)[1 if len(scores) > 2 else 0] if scores else None


@dataclass
class _Place:
    """The slices at one position."""

    position: float | None
    first: int
    last: int
    total: float
    count: int

    @property
    def probability(self) -> float:
        return self.total / self.count


def _places(positions: Sequence[float | None], probabilities: Sequence[float | None]) -> list[_Place]:
    places: list[_Place] = []
    for number, (position, probability) in enumerate(zip(positions, probabilities, strict=True)):
        if probability is None:
            continue
        last = places[-1] if places else None
        if (
            last is not None
            and position is not None
            and last.position is not None
            and position - last.position <= _SAME_POSITION_MM
        ):
            last.last, last.total, last.count = number, last.total + probability, last.count + 1
        else:
            places.append(_Place(position, number, number, probability, 1))
    return places


def _windows(places: Sequence[_Place], rule: SeriesRule) -> list[tuple[int, int]]:
    """Return the first and last place of each window: the shortest runs that are long enough, or all places."""
    windows = []
    for first in range(len(places)):
        last = first + rule.least_slices - 1
        while last < len(places) and _length(places[first], places[last]) < rule.window_mm - _ROUNDING_MM:
            last += 1
        if last >= len(places):
            break
        windows.append((first, last))
    return windows or [(0, len(places) - 1)]


def _length(first: _Place, last: _Place) -> float:
    """Return the mm between two places; without positions any window is long enough."""
    return float("inf") if first.position is None or last.position is None else last.position - first.position
