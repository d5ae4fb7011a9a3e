"""Changes of framing, gray levels and quality that must not change a model's answer: the stress tests."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from mri_edge.scans.preprocessing import Preprocessing

from .mri import Grey, Slice, cut, match_histogram, resize

# (slice at its own size, a slice of another label, preprocessing) -> network input, gray
Change = Callable[[Slice, Grey, Preprocessing], Grey]


def _add_margin(scan: Slice, other: Grey, preprocessing: Preprocessing) -> Grey:
    height, width = scan.grey.shape
    down, across = height // 5, width // 5
    return resize(cut(scan.grey, (-down, -across, height + down, width + across)), preprocessing)


def _crop_to_head(scan: Slice, other: Grey, preprocessing: Preprocessing) -> Grey:
    return resize(cut(scan.grey, scan.head), preprocessing)


def _map_levels(curve: Callable[[np.ndarray], np.ndarray]) -> Change:
    table = np.clip(np.rint(255 * curve(np.arange(256) / 255)), 0, 255).astype(np.uint8)
    return lambda scan, other, preprocessing: table[resize(scan.grey, preprocessing)]


def _half_resolution(scan: Slice, other: Grey, preprocessing: Preprocessing) -> Grey:
    picture = Image.fromarray(resize(scan.grey, preprocessing))
    small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def _poor_jpeg(scan: Slice, other: Grey, preprocessing: Preprocessing) -> Grey:
    encoded = io.BytesIO()
    Image.fromarray(resize(scan.grey, preprocessing)).save(encoded, "JPEG", quality=15)
    return np.asarray(Image.open(encoded))


def _take_other_levels(scan: Slice, other: Grey, preprocessing: Preprocessing) -> Grey:
    return match_histogram(resize(scan.grey, preprocessing), other)


CHANGES: dict[str, Change] = {
    "black margin of a fifth": _add_margin,
    "cropped to the head": _crop_to_head,
    "half as bright": _map_levels(lambda level: level / 2),
    "gamma 0.6": _map_levels(lambda level: level**0.6),
    "gamma 1.6": _map_levels(lambda level: level**1.6),
    "half the resolution": _half_resolution,
    "JPEG quality 15": _poor_jpeg,
    "greys of another label's slice": _take_other_levels,
}
