"""Draw README's picture, a prediction in a terminal and its heatmap: ``python scripts/draw_readme_picture.py``.

The scan is a slice of the MNI152 template from ``examples/``. If the model calls no tumor on it, which is correct, a
lesion is drawn on it first, and the name of the file says so.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mri_edge import Classifier

CHECKOUT = Path(__file__).resolve().parents[1]
TARGET = CHECKOUT / "docs" / "assets" / "predict.png"
SCAN = CHECKOUT / "examples" / "mni152-slice-2.jpg"

CENTER, RADIUS = (0.36, 0.64), 0.065  # of the drawn lesion: row and column, and its size, as proportions of the side
MARGIN, LINE, FONT_SIZE = 20, 24, 16  # pixels
INK, PAPER, PROMPT, DIM = "#e6edf3", "#0d1117", "#7ee787", "#9da7b3"


def main() -> None:
    """Run the command in a temporary folder, and draw what it printed above what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = _scan_with_a_tumor(folder)
        arguments = ["predict", scan.name, "--heatmap", "heatmaps/"]
        done = subprocess.run(
            [sys.executable, "-m", "mri_edge", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        heatmap = Image.open(folder / "heatmaps" / f"{scan.name}.png").convert("RGB")
    lines = ["$ mri-edge " + " ".join(arguments), *(done.stdout + done.stderr).splitlines()]
    page = _below(_terminal(lines, heatmap.width), heatmap)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    page.save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(CHECKOUT)}: {page.width} x {page.height}, {TARGET.stat().st_size / 1000:.0f} kB")


def _scan_with_a_tumor(folder: Path) -> Path:
    """Write the demo scan into a folder, with a drawn lesion unless the default model calls a tumor without it."""
    with Classifier.load() as classifier, Image.open(SCAN) as opened:
        for scan, name in ((opened, SCAN.stem), (_with_lesion(opened), f"{SCAN.stem}-drawn-lesion")):
            path = folder / f"{name}.png"
            scan.save(path)
            prediction = classifier.predict(path, explain=True)
            heatmap = prediction.heatmap
            if prediction.label == prediction.positive and heatmap is not None and heatmap.max() >= prediction.hot_spot:
                return path
            path.unlink()
    sys.exit(f"{SCAN.name}: the model calls no tumor, or has no hot spot, with this lesion. Change CENTER or RADIUS")


def _with_lesion(scan: Image.Image) -> Image.Image:
    """Return a grayscale scan with a bright ring, a dark core and edema around it."""
    gray = np.asarray(scan.convert("L"), np.float32)
    height, width = gray.shape
    rows, columns = np.mgrid[:height, :width]
    down, right = rows / height - CENTER[0], columns / width - CENTER[1]
    angle = np.arctan2(down, right)
    wobble = 1 + 0.12 * np.cos(2 * angle + 1) + 0.08 * np.cos(3 * angle) + 0.04 * np.cos(5 * angle + 2)
    distance = np.hypot(down, right) / (RADIUS * wobble)  # 1 at the rim
    brain = np.percentile(gray[gray > 0.2 * gray.max()], 60)
    for reach, level, opacity in ((1.8, 1.35, 0.5), (1.0, 1.9, 0.95), (0.6, 0.45, 0.9)):
        mask = Image.fromarray(np.where(distance <= reach, np.uint8(255), np.uint8(0)))
        soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(width / 150)), np.float32) / 255 * opacity
        gray = gray * (1 - soft) + min(245, level * brain) * soft
    return Image.fromarray(np.rint(gray).astype(np.uint8))


def _terminal(lines: list[str], width: int) -> Image.Image:
    """Return a terminal with these lines, at least as wide as the heatmap below it."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), FONT_SIZE)
    wide = round(max(font.getlength(line) for line in lines)) + 2 * MARGIN
    page = Image.new("RGB", (max(width, wide), LINE * len(lines) + 2 * MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        color = PROMPT if number == 0 else DIM if line.startswith(("Research", "mri-edge:")) else INK
        pen.text((MARGIN, MARGIN + number * LINE), line, fill=color, font=font)
    return page


def _below(top: Image.Image, bottom: Image.Image) -> Image.Image:
    """Return two pictures as one on white, the second centered below the first."""
    page = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), "white")
    page.paste(top, (0, 0))
    page.paste(bottom, ((page.width - bottom.width) // 2, top.height))
    return page


if __name__ == "__main__":
    main()
