"""Draw the demo scans of ``examples/``: slices of the MNI152 template, and phantoms with lesions drawn on them.

    python scripts/make_demo_scans.py [FOLDER]

The template is the average T1 brain of 152 people, from the ``nilearn`` wheel (extra ``dev``; see ``examples/NOTICE``).
It has no skull, so a skull and a scalp are drawn around it. Fixed seeds give the same pictures in every run. They only
show that the program runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nilearn
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TEMPLATE = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

SIZE = 256  # pixels
FIELD = 232.0  # field of view in mm, as usual for a head scan
CENTER = (0.0, -18.0)  # mm, right and forward: the middle of the template's brain

Picture = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Lesion:
    """A lesion as it looks with contrast agent; lengths in mm, gray levels in [0, 1].

    ``rim`` is the width of the bright border (the whole lesion is bright if it equals ``radius``), ``edema`` the width
    of the darker swelling around it, ``push`` how far it displaces the tissue.
    """

    x: float
    y: float
    radius: float
    rim: float
    edema: float
    push: float
    bright: float = 0.9
    core: float = 0.12


@dataclass(frozen=True)
class Scan:
    """One picture: height of the slice in MNI space (mm), contrast of the brain, lesions."""

    name: str
    height: float
    gamma: float = 1.4
    gain: float = 0.55
    lesions: tuple[Lesion, ...] = ()


SCANS = (
    Scan("mni152-slice-1", 4, gamma=1.6, gain=0.66),
    Scan("mni152-slice-2", 20, gamma=1.3, gain=0.5),
    Scan("mni152-slice-3", 38, gamma=1.9, gain=0.75),
    # A ring around a necrotic core, like a glioblastoma.
    Scan("phantom-1", 24, gain=0.42, lesions=(Lesion(-36, 22, radius=17, rim=5, edema=17, push=7),)),
    # A bright, uniform mass at the skull, like a meningioma.
    Scan("phantom-2", 34, gain=0.45, lesions=(Lesion(40, 14, radius=20, rim=20, edema=7, push=9, bright=0.82),)),
    # Several small ones, like metastases.
    Scan(
        "phantom-3",
        14,
        gain=0.44,
        lesions=(
            Lesion(42, -38, radius=11, rim=3.5, edema=13, push=3),
            Lesion(-30, 34, radius=6.5, rim=6.5, edema=8, push=2),
            Lesion(-46, -34, radius=5, rim=5, edema=6, push=1),
        ),
    ),
)


def draw(scan: Scan, volume: Picture) -> Picture:
    """Draw a scan from the template's ``volume`` (197, 233, 189): (SIZE, SIZE) in [0, 1], front of the head on top."""
    rng = np.random.default_rng([ord(letter) for letter in scan.name])
    step = FIELD / SIZE
    along = (np.arange(SIZE) + 0.5) * step - FIELD / 2
    x, y = np.meshgrid(along + CENTER[0], CENTER[1] - along)

    outline = ndimage.gaussian_filter(_outside(_sample(volume, x, y, scan.height), step), 2.5 / step)
    inside = _soft(-outline, 1)
    shapes = [_distance(lesion, x, y, rng) for lesion in scan.lesions]
    for lesion, (distance, dx, dy) in zip(scan.lesions, shapes, strict=True):
        # Displaced tissue is sampled closer to the middle of the lesion than where it is drawn.
        moved = lesion.push * np.exp(-np.maximum(distance, 0) / (2.5 * lesion.push)) * inside
        x, y = x - moved * dx, y - moved * dy

    brain = scan.gain * _sample(volume, x, y, scan.height) ** scan.gamma
    for lesion, (distance, _, _) in zip(scan.lesions, shapes, strict=True):
        brain = _add(brain, lesion, distance, rng, step)
    picture = brain * inside + _skull(outline, rng, step)

    picture *= 1 + 0.12 * _texture(rng, 60 / step)  # uneven coil sensitivity
    noise = ndimage.gaussian_filter(rng.normal(size=(2, SIZE, SIZE)), (0, 0.6, 0.6)) * 0.022
    picture = np.hypot(picture + noise[0], noise[1])  # magnitude of a complex signal: Rician, never negative
    return np.clip(picture, 0, 1)


def load_template() -> Picture:
    """Read the template's values, 0 to 255: (197, 233, 189)."""
    return np.asarray(nibabel.load(TEMPLATE).dataobj, np.float64)


def _sample(volume: Picture, x: Picture, y: Picture, height: float) -> Picture:
    """Return template values in [0, 1] at MNI coordinates in mm; its affine is a shift by (98, 134, 72)."""
    points = np.stack([x + 98, y + 134, np.full_like(x, height + 72)])
    return ndimage.map_coordinates(volume, points, order=1, mode="constant") / 255


def _outside(brain: Picture, step: float) -> Picture:
    """Return the distance in mm from the outline of the brain with closed sulci; negative inside."""
    disc = np.hypot(*np.mgrid[-14:15, -14:15]) <= 14
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(brain > 0.1, disc))
    return (ndimage.distance_transform_edt(~filled) - ndimage.distance_transform_edt(filled)) * step


def _distance(lesion: Lesion, x: Picture, y: Picture, rng: np.random.Generator) -> tuple[Picture, Picture, Picture]:
    """Return the distance in mm from the lesion's wavy border, negative inside, and the direction from its middle."""
    dx, dy = x - lesion.x, y - lesion.y
    away = np.hypot(dx, dy) + 1e-6
    angle = np.arctan2(dy, dx)
    waves = sum(
        rng.uniform(0.2, 1) / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in range(2, 7)
    )
    return away - lesion.radius * (1 + 0.16 * waves), dx / away, dy / away


def _add(brain: Picture, lesion: Lesion, distance: Picture, rng: np.random.Generator, step: float) -> Picture:
    patches = _texture(rng, 3 / step)
    swelling = _soft(lesion.edema * (1 + 0.35 * _texture(rng, 9 / step)) - distance, 2.5)
    brain = brain * (1 - 0.38 * swelling)
    mass = _soft(-distance, 0.8)
    solid = lesion.rim >= lesion.radius
    core = 0.0 if solid else _soft(-distance - lesion.rim * (1 + 0.4 * patches), 1.2)
    gray = lesion.bright * (1 + 0.07 * patches) * (1 - core) + lesion.core * (1 + 0.3 * patches) * core
    return brain * (1 - mass) + gray * mass


def _skull(outline: Picture, rng: np.random.Generator, step: float) -> Picture:
    """Draw the surroundings of the brain in T1: dark fluid and bone, brighter marrow, bright fat, skin."""
    even = ndimage.gaussian_filter(outline, 7 / step)  # bone and skin do not follow the sulci
    thickness = np.where(outline < 4, outline, even) / (1 + 0.08 * _texture(rng, 25 / step))
    patches = _texture(rng, 2 / step)

    def layer(inner: float, outer: float) -> Picture:
        return _soft(thickness - inner, 0.5) * _soft(outer - thickness, 0.5)

    return (
        0.07 * layer(0, 4)
        + 0.3 * (1 + 0.25 * patches) * layer(6, 8.5)
        + 0.85 * (1 + 0.08 * patches) * layer(11.5, 15.5)
    )


def _soft(value: Picture, width: float) -> Picture:
    """Map values far below zero to 0 and far above to 1, with a transition of about ``width`` mm on either side."""
    return 0.5 * (1 + np.tanh(value / width))


def _texture(rng: np.random.Generator, scale: float) -> Picture:
    """Return smooth noise of mean 0 and standard deviation 1, with blobs ``scale`` pixels wide."""
    smooth = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), scale, mode="wrap")
    return (smooth - smooth.mean()) / smooth.std()


def main(folder: Path = EXAMPLES) -> None:
    """Draw every scan into ``folder``."""
    volume = load_template()
    for scan in SCANS:
        path = folder / f"{scan.name}.jpg"
        Image.fromarray((draw(scan, volume) * 255).round().astype(np.uint8)).save(path, quality=92)
        print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
