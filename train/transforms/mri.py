"""Views of a slice with other framing, gray levels and quality: random ones for training, fixed ones as stress tests.

Healthy and tumor slices of public collections come from different scanners, windows, crops and JPEG encoders. A
network that reads those instead of the brain is right on its own data and wrong elsewhere, so each of them is
randomized for every picture, regardless of the label.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mri_edge.scans.frame import Pixels
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import ScanViews

Grey = NDArray[np.uint8]
_Field = NDArray[np.float32]
_Box = tuple[int, int, int, int]

DEFAULT = ScanViews()


@dataclass(frozen=True)
class Slice:
    """A slice at its own size: grey uint8 (H, W), and the box (top, left, bottom, right) of the head in it."""

    grey: Grey
    head: _Box

    @classmethod
    def from_pixels(cls, pixels: Pixels) -> Slice:
        """From uint8 (H, W, 3) RGB, as ``mri_edge.scans.readers.picture.load`` gives it."""
        grey = to_grey(pixels)
        return cls(grey, head_box(grey))


def to_grey(pixels: Pixels) -> Grey:
    """Mean of the channels: uint8 (..., 3) -> uint8 (...), contiguous."""
    if pixels.strides[-1] == 0:  # grey seen as three channels
        return np.ascontiguousarray(pixels[..., 0])
    return np.asarray(np.rint(pixels.mean(axis=-1, dtype=np.float32)), np.uint8)


def head_box(grey: Grey) -> _Box:
    """Return the box (top, left, bottom, right) of what is brighter than background, or the whole picture if tiny.

    A row or column is in the box if over 3% of its pixels are above the background level, so that writing in a
    corner does not count.
    """
    bright = grey > background_level(grey)
    rows = np.flatnonzero(bright.mean(axis=1) > 0.03)
    columns = np.flatnonzero(bright.mean(axis=0) > 0.03)
    if min(len(rows), len(columns)) < 8:
        return (0, 0, *grey.shape)
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def background_level(grey: Grey) -> float:
    """Return the gray level up to which a pixel is background: 12% of the picture's bright end."""
    return max(12.0, 0.12 * float(np.percentile(grey, 99)))


def cut(grey: Grey, box: _Box) -> Grey:
    """Return the pixels in ``box``, at least 8 x 8; the box may extend beyond the picture, which is black there."""
    top, left, bottom, right = box
    bottom, right = max(bottom, top + 8), max(right, left + 8)
    height, width = grey.shape
    out = np.zeros((bottom - top, right - left), np.uint8)
    first_row, last_row = max(top, 0), min(bottom, height)
    first_column, last_column = max(left, 0), min(right, width)
    out[first_row - top : last_row - top, first_column - left : last_column - left] = grey[
        first_row:last_row, first_column:last_column
    ]
    return out


def resize(grey: Grey, preprocessing: Preprocessing) -> Grey:
    """Resize as the device does: uint8 (H, W) -> uint8 (height, width) of ``preprocessing``."""
    return preprocessing.resize_picture(np.broadcast_to(grey[:, :, None], (*grey.shape, 3)))[:, :, 0]


def match_histogram(grey: Grey, reference: Grey) -> Grey:
    """Map gray levels so that their distribution becomes the reference's (Gonzalez & Woods, section 3.3)."""
    own = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    wanted = np.cumsum(np.bincount(reference.ravel(), minlength=256)) / reference.size
    return np.interp(own, wanted, np.arange(256)).astype(np.uint8)[grey]


def augment(
    rng: np.random.Generator,
    scan: Slice,
    reference: Grey,
    preprocessing: Preprocessing,
    change: Callable[[np.random.Generator, Grey], Grey] | None = None,
    transforms: ScanViews = DEFAULT,
) -> Grey:
    """Draw one random view of a slice.

    Parameters
    ----------
    rng
        Source of all randomness: the same state gives the same view.
    scan
        The slice at its own size.
    reference
        A slice of any label, uint8, whose gray-level distribution may be transferred to the view.
    preprocessing
        Gives size and resampling kernel of the view.
    change
        Applied to the reframed slice before everything else, such as ``lesions.draw_lesion``.
    transforms
        Probability and range of each transform.

    Returns
    -------
    uint8 (height, width), contiguous.
    """
    view = resize(_reframe(rng, scan, transforms), preprocessing)
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
    field = _degrade(rng, field, transforms)
    if rng.random() < transforms.writing_probability:
        field = _write_at_edges(rng, field)
    return _eight_bits(field)


def _reframe(rng: np.random.Generator, scan: Slice, transforms: ScanViews) -> Grey:
    """Crop or pad, around the head or the picture; this changes position, size and aspect ratio."""
    if rng.random() < transforms.head_crop_probability:
        (top, left, bottom, right), (least, most) = scan.head, transforms.head_margin
    else:
        (top, left, bottom, right), (least, most) = (0, 0, *scan.grey.shape), transforms.picture_margin
    height, width = bottom - top, right - left
    margin = rng.uniform(least, most, 4)
    return cut(
        scan.grey,
        (
            int(top - margin[0] * height),
            int(left - margin[1] * width),
            int(bottom + margin[2] * height),
            int(right + margin[3] * width),
        ),
    )


def _window(rng: np.random.Generator, field: _Field, transforms: ScanViews) -> _Field:
    """Change window, gamma, contrast and brightness, as another console or viewer would."""
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
    """Multiply by a smooth factor, up to 1.35 in both directions: the bias field of a receive coil, second order."""
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
        # Rotate so that the chosen edge is at the top; rot90 returns a view, so ``field`` itself is changed.
        turned = np.rot90(field, int(rng.integers(4)))
        start = int(rng.integers(0, turned.shape[1]))
        if rng.random() < 0.5:
            thick, long = long, thick
        turned[depth : depth + thick, start : start + long] = rng.uniform(100, 255)
    return field


def _picture(grey: Grey) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(grey))


def _eight_bits(field: _Field) -> Grey:
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


# Changes that must not change a model's answer: the stress tests of a cross-validation.

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
