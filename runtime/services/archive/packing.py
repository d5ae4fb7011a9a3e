"""Pack the slices of a scan into bytes, which travel from the process that reads them to one that classifies them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

from mri_edge.inference.prediction import Failure
from mri_edge.inference.preparing import Prepared
from mri_edge.scans.frame import Pixels, as_rgb, gray_channel

from .reading import Result


@dataclass(frozen=True)
class _Gray:
    """One channel of a gray picture, uint8 (H, W): a third of the bytes."""

    channel: Pixels


def packed(slices: list[Result]) -> bytes:
    """Return the slices as bytes. A gray picture takes one channel."""
    return pickle.dumps([_smaller(result) for result in slices], protocol=5)


def _smaller(result: Result) -> Any:
    if isinstance(result, Failure):
        return result
    frame = result.frame
    metadata = {key: value for key, value in frame.metadata.items() if not key.startswith("_")}
    gray = gray_channel(frame.pixels)
    pixels: Any = frame.pixels if gray is None else _Gray(gray)
    return replace(result, frame=replace(frame, pixels=pixels, metadata=metadata))


def unpacked(content: bytes) -> list[Result]:
    """Return what ``packed`` was given."""
    slices: list[Result] = pickle.loads(content)  # noqa: S301 (from a process of this run)
    return [
        replace(result, frame=replace(result.frame, pixels=as_rgb(result.frame.pixels.channel)))
        if isinstance(result, Prepared) and isinstance(result.frame.pixels, _Gray)
        else result
        for result in slices
    ]
