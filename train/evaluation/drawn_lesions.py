"""Draw a lesion of a given look at a known place in a healthy slice, to score heatmaps.

This generator shares no code with ``transforms.lesions``, which draws the lesions of the training: a network may learn
how those drawings look (their rims, textures and outlines), and would then be scored on what it has memorized. A fault
in shared code would also go unnoticed, because training and score would agree about it. Here outlines are ellipses that
noise deforms, levels follow the brightness around the lesion, and lesions stay inside the skull.

The drawings are crude and do not model any disease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Look = Literal["ring", "solid", "edema", "dark", "small", "edge"]
LOOKS: tuple[Look, ...] = get_args(Look)

Gray = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_Field = NDArray[np.float64]

# All lengths are relative to the size of the head, the root of height times width of its box.
_RADIUS = (0.06, 0.13)
_SMALL_RADIUS = (0.035, 0.055)
_SKULL = 0.07  # thickness of scalp and skull, in which no lesion is drawn
_INNER_RIM = (0.075, 0.11)  # depth of the center of a lesion at the edge
_CHANGED = 0.35  # a pixel belongs to the lesion if the drawing replaces at least this much of it
_SMALLEST_HEAD = 200  # pixels; below that, thin structures are the head


@dataclass(frozen=True)
class DrawnLesion:
    """A slice with a lesion: gray levels uint8 (H, W), where the lesion is, bool (H, W), and its look."""

    gray: Gray
    mask: Mask
    look: Look


def head_mask(gray: Gray) -> Mask:
    """Return the filled head of a slice: uint8 (H, W) -> bool (H, W).

    A pixel belongs to it if foreground lies on both sides of it in its row and in its column. The foreground is
    brighter than 12 and than 12% of the 99th percentile; specks of fewer than 3 x 3 pixels do not count.

    The score must not depend on the head that the explanation finds, so this is a definition of its own.
    """
    bright = gray > max(12.0, 0.12 * float(np.percentile(gray, 99)))
    foreground = ndimage.binary_opening(bright, np.ones((3, 3)))
    if foreground.sum() < _SMALLEST_HEAD:
        foreground = bright
    return _between(foreground, 1) & _between(foreground, 0)


def draw_lesion(rng: np.random.Generator, gray: Gray, look: Look) -> DrawnLesion | None:
    """Draw one lesion of random place, size, outline and texture in a slice uint8 (H, W).

    Returns None if the picture has no head in which such a lesion could lie.
    """
    head = head_mask(gray)
    if not head.any():
        return None
    rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    size = float(np.sqrt((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
    depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1] / size
    radius = rng.uniform(*(_SMALL_RADIUS if look == "small" else _RADIUS))
    place = _place(rng, depth, radius, look)
    if place is None:
        return None
    shape = _Shape.at(rng, place, radius * size, head if look == "edge" else None)
    field = gray.astype(np.float64)
    roughness = rng.uniform(0.08, 0.25)
    inside_outline = shape.inside(rng, gray.shape, roughness)
    softness = rng.uniform(0.04, 0.12)
    # A lesion ends at the skull. The edge of a lesion there is steeper than the one inside the brain.
    limit = 0.05 if look == "edge" else _SKULL
    inside_skull = _step(ndimage.gaussian_filter((depth > limit).astype(np.float64), max(0.5, 0.01 * size)) - 0.5, 0.12)
    opacity = _step(inside_outline, softness) * inside_skull * rng.uniform(0.8, 1)
    levels = _Levels.around(rng, field, head, opacity)
    halo = np.zeros_like(field)
    if look == "edema":
        halo = shape.halo(rng, gray.shape) * inside_skull * rng.uniform(0.45, 0.75)
    connected = _largest_part(np.maximum(opacity, halo) > _CHANGED)
    opacity, halo = opacity * connected, halo * connected
    if look == "edema":
        field = field * (1 - halo) + levels.edema(rng, gray.shape, size) * halo
    filling = _filling(rng, look, inside_outline, softness, levels, size)
    drawn = np.asarray(np.clip(np.rint(field * (1 - opacity) + filling * opacity), 0, 255), np.uint8)
    return DrawnLesion(drawn, np.maximum(opacity, halo) > _CHANGED, look)


def _between(foreground: Mask, axis: int) -> Mask:
    """Return what lies between the first and the last foreground pixel of each line along an axis."""
    reached = np.maximum.accumulate
    return np.asarray(reached(foreground, axis) & np.flip(reached(np.flip(foreground, axis), axis), axis))


def _largest_part(mask: Mask) -> Mask:
    """Return the pixels (H, W) that are nearer to the largest connected part of a mask than to its other parts.

    Rough noise may cut off a piece of a lesion, which would be a second lesion.
    """
    parts, count = ndimage.label(mask)
    if count < 2:
        return np.ones_like(mask)
    largest = 1 + int(np.argmax(np.bincount(parts[mask])[1:]))
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return np.asarray(parts[tuple(nearest)] == largest)


def _place(rng: np.random.Generator, depth: _Field, radius: float, look: Look) -> tuple[int, int] | None:
    """Choose the center (row, column) among the pixels of a suitable depth, or return None if there are none."""
    if look == "edge":
        allowed = (depth > _INNER_RIM[0]) & (depth <= _INNER_RIM[1])
    else:
        allowed = depth > _SKULL + radius
        if allowed.sum() < 20:  # a narrow head
            allowed = depth > 0.05 + radius / 2
    rows, columns = np.nonzero(allowed)
    if not len(rows):
        return None
    chosen = int(rng.integers(len(rows)))
    return int(rows[chosen]), int(columns[chosen])


@dataclass(frozen=True)
class _Shape:
    """An ellipse: its center (row, column), its radii in pixels, and the angle of the first one to a row."""

    center: tuple[float, float]
    along: float
    across: float
    angle: float

    @classmethod
    def at(cls, rng: np.random.Generator, center: tuple[int, int], radius: float, head: Mask | None) -> _Shape:
        """Choose stretch and angle; with ``head``, the ellipse lies along the rim of the head."""
        if head is None:
            stretch, angle = float(np.exp(rng.uniform(-0.25, 0.25))), float(rng.uniform(0, np.pi))
        else:
            middle = np.mean(np.nonzero(head), axis=1)
            stretch = float(rng.uniform(1.2, 1.7))
            angle = float(np.arctan2(center[0] - middle[0], center[1] - middle[1]) + np.pi / 2)
        return cls(center, radius * np.sqrt(stretch), radius / np.sqrt(stretch), angle)

    def inside(self, rng: np.random.Generator, shape: tuple[int, ...], roughness: float) -> _Field:
        """Return a field (H, W) that is positive inside the deformed ellipse, in units of its radius."""
        rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
        down, right = rows - self.center[0], columns - self.center[1]
        first = np.cos(self.angle) * right + np.sin(self.angle) * down
        second = np.cos(self.angle) * down - np.sin(self.angle) * right
        distance = np.hypot(first / self.along, second / self.across)
        deformation = _noise(rng, shape, max(3.0, 0.8 * min(self.along, self.across)))
        # The noise fades out with the distance: otherwise it would draw further spots far away.
        return np.asarray(1 - distance + roughness * deformation * np.exp(-0.5 * (distance / 1.2) ** 2))

    def halo(self, rng: np.random.Generator, shape: tuple[int, ...]) -> _Field:
        """Return the opacity, 0 to 1, of edema: a larger, rougher and softer disk around nearly the same center."""
        radius = float(np.sqrt(self.along * self.across))
        row, column = (float(place + rng.normal(0, 0.3) * radius) for place in self.center)
        wide = _Shape((row, column), 1.7 * radius, 1.7 * radius, self.angle)
        return _step(wide.inside(rng, shape, 0.45), 0.15)


@dataclass(frozen=True)
class _Levels:
    """Gray levels for a lesion: bright and dark parts, and the median and the bright tissue of the head."""

    bright: float
    dark: float
    median: float
    tissue: float

    @classmethod
    def around(cls, rng: np.random.Generator, field: _Field, head: Mask, opacity: _Field) -> _Levels:
        """Choose levels that differ from the tissue that the lesion covers by at least 30% of the head's median."""
        median, tissue = (float(level) for level in np.percentile(field[head], (50, 92)))
        covered = float((field * opacity).sum() / max(float(opacity.sum()), 1e-6))
        bright = min(245.0, max(rng.uniform(0.95, 1.4) * tissue, covered + 0.3 * median))
        dark = max(3.0, min(rng.uniform(0.2, 0.55) * median, covered - 0.3 * median))
        return cls(bright, dark, median, tissue)

    def edema(self, rng: np.random.Generator, shape: tuple[int, ...], size: float) -> _Field:
        """Return the levels (H, W) of edema, which is bright or dark, as in T2 and in T1 weighted scans."""
        is_bright = rng.random() < 0.5
        level = self.tissue * rng.uniform(0.85, 1.1) if is_bright else self.median * rng.uniform(0.4, 0.65)
        return level + 0.05 * self.median * _texture(rng, shape, size)


def _filling(
    rng: np.random.Generator, look: Look, inside: _Field, softness: float, levels: _Levels, size: float
) -> _Field:
    """Return the levels (H, W) inside a lesion."""
    texture = _texture(rng, inside.shape, size)
    if look == "dark":
        return np.asarray(levels.dark + 0.06 * levels.median * texture)
    if look == "ring" or (look == "edema" and rng.random() < 0.5):
        core = _step(inside - rng.uniform(0.25, 0.5), softness)
        return np.asarray(levels.bright * (1 - core) + levels.dark * core + 0.05 * levels.median * texture)
    grain = rng.uniform(0, 0.04) * levels.median * _noise(rng, inside.shape, max(1.5, 0.012 * size))
    return np.asarray(levels.bright * (1 + rng.uniform(0.03, 0.1) * texture) + grain)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> _Field:
    return _noise(rng, shape, max(2.0, rng.uniform(0.02, 0.05) * size))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], grain: float) -> _Field:
    """Return smooth noise (H, W) with a standard deviation of about 1 and grains of ``grain`` pixels."""
    coarse = rng.normal(size=[max(3, int(np.ceil(side / grain)) + 2) for side in shape]).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC), np.float64)


def _step(signed: _Field, width: float) -> _Field:
    """Return a logistic step: 1 for large positive values (inside), 0 for large negative ones."""
    return np.asarray(1 / (1 + np.exp(-np.clip(signed / width, -30, 30))))
