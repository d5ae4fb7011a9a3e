"""Compare rules that turn the answers for slices into one for a series, on simulated series.

Usage: python scripts/series_rule.py

No patients with known diagnoses were available, so this is a calculation and not a measurement. A series is a row of
normal numbers in which neighbors are correlated. A slice is positive above a threshold that healthy slices exceed in
3.6% of cases; slices with a lesion are shifted so that 84% exceed it. These two figures are assumptions. The output is
the table in docs/series.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FALSE_POSITIVES, SENSITIVITY = 0.036, 0.84
DRAWS = 20_000
LESIONS_MM = (8, 15, 30)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Number of slices, distance between them in mm, and the correlation of neighbors."""

    slices: int
    distance: float
    correlation: float


SETTINGS = (Setting(20, 6, 0.0), Setting(20, 6, 0.8), Setting(160, 1, 0.96))


def draw(setting: Setting, rng: np.random.Generator) -> Values:
    """Return (draws, slices): an autoregressive process of order 1 with variance 1."""
    noise = rng.normal(size=(DRAWS, setting.slices))
    for number in range(1, setting.slices):
        noise[:, number] *= (1 - setting.correlation**2) ** 0.5
        noise[:, number] += setting.correlation * noise[:, number - 1]
    return noise


def highest_of_windows(values: Values, width: int, rank: int) -> Values:
    """Return the highest ``rank``-th highest value of all windows of ``width`` neighbors, for each draw."""
    windows = np.lib.stride_tricks.sliding_window_view(values, width, axis=1)
    return np.asarray(np.sort(windows, axis=2)[:, :, width - rank].max(axis=1))


def rules(setting: Setting) -> dict[str, Callable[[Values], Values]]:
    """Return each rule by name."""
    width = max(3, int(10 / setting.distance) + 1)
    return {
        "highest slice": lambda values: values.max(axis=1),
        "second highest slice": lambda values: np.sort(values, axis=1)[:, -2],
        "3 neighbors in a row": lambda values: highest_of_windows(values, 3, 3),
        "half of 3 neighbors": lambda values: highest_of_windows(values, 3, 2),
        "half of 10 mm, at least 3 (used)": lambda values: highest_of_windows(values, width, (width + 1) // 2),
    }


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    threshold = NormalDist().inv_cdf(1 - FALSE_POSITIVES)
    shift = threshold - NormalDist().inv_cdf(1 - SENSITIVITY)
    print("| slices | correlation of neighbors | rule | false positives | found, lesions of 8 / 15 / 30 mm |")
    print("| --- | --- | --- | --- | --- |")
    for setting in SETTINGS:
        healthy = draw(setting, rng)
        for name, rule in rules(setting).items():
            found = []
            for length in LESIONS_MM:
                values = draw(setting, rng)
                start = setting.slices // 2
                values[:, start : start + max(1, round(length / setting.distance))] += shift
                found.append(f"{(rule(values) >= threshold).mean():.2f}")
            rate = (rule(healthy) >= threshold).mean()
            size = f"{setting.slices}, {setting.distance:g} mm apart"
            print(f"| {size} | {setting.correlation:g} | {name} | {rate:.2f} | {' / '.join(found)} |")


if __name__ == "__main__":
    main()
