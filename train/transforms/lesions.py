"""Draw lesions on healthy slices, so that a network cannot learn the look of the scanner instead of the tumor.

In public collections, nearly all tumors come from one kind of scanner and the healthy slices from another, so a network
trained on them learns the difference between scanners. A healthy slice with a drawn lesion is a counterexample: it
looks like the other healthy slices but has the label of a tumor. The drawings are crude (masses, rings, mixed textures,
with or without edema) and do not model any disease.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mri_edge.scans.framing import Gray, background_level, head_box

_Field = NDArray[np.float64]

# Mean change inside the lesion, relative to the head's median gray level, below which it would be invisible.
_VISIBLE = 0.2


def draw_lesion(rng: np.random.Generator, gray: Gray) -> Gray:
    """Draw one lesion of random position, size, shape and kind inside the head of a slice uint8 (H, W)."""
    field = gray.astype(np.float64)
    inside = field > background_level(gray)
    if inside.sum() < 64:  # a nearly empty picture has no head to draw in
        return gray
    middle, bright = np.percentile(field[inside], (50, 92))
    distance, radius = _outline(rng, gray)
    edge = rng.uniform(0.4, 1.8)
    head = _filled(inside)
    mask = _soft(radius - distance, edge) * head
    drawn = field
    if rng.random() < 0.45:
        drawn = _add_edema(rng, drawn, distance, radius, edge, head, middle, bright)
    around = float((drawn * mask).sum() / max(mask.sum(), 1e-6))
    high = max(rng.uniform(0.8, 1.35) * bright, around + 0.35 * middle)
    low = max(0.0, min(rng.uniform(0.15, 0.6) * middle, around - 0.3 * middle))
    texture = _texture(rng, gray.shape)
    kind = rng.random()
    if kind < 0.45:  # a bright mass
        filling = high * (1 + rng.uniform(0.02, 0.12) * texture)
    elif kind < 0.75:  # a bright ring around a dark core
        core = _soft(radius * rng.uniform(0.65, 0.88) - distance, edge)
        filling = high * (1 - core) + low * core + rng.uniform(0, 0.1) * middle * texture
    elif kind < 0.92:  # bright and dark parts
        blend = _soft(texture, 0.5)
        filling = high * blend + low * (1 - blend)
    else:  # a dark mass
        filling = low + rng.uniform(0, 0.1) * middle * texture
    opacity = rng.uniform(0.7, 1.0) * mask
    result = drawn * (1 - opacity) + filling * opacity
    if (np.abs(result - field) * mask).sum() < _VISIBLE * middle * mask.sum():
        result = drawn * (1 - mask) + high * mask
    return np.asarray(np.clip(np.rint(result), 0, 255), np.uint8)


def _outline(rng: np.random.Generator, gray: Gray) -> tuple[_Field, _Field]:
    """Return the distance of each pixel from the lesion's center, and the lesion's radius in its direction."""
    top, left, bottom, right = head_box(gray)
    height, width = bottom - top, right - left
    row = (top + bottom) / 2 + rng.uniform(-0.33, 0.33) * height
    column = (left + right) / 2 + rng.uniform(-0.33, 0.33) * width
    size = min(height, width) * np.exp(rng.uniform(np.log(0.07), np.log(0.2)))
    down, across = np.mgrid[: gray.shape[0], : gray.shape[1]] - np.array([row, column])[:, None, None]
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.3, 0.3))
    first = (np.cos(turn) * across + np.sin(turn) * down) * stretch
    second = (np.cos(turn) * down - np.sin(turn) * across) / stretch
    angle = np.arctan2(second, first)
    lobes = sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.hypot(first, second), size * (1 + lobes)


def _add_edema(
    rng: np.random.Generator,
    field: _Field,
    distance: _Field,
    radius: _Field,
    edge: float,
    head: _Field,
    middle: float,
    bright: float,
) -> _Field:
    halo = _soft(radius * rng.uniform(1.25, 1.9) - distance, 3 * edge) * head * rng.uniform(0.3, 0.7)
    level = rng.uniform(0.9, 1.25) * bright if rng.random() < 0.5 else rng.uniform(0.4, 0.75) * middle
    return field * (1 - halo) + level * halo


def _filled(inside: NDArray[np.bool_]) -> _Field:
    """Return the mask of the head, 0 to 1, with dark spaces filled and a soft rim."""
    picture = Image.fromarray(inside.astype(np.uint8) * 255)
    closed = picture.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MinFilter(11))
    return np.asarray(closed.filter(ImageFilter.GaussianBlur(1)), np.float64) / 255


def _soft(signed_distance: _Field, width: float) -> _Field:
    """Return a logistic step: 1 for large positive distances (inside), 0 for large negative ones."""
    return 1 / (1 + np.exp(-np.clip(signed_distance / width, -30, 30)))


def _texture(rng: np.random.Generator, shape: tuple[int, ...]) -> _Field:
    """Return smooth noise with a standard deviation of about 1 and grains of 3 to 10 pixels."""
    grain = rng.uniform(3, 10)
    coarse = rng.normal(size=[max(2, round(size / grain)) for size in shape]).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float64)
