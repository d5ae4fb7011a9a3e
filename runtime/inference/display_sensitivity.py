"""Warn where another window would change the answer.

The window in a file was chosen for people, and some other viewer would show the same slice with another one. An answer
that depends on the choice deserves no trust. The check reads the file again and runs the network again, so it is only
made where it is likely to matter: for answers near the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.files import special_file_kind
from mri_edge.scans.frame import Frame, Pixels
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

# Largest distance of a probability from the threshold at which an answer is checked.
NEAR = 0.2


def to_check(frames: Sequence[Frame], positive: Sequence[float], threshold: float) -> list[int]:
    """Return the positions of the frames that are checked.

    These are frames near the threshold, alone in their file, which is a regular one, and shown with its own window. In
    a file of many frames, finding one again takes as long as reading those before it.

    Parameters
    ----------
    frames
        Frames that were classified.
    positive
        Probability of the positive label of each.
    """
    return [
        index
        for index, (frame, probability) in enumerate(zip(frames, positive, strict=True))
        if frame.metadata and frame.count == 1 and abs(probability - threshold) <= NEAR and _uses_file_window(frame)
    ]


def _uses_file_window(frame: Frame) -> bool:
    records = [value for key, value in frame.metadata.items() if not key.startswith("_")]
    from_file = any(record["window"]["from"] == "file" for record in records)
    return from_file and frame.source is not None and special_file_kind(frame.source) is None


def with_percentiles(frame: Frame, reading: ReadOptions, preprocessing: Preprocessing) -> Pixels | None:
    """Return a frame as the network's input, uint8 (h, w, 3), with a window by percentiles; None if it is gone."""
    assert frame.source is not None  # noqa: S101 (see ``to_check``)
    try:
        again = next(iter(readers.read(frame.source, replace(reading, window="auto"))), None)
    except (InputError, MemoryError):
        return None
    return None if again is None else preprocessing.resize_picture(again.pixels)


def warning_for(label: str, probability: float, other: float, threshold: float) -> tuple[ResultWarning, ...]:
    """Return the warning if two windows lie on either side of the threshold."""
    if (probability >= threshold) == (other >= threshold):
        return ()
    reason = f"depends on the window: with percentiles instead of the file's, p({label}) is {other:.3f}"
    return (ResultWarning("display_sensitive", reason, round(other, 3), threshold),)
