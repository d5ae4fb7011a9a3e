"""Write the demo series of the web page: slices of the MNI152 template with a drawn lesion, as a NIfTI volume.

    python scripts/make_demo_series.py [FOLDER]

The slices are drawn as ``make_demo_scans.py`` draws the demo scans, with half as many pixels along each side. The
lesion is a ball with a bright rim, so that the slices through its middle show a ring.
"""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from make_demo_scans import CENTER, FIELD, SIZE, Lesion, Picture, Scan, draw, load_template
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parents[1] / "runtime/services/http/page/demo"
NAME = "phantom-series.nii.gz"

HEIGHTS = range(0, 80, 4)  # mm, of the slices in MNI space: above the base of the skull and below the top of the head
MIDDLE, RADIUS = 30.0, 13.0  # mm, of the lesion
LESION = Lesion(42, -38, radius=RADIUS, rim=4, edema=13, push=3)


def volume() -> NDArray[np.uint8]:
    """Return the slices as the voxels (right, front, head) of a volume."""
    template = load_template()
    slices = [_slice(height, template) for height in HEIGHTS]
    return np.stack([_half(picture)[::-1].T for picture in slices], axis=-1)


def _slice(height: float, template: Picture) -> Picture:
    lesions: tuple[Lesion, ...] = ()
    squared = RADIUS**2 - (height - MIDDLE) ** 2
    if squared > 0:
        radius = math.sqrt(squared)
        lesions = (Lesion(LESION.x, LESION.y, radius, min(LESION.rim, radius), LESION.edema, LESION.push),)
    return draw(Scan("phantom-series", height, gain=0.45, lesions=lesions), template)


def _half(picture: Picture) -> NDArray[np.uint8]:
    """Return the mean of each square of four pixels as uint8."""
    mean = picture.reshape(SIZE // 2, 2, SIZE // 2, 2).mean(axis=(1, 3))
    result: NDArray[np.uint8] = (mean * 255).round().astype(np.uint8)
    return result


def main(folder: Path = FOLDER) -> None:
    """Write the file into ``folder``."""
    step = 2 * FIELD / SIZE
    first = -FIELD / 2 + step / 2
    affine: NDArray[Any] = np.diag([step, step, float(HEIGHTS.step), 1])
    affine[:3, 3] = CENTER[0] + first, CENTER[1] + first, HEIGHTS.start
    image = nibabel.Nifti1Image(volume(), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"Demo: MNI152 template with a drawn lesion, not a patient"
    path = folder / NAME
    # The file names no time and no other file, so that every run gives the same bytes.
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
