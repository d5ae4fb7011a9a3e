"""Change the framing, gray levels and quality of slices: at random for training, in fixed ways for stress tests.

Healthy and tumor slices of public collections come from different scanners, windows, crops and JPEG encoders. A
network that relies on these instead of the brain is right on its own data and wrong elsewhere, so each of them is
randomized for every picture, regardless of its label.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mri_edge.scans.frame import Pixels, as_rgb
from mri_edge.scans.framing import Box, Gray, cut, head_box, square_around, to_gray, widen
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import ScanViews

from .random_filter import random_filter

_Field = NDArray[np.float32]

DEFAULT = ScanViews()


@dataclass(frozen=True)
class Slice:
    """A slice at its own size: gray levels uint8 (H, W), and the box (top, left, bottom, right) of the head."""

    gray: Gray
    head: Box

    @classmethod
    def from_pixels(cls, pixels: Pixels) -> Slice:
        """Convert uint8 (H, W, 3) RGB, as ``mri_edge.scans.readers.load`` returns it."""
        gray = to_gray(pixels)
        return cls(gray, head_box(gray))


def resize(gray: Gray, preprocessing: Preprocessing) -> Gray:
    """Frame and resize uint8 (H, W) to the size of ``preprocessing``, as the device does."""
    return preprocessing.resize_picture(as_rgb(gray))[:, :, 0]


def _resize_section(gray: Gray, preprocessing: Preprocessing) -> Gray:
    return preprocessing.resize_sections([as_rgb(gray)])[0, :, :, 0]


def match_histogram(gray: Gray, reference: Gray) -> Gray:
    """Map gray levels so that their distribution becomes the reference's (Gonzalez & Woods, section 3.3)."""
    own = np.cumsum(np.bincount(gray.ravel(), minlength=256)) / gray.size
    wanted = np.cumsum(np.bincount(reference.ravel(), minlength=256)) / reference.size
    return np.interp(own, wanted, np.arange(256)).astype(np.uint8)[gray]


def augment(
    rng: np.random.Generator,
    scan: Slice,
    reference: Gray,
    preprocessing: Preprocessing,
    change: Callable[[np.random.Generator, Gray], Gray] | None = None,
    transforms: ScanViews = DEFAULT,
) -> Gray:
    """Make one random view of a slice.

    Parameters
    ----------
    rng
        Source of all randomness; the same state gives the same view.
    scan
        The slice at its own size.
    reference
        A slice uint8 of any label, to whose gray levels the view may be matched.
    preprocessing
        Size and resampling kernel of the view.
    change
        Applied to the reframed slice before the other transforms; ``lesions.draw_lesion`` is one.
    transforms
        Probability and range of each transform.

    Returns
    -------
    uint8 (height, width), contiguous.
    """
    view = _resize_section(_reframe(rng, scan, transforms, preprocessing.framing), preprocessing)
    if change is not None:
        view = change(rng, view)
    if rng.random() < transforms.flip_probability:
        view = view[:, ::-1]
    if rng.random() < transforms.rotation_probability:
        angle = rng.uniform(-transforms.rotation, transforms.rotation)
        view = np.asarray(_picture(view).rotate(angle, Image.Resampling.BILINEAR))
    if rng.random() < transforms.untouched_probability:
        return np.ascontiguousarray(view)
    if rng.random() < transforms.histogram_probability:
        view = match_histogram(view, reference)
    field = view.astype(np.float32)
    if rng.random() < transforms.coil_probability:
        field = _uneven_coil(rng, field, transforms)
    if rng.random() < transforms.window_probability:
        field = _window(rng, field, transforms)
    # Recipes without filters draw the same views as before there were any.
    if transforms.filter_probability and rng.random() < transforms.filter_probability:
        field = random_filter(rng, field)
    field = _degrade(rng, field, transforms)
    if rng.random() < transforms.writing_probability:
        field = _write_at_edges(rng, field)
    return _eight_bits(field)


def _reframe(rng: np.random.Generator, scan: Slice, transforms: ScanViews, framing: str) -> Gray:
    """Crop or pad around the head or the picture, which changes position, size and aspect ratio.

    Where the device frames the head, the result is a square, and only files that squash the head change the aspect.
    """
    if rng.random() < transforms.head_crop_probability:
        box, (least, most) = scan.head, transforms.head_margin
    else:
        box, (least, most) = (0, 0, *scan.gray.shape), transforms.picture_margin
    box = widen(box, *rng.uniform(least, most, 4))
    if framing == "picture":
        return cut(scan.gray, box)
    view = cut(scan.gray, square_around(box))
    if rng.random() < transforms.squash_probability:
        sides = np.array(view.shape[::-1], np.float64)
        sides[rng.integers(2)] *= rng.uniform(*transforms.squash)
        view = np.asarray(_picture(view).resize((round(sides[0]), round(sides[1])), Image.Resampling.BILINEAR))
        view = cut(view, square_around((0, 0, *view.shape)))
    return view


def _window(rng: np.random.Generator, field: _Field, transforms: ScanViews) -> _Field:
    """Change window, gamma, contrast and brightness, as another console or viewer might."""
    bright = float(np.percentile(field, 99.5)) + 1
    black = rng.uniform(*transforms.black_level) * bright
    white = rng.uniform(*transforms.white_level) * bright
    windowed = (field - black) / (white - black) if rng.random() < 0.7 else field / 255
    toned = np.clip(windowed, 0, 1) ** np.exp(rng.uniform(-transforms.log_gamma, transforms.log_gamma)) * rng.uniform(
        *transforms.contrast
    )
    if rng.random() < 0.3:
        toned += rng.uniform(0, 0.12)
    return np.asarray(np.clip(toned * 255, 0, 255), np.float32)


def _uneven_coil(rng: np.random.Generator, field: _Field, transforms: ScanViews) -> _Field:
    """Multiply by a smooth second-order bias field, as that of a receive coil: up to 1.35 in both directions."""
    down, across = np.meshgrid(*(np.linspace(-1, 1, size) for size in field.shape), indexing="ij")
    terms = np.stack([across, down, across * down, across**2 - 1 / 3, down**2 - 1 / 3])
    bias = np.tensordot(rng.normal(size=len(terms)), terms, 1)
    bias *= rng.uniform(*transforms.coil_strength) / (np.abs(bias).max() + 1e-6)
    return np.asarray(np.clip(field * np.exp(bias), 0, 255), np.float32)


def _degrade(rng: np.random.Generator, field: _Field, transforms: ScanViews = DEFAULT) -> _Field:
    """Blur, lose resolution or sharpen; add noise; encode as JPEG."""
    if rng.random() < transforms.focus_probability:
        field = np.asarray(_refocus(rng, _picture(_eight_bits(field))), np.float32)
    if rng.random() < transforms.noise_probability:
        field = field + rng.normal(0, rng.uniform(*transforms.noise), field.shape).astype(np.float32)
    if rng.random() < transforms.jpeg_probability:
        encoded = io.BytesIO()
        quality = int(rng.integers(*transforms.jpeg_quality))
        _picture(_eight_bits(field)).save(encoded, "JPEG", quality=quality)
        field = np.asarray(Image.open(encoded), np.float32)
    return field


def _refocus(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    kind = rng.random()
    if kind < 0.6:
        return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if kind < 0.8:
        scale = rng.uniform(0.44, 0.88)
        small = (max(8, int(picture.width * scale)), max(8, int(picture.height * scale)))
        return picture.resize(small, Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR)
    return picture.filter(ImageFilter.UnsharpMask(radius=1, percent=int(rng.integers(40, 160)), threshold=0))


def _write_at_edges(rng: np.random.Generator, field: _Field) -> _Field:
    """Draw one to four bright strokes near an edge, where consoles print names and scales."""
    field = field.copy()
    for _ in range(int(rng.integers(1, 5))):
        thick, long, depth = int(rng.integers(1, 4)), int(rng.integers(2, 24)), int(rng.integers(0, 8))
        # Rotate the chosen edge to the top. rot90 returns a view, so this changes ``field`` itself.
        turned = np.rot90(field, int(rng.integers(4)))
        start = int(rng.integers(0, turned.shape[1]))
        if rng.random() < 0.5:
            thick, long = long, thick
        turned[depth : depth + thick, start : start + long] = rng.uniform(100, 255)
    return field


def _picture(gray: Gray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(gray))


def _eight_bits(field: _Field) -> Gray:
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


# Changes that must not change a model's answer: the stress tests of a cross-validation.

# Called with a slice at its own size, a slice of another label and the preprocessing; returns gray network input.
Change = Callable[[Slice, Gray, Preprocessing], Gray]


def _add_margin(scan: Slice, other: Gray, preprocessing: Preprocessing) -> Gray:
    height, width = scan.gray.shape
    down, across = height // 5, width // 5
    return resize(cut(scan.gray, (-down, -across, height + down, width + across)), preprocessing)


def _crop_to_head(scan: Slice, other: Gray, preprocessing: Preprocessing) -> Gray:
    return resize(cut(scan.gray, scan.head), preprocessing)


def _map_levels(curve: Callable[[np.ndarray], np.ndarray]) -> Change:
    table = np.clip(np.rint(255 * curve(np.arange(256) / 255)), 0, 255).astype(np.uint8)
    return lambda scan, other, preprocessing: table[resize(scan.gray, preprocessing)]


def _half_resolution(scan: Slice, other: Gray, preprocessing: Preprocessing) -> Gray:
    picture = Image.fromarray(resize(scan.gray, preprocessing))
    small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def _poor_jpeg(scan: Slice, other: Gray, preprocessing: Preprocessing) -> Gray:
    encoded = io.BytesIO()
    Image.fromarray(resize(scan.gray, preprocessing)).save(encoded, "JPEG", quality=15)
    return np.asarray(Image.open(encoded))


def _take_other_levels(scan: Slice, other: Gray, preprocessing: Preprocessing) -> Gray:
    return match_histogram(resize(scan.gray, preprocessing), other)


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
