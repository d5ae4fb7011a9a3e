"""Compute the figures of heatmaps on drawn lesions: pointing game, air, mass, deletion, insertion and false spots.

All maps are judged on the grid of the network's input, and the head and the lesion are those of the drawing: nothing
here uses what the explanation itself knows about the scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mri_edge.bundles.manifest import Metric
from mri_edge.train.data.folder import Scan

from .drawn_lesions import LOOKS, Gray, Look, Mask
from .intervals import grouped_mean
from .metrics import fraction_metric
from .removal import Curves, mean_height

Heat = NDArray[np.float32]

# The peak may lie this far beside the lesion, relative to the side of the picture. It is about the spacing of the
# patches that the explanation covers, and half the size of a typical lesion.
TOLERANCE = 0.06
# A peak within this distance of the head is not in the air: two ways to find the rim differ by a pixel or two.
_RIM = 0.02
_FALSE_SPOTS = 0.05  # proportion of healthy scans that may have a hot spot
_LEAST_HEALTHY = 20  # maps, of which one may have a hot spot
# Standard deviation of the blur of the random map, relative to the side. Its spots are about as wide as lesions.
_RANDOM_GRAIN = 0.08


@dataclass(frozen=True)
class Case:
    """A lesion drawn in a healthy scan, and the map that explains the answer.

    ``number`` counts the lesions of a scan from 0. ``group`` is that of the scan. ``gray`` uint8, ``lesion`` bool,
    ``head`` bool and ``heatmap`` float32 are (H, W), on the grid of the network's input; ``aspect`` is the width of the
    scan divided by its height. ``curves`` has the curves of each map for a lesion that the model called, otherwise it
    is empty.
    """

    scan: Scan
    number: int
    group: int
    look: Look
    called: bool
    probability: float
    gray: Gray
    lesion: Mask
    head: Mask
    heatmap: Heat
    aspect: float
    curves: Mapping[str, Curves]


@dataclass(frozen=True)
class HealthyMap:
    """The map of a healthy scan without a lesion: the scan's group, and the largest value of the map."""

    group: int
    maximum: float


@dataclass(frozen=True)
class Judged:
    """How one map points at a lesion.

    ``peak`` is the position (row, column) of the highest value, or None if the map is empty; then it points nowhere.
    ``hit`` allows for ``TOLERANCE``, ``strict_hit`` does not. ``mass`` is the proportion of the map's sum that lies in
    the lesion, or None if the map is empty.
    """

    peak: tuple[int, int] | None
    hit: bool
    strict_hit: bool
    in_air: bool
    mass: float | None


def mask_to_grid(mask: Mask, shape: tuple[int, int]) -> Mask:
    """Resize a mask bool (h, w) to a grid (H, W): a pixel is set if at least half of its area is."""
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(area) >= 128


def dilate(mask: Mask, tolerance: float = TOLERANCE) -> Mask:
    """Dilate a mask bool (H, W) by ``tolerance``, relative to each side."""
    if not mask.any():
        return mask
    distance = ndimage.distance_transform_edt(~mask, sampling=(1 / mask.shape[0], 1 / mask.shape[1]))
    return np.asarray(distance <= tolerance)


def judge(heatmap: Heat, lesion: Mask, head: Mask) -> Judged:
    """Judge one map float32 (H, W) against the lesion and the head, bool (H, W)."""
    positive = np.maximum(heatmap, 0)
    total = float(positive.sum(dtype=np.float64))
    if total <= 0:
        return Judged(None, False, False, False, None)
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    peak = int(row), int(column)
    mass = float(positive[lesion].sum(dtype=np.float64)) / total
    return Judged(peak, bool(dilate(lesion)[peak]), bool(lesion[peak]), not dilate(head, _RIM)[peak], mass)


def random_map(rng: np.random.Generator, head: Mask) -> Heat:
    """Return a smooth random map float32 (H, W), 0 outside the head."""
    sides = [_RANDOM_GRAIN * side for side in head.shape]
    noise = ndimage.gaussian_filter(rng.normal(size=head.shape), sides, mode="wrap")
    return np.where(head, noise - noise.min() + 1e-6, 0).astype(np.float32)


def center_map(head: Mask) -> Heat:
    """Return a map float32 (H, W) that is highest in the center of the head, and 0 outside it.

    Networks and people look at the center, and lesions are rarely at the rim, so a map has to do better than this.
    """
    rows, columns = np.nonzero(head)
    down, right = np.mgrid[: head.shape[0], : head.shape[1]]
    distance = sum(
        ((axis - places.mean()) / max(float(places.std()), 1e-6)) ** 2
        for axis, places in ((down, rows), (right, columns))
    )
    return np.where(head, np.exp(-0.5 * np.asarray(distance, np.float64)), 0).astype(np.float32)


def reference_maps(case_seed: Sequence[int], head: Mask) -> dict[str, Heat]:
    """Return the maps that know nothing about the lesion, by name: a random one and the center of the head."""
    return {"random": random_map(np.random.default_rng([*case_seed, 1]), head), "center": center_map(head)}


def seed_of(scan: Scan, number: int) -> list[int]:
    """Return the seed of a lesion: it depends on the content of the scan alone, not on the other scans."""
    return [*(int(scan.sha256[start : start + 8], 16) for start in range(0, 32, 8)), number]


def figures(cases: Sequence[Case], healthy: Sequence[HealthyMap], hot_spot: float) -> dict[str, Metric]:
    """Compute all figures, each with its 95% interval, in the order in which they are shown.

    Proportions have Wilson's interval of grouped images, and means Student's of groups. Figures without any map,
    and means of a single group, are left out.

    Returns
    -------
    ``pointing_game``, ``pointing_game_not_called``, ``pointing_game_all``: proportion of maps with the peak in the
    dilated lesion, of the lesions that the model called, of the others, and of all. ``strict_pointing_game`` is that
    without dilation, ``random_pointing_game`` and ``center_pointing_game`` are those of the reference maps; each for
    called lesions, and with ``_all`` for all. ``air``: proportion of maps with the peak outside the head.
    ``mass_in_lesion``: mean proportion of a map's sum that lies in the lesion, of called lesions; ``lesion_share``:
    mean proportion of the head's area that the same lesions take. ``deletion``, ``insertion``: mean height of the
    curves; ``deletion_minus_random`` and so on: mean of the paired differences. ``hot_spots``: proportion of called
    lesions with a value of at least ``hot_spot`` somewhere in the map; ``false_spots``: that of healthy scans without a
    lesion.
    """
    judged = [judge(case.heatmap, case.lesion, case.head) for case in cases]
    group = np.array([case.group for case in cases], np.intp)
    called = np.array([case.called for case in cases], bool)
    hit = np.array([answer.hit for answer in judged], bool)
    strict = np.array([answer.strict_hit for answer in judged], bool)
    found: dict[str, Metric | None] = {
        "pointing_game": _fraction(hit, group, called),
        "pointing_game_not_called": _fraction(hit, group, ~called),
        "pointing_game_all": _fraction(hit, group),
        "strict_pointing_game": _fraction(strict, group, called),
        "strict_pointing_game_all": _fraction(strict, group),
    }
    others = [reference_maps(seed_of(case.scan, case.number), case.head) for case in cases]
    for name in ("random", "center"):
        hits = [judge(maps[name], case.lesion, case.head).hit for maps, case in zip(others, cases, strict=True)]
        found[f"{name}_pointing_game"] = _fraction(np.array(hits, bool), group, called)
        found[f"{name}_pointing_game_all"] = _fraction(np.array(hits, bool), group)
    hot = np.array([case.heatmap.max() >= hot_spot for case in cases], bool)
    found["air"] = _fraction(np.array([answer.in_air for answer in judged], bool), group)
    mass = np.array([np.nan if answer.mass is None else answer.mass for answer in judged], np.float64)
    share = np.array([(case.lesion & case.head).sum() / max(case.head.sum(), 1) for case in cases], np.float64)
    known = called & np.isfinite(mass)
    found["mass_in_lesion"] = _mean(mass, group, known)
    found["lesion_share"] = _mean(share, group, known)
    found |= _removal(cases, group, called)
    found["hot_spots"] = _fraction(hot, group, called)
    spots = np.array([scan.maximum >= hot_spot for scan in healthy], bool)
    found["false_spots"] = _fraction(spots, np.array([scan.group for scan in healthy], np.intp))
    return {name: metric for name, metric in found.items() if metric is not None}


def choose_hot_spot(healthy: Sequence[HealthyMap]) -> float | None:
    """Return the log-odds that at most 5% of these healthy maps reach, rounded up to a tenth; None for too few maps."""
    if len(healthy) < _LEAST_HEALTHY:
        return None
    allowed = int(_FALSE_SPOTS * len(healthy))
    highest_below = sorted(scan.maximum for scan in healthy)[-1 - allowed]
    return math.floor(10 * highest_below + 1) / 10


def by_look(cases: Sequence[Case]) -> dict[str, dict[str, Metric]]:
    """Compute the figures of each look: the called lesions, and the pointing game of called and of all lesions."""
    result: dict[str, dict[str, Metric]] = {}
    for look in LOOKS:
        of_look = [case for case in cases if case.look == look]
        group = np.array([case.group for case in of_look], np.intp)
        called = np.array([case.called for case in of_look], bool)
        hit = np.array([judge(case.heatmap, case.lesion, case.head).hit for case in of_look], bool)
        figures_of_look = {
            "called": _fraction(called, group),
            "pointing_game": _fraction(hit, group, called),
            "pointing_game_all": _fraction(hit, group),
        }
        result[look] = {name: metric for name, metric in figures_of_look.items() if metric is not None}
    return result


def _removal(cases: Sequence[Case], group: NDArray[np.intp], called: Mask) -> dict[str, Metric | None]:
    """Compute the mean heights of the deletion and insertion curves, and their differences from the references."""
    found: dict[str, Metric | None] = {}
    for kind in ("deletion", "insertion"):
        heights: dict[str, NDArray[np.float64]] = {
            name: np.array([_height(case, name, kind) for case in cases], np.float64)
            for name in ("heatmap", "random", "center")
        }
        known = called & np.isfinite(heights["heatmap"])
        found[kind] = _mean(heights["heatmap"], group, known)
        for reference in ("random", "center"):
            found[f"{kind}_minus_{reference}"] = _mean(
                heights["heatmap"] - heights[reference], group, known, lowest=-1.0
            )
    return found


def _height(case: Case, name: str, kind: str) -> float:
    curves = case.curves.get(name)
    return float("nan") if curves is None else mean_height(getattr(curves, kind))


def _fraction(hits: Mask, group: NDArray[np.intp], chosen: Mask | None = None) -> Metric | None:
    if chosen is not None:
        hits, group = hits[chosen], group[chosen]
    return fraction_metric(hits, group) if len(hits) else None


def _mean(values: NDArray[np.float64], group: NDArray[np.intp], chosen: Mask, lowest: float = 0.0) -> Metric | None:
    """Return the mean of the chosen values (N,), from ``lowest`` to 1; a single group has no interval."""
    found = grouped_mean(values[chosen], group[chosen])
    return found and replace(found, low=max(found.low, lowest), high=min(found.high, 1.0))
