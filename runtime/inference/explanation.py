"""Explain a prediction: a map of how much the log-odds of a label fall when a part of the head is covered.

Covering (occlusion; Zeiler and Fergus, ECCV 2014) needs no gradient, so it works in every engine. Two passes with
different parts and fills are averaged, because each fill misleads in its own way. If the engine gives the contributions
of the positions of the last feature map (HiResCAM; see ``export/onnx/explanation.py``), these are averaged in as well.
docs/heatmaps.md has the measured scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mri_edge.scans.frame import Pixels

from .covering import Fill, Gray, Head, Mask

LogOdds = Callable[[Pixels], NDArray[np.float64]]
Contributions = Callable[[Pixels], "NDArray[np.float32] | None"]

# Lengths in pixels of an input with 128 x 128 pixels, scaled for other inputs. Chosen on healthy scans with lesions
# drawn at known places; the figures are from other scans.
_SIDE = 128
_STEP = 12  # between the centers of neighboring parts
_HALF_SQUARE = 12
_RADIUS = 13  # where a soft disc covers half
_SHIFT = 5  # of the copies for which contributions are averaged: less than a position of the feature map
_COPIES = 16  # per run of the engine
_SMALLEST = 1e-30  # probabilities below it count as this one: the logarithm of 0 is infinite


def explain(pixels: Pixels, log_odds: LogOdds, contributions: Contributions | None = None) -> NDArray[np.float32]:
    """Return how much each part of a scan speaks for a label: float32 (H, W), at least 0, in log-odds of the label.

    Parameters
    ----------
    pixels
        The network's input, uint8 (H, W, 3) RGB.
    log_odds
        Returns the log-odds of the label, (N,), of inputs uint8 (N, H, W, 3).
    contributions
        Returns the contributions to these log-odds, float32 (N, h, w), of inputs uint8 (N, H, W, 3), or None if it has
        none of this label.

    Outside the head the map is 0. About 140 runs of a network with 128 x 128 pixels, in batches of 16.
    """
    head = Head(pixels)
    before = float(log_odds(pixels[None])[0])
    centers = _centers(head.mask)
    maps = [
        _occlusion(head, log_odds, before, centers, _squares, "mirrored half"),
        _occlusion(head, log_odds, before, centers, _discs, "surroundings with mirrored detail"),
    ]
    if contributions is not None and (found := _average_contributions(pixels, contributions)) is not None:
        maps.append(found)
    mean: Gray = np.mean(maps, axis=0, dtype=np.float32)
    result: Gray = np.where(head.mask, np.maximum(mean, 0), np.float32(0))
    return result


def log_odds_of(probabilities: NDArray[np.float32], label: int) -> NDArray[np.float64]:
    """Return the log-odds (N,) of a label from probabilities (N, classes).

    They are finite, and exact also for a probability that float32 rounds to 1.
    """
    others = np.delete(probabilities.astype(np.float64), label, axis=1).sum(axis=1)
    its_own = probabilities[:, label].astype(np.float64)
    result: NDArray[np.float64] = np.log(np.maximum(its_own, _SMALLEST)) - np.log(np.maximum(others, _SMALLEST))
    return result


def _centers(mask: Mask) -> NDArray[np.float32]:
    """Return the centers (N, 2) of the parts: a grid, as far as it lies in the head."""
    step = max(1, round(_STEP * _unit(mask.shape)))
    grid = np.zeros_like(mask)
    grid[step // 2 :: step, step // 2 :: step] = True
    return np.argwhere(grid & mask).astype(np.float32)


def _occlusion(
    head: Head,
    log_odds: LogOdds,
    before: float,
    centers: NDArray[np.float32],
    shape: Callable[[NDArray[np.float32], tuple[int, int]], Gray],
    fill: Fill,
) -> Gray:
    """Return the mean fall of the log-odds at each pixel, over the parts that cover it."""
    size = head.mask.shape
    fall, covered = np.zeros((2, *size), np.float32)
    for chunk in _chunks(centers, size):
        masks = shape(chunk, size)
        falls = np.maximum(before - log_odds(head.cover(masks, fill)), 0).astype(np.float32)
        fall += np.tensordot(falls, masks, 1)
        covered += masks.sum(axis=0)
    result: Gray = fall / (covered + np.float32(0.15))
    return result


def _chunks(centers: NDArray[np.float32], size: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Yield a few centers at a time, fewer for a larger input, so that the copies always take as much memory."""
    count = max(1, min(_COPIES, _COPIES * _SIDE**2 // (size[0] * size[1])))
    for start in range(0, len(centers), count):
        yield centers[start : start + count]


def _squares(centers: NDArray[np.float32], size: tuple[int, int]) -> Gray:
    rows, columns = _distances(centers, size)
    half = _HALF_SQUARE * _unit(size)
    return ((np.abs(rows) <= half) & (np.abs(columns) <= half)).astype(np.float32)


def _discs(centers: NDArray[np.float32], size: tuple[int, int]) -> Gray:
    """Return discs that fade out at the edge: 1 at the center, one half at the radius."""
    rows, columns = _distances(centers, size)
    squared = (rows**2 + columns**2) / np.float32(_RADIUS * _unit(size)) ** 2
    result: Gray = np.exp2(-(np.minimum(squared, 10) ** 2))
    return result


def _distances(centers: NDArray[np.float32], size: tuple[int, int]) -> tuple[Gray, Gray]:
    """Return the distances of all rows (N, H, 1) and columns (N, 1, W) from the centers."""
    rows, columns = (np.arange(length, dtype=np.float32) for length in size)
    return rows[None, :, None] - centers[:, 0, None, None], columns[None, None, :] - centers[:, 1, None, None]


def _average_contributions(pixels: Pixels, contributions: Contributions) -> Gray | None:
    """Return the mean of the contributions over nine shifted copies, at the resolution of the input.

    A position of the feature map covers many pixels, and pooling makes the contributions depend on where its windows
    begin. Both average out.
    """
    height, width, _ = pixels.shape
    step = max(1, round(_SHIFT * _unit((height, width))))
    shifts = [(down, right) for down in (-step, 0, step) for right in (-step, 0, step)]
    found = contributions(np.stack([_shifted(pixels, *shift) for shift in shifts]))
    if found is None:
        return None
    rows, columns = _enlarging(found.shape[1], height), _enlarging(found.shape[2], width)
    # A cell's value is what its whole area contributes. It is not divided among its pixels, so that it compares with
    # the fall for a covered part, which is as large.
    enlarged = zip(rows @ found @ columns.T, shifts, strict=True)
    mean: Gray = np.mean([_shifted(each, -down, -right) for each, (down, right) in enlarged], axis=0)
    return mean


def _shifted(picture: NDArray, down: int, right: int) -> NDArray:  # type: ignore[type-arg]
    """Move a picture (H, W, ...); what was outside is 0."""
    height, width = picture.shape[:2]
    result = np.zeros_like(picture)
    result[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = picture[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return result


def _enlarging(cells: int, pixels: int) -> Gray:
    """Return a matrix (pixels, cells) that interpolates linearly between the centers of cells."""
    each = pixels / cells
    centers = (np.arange(cells) + 0.5) * each - 0.5
    weights = np.maximum(0, 1 - np.abs((np.arange(pixels)[:, None] - centers) / each))
    result: Gray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def _unit(size: tuple[int, ...]) -> float:
    return min(size) / _SIDE
