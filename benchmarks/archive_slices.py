"""Make slices for tests of ``mri-edge archive``: variations of the demo slices as small JPEG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
_PER_FOLDER = 500
_DIFFERENT = 2000  # further slices are links to these


def make_slices(count: int, folder: Path) -> None:
    """Write ``count`` pictures, 256 x 256, into subfolders. Each is a demo slice, moved by some pixels and brighter."""
    demos = [np.asarray(Image.open(path).convert("L")) for path in sorted(EXAMPLES.glob("*.jpg"))]
    generator = np.random.default_rng(0)
    for number in range(count):
        path = _path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= _DIFFERENT:
            path.hardlink_to(_path(folder, number % _DIFFERENT))
            continue
        brighter = demos[number % len(demos)].astype(np.int16) + generator.integers(-6, 7)
        moved = np.roll(np.clip(brighter, 0, 255).astype(np.uint8), int(generator.integers(-4, 5)), axis=1)
        Image.fromarray(moved).save(path, quality=85)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number // _PER_FOLDER:06d}" / f"{number:08d}.jpg"
