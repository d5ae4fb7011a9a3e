"""Classify labelled scans of one frame each, and group them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import DataError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.scans.frame import not_one_frame

from . import duplicates
from .folder import Scan
from .grouping import NEAR_DUPLICATES, Grouping, GroupRule, group_scans
from .order import measure_order, thumbnail

Track = Callable[[Iterable[Prediction | Failure], str, int], Iterable[Prediction | Failure]]

# Scans in memory at a time: the classifier decodes three batches ahead and keeps each picture until it is hashed.
_BATCH = 8


@dataclass(frozen=True)
class Classified:
    """The answers to scans.

    Attributes
    ----------
    rows
        int (N,): the places of the scans that were read.
    scans
        These scans, N of them.
    probabilities
        float32 (N, classes).
    grouping
        Their groups, None without a rule.
    unreadable
        ``{file, error, hint}`` of each other scan.
    unlike_training
        Number of scans that are unlike the training images.
    """

    rows: NDArray[np.intp]
    scans: list[Scan]
    probabilities: NDArray[np.float32]
    grouping: Grouping | None
    unreadable: list[dict[str, str]]
    unlike_training: int


def classify_scans(
    classifier: Classifier,
    scans: Sequence[Scan],
    track: Track,
    title: str,
    *,
    rule: GroupRule | None = None,
    patients: Sequence[str] | None = None,
) -> Classified:
    """Classify scans, and group them by ``rule``, with the patient of each scan if the rule names patients.

    A label is about a file, so a file of several frames counts as unreadable. ``track`` shows progress under ``title``.
    Pictures are not kept.

    Raises
    ------
    DataError
        None of the scans can be read.
    EngineError
        The engine failed.
    """
    group = rule is not None
    results = classifier.predict_batches(
        (scan.path for scan in scans), batch_size=_BATCH if group else None, keep_pixels=group
    )
    rows, probabilities, hashes, thumbnails, unreadable, unlike = [], [], [], [], [], 0
    row = -1
    for result in track(results, title, len(scans)):
        row += result.index == 0  # the first frame of the next file; a file may be named twice
        if isinstance(result, Failure) or result.frames != 1:
            if result.index == 0:
                error = result.error if isinstance(result, Failure) else not_one_frame(scans[row].path, result.frames)
                unreadable.append({"file": scans[row].file, "error": error.problem, "hint": error.hint})
            continue
        rows.append(row)
        probabilities.append(np.fromiter(result.probabilities.values(), np.float32))
        unlike += any(warning.code == "unlike_training" for warning in result.warnings)
        if result.pixels is not None:
            hashes.append(duplicates.difference_hash(result.pixels))
            thumbnails.append(thumbnail(result.pixels))
    if not rows:
        raise DataError(f"none of {len(scans)} images can be read, {unreadable[0]['error']}", "Name other scans")
    read = [scans[row] for row in rows]
    grouping = None
    if rule == GroupRule():
        grouping = Grouping(duplicates.near_duplicates(np.stack(hashes)), NEAR_DUPLICATES)
    elif rule is not None:
        order = measure_order(read, np.stack(thumbnails)) if rule.block else []
        own = [patients[row] for row in rows] if patients else None
        grouping = group_scans(read, np.stack(hashes), order, rule, own)
    return Classified(np.array(rows), read, np.stack(probabilities), grouping, unreadable, unlike)
