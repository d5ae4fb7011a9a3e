"""Draw README's picture: a terminal with real output beside a demo scan and its heatmap.

    python scripts/draw_readme_picture.py

It runs ``mri-edge predict`` on the demo scans, so needs the package and the extra ``dev`` (for Matplotlib's font).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

CHECKOUT = Path(__file__).resolve().parents[1]
PICTURE = CHECKOUT / "docs" / "assets" / "predict.png"
SCAN = "examples/phantom-2.jpg"
COMMAND = ["predict", "examples/phantom-1.jpg", SCAN, "examples/mni152-slice-1.jpg", "--heatmap"]
FOLDER = "why/"
SIZE = (1600, 500)
TERMINAL = (24, 24, 1016, 476)
BACKGROUND, PAPER, TEXT, DIM, GREEN = (13, 17, 23), (22, 27, 34), (230, 237, 243), (139, 148, 158), (126, 231, 135)


def run_predict() -> tuple[list[str], Image.Image]:
    """Run the command in the repository; return the lines of its standard output, and the heatmap of SCAN."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 (our own program)
            [sys.executable, "-m", "mri_edge", *COMMAND, folder],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
        with Image.open(Path(folder) / f"{Path(SCAN).name}.png") as heatmap:
            return done.stdout.splitlines(), heatmap.convert("RGB")


def main() -> None:
    """Draw the picture and write it."""
    lines, heatmap = run_predict()
    fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
    mono = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), 19)
    sans = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 20)
    picture = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)

    draw.rounded_rectangle(TERMINAL, 12, fill=PAPER)
    for index, color in enumerate([(255, 95, 86), (255, 189, 46), (39, 201, 63)]):
        draw.ellipse((48 + 28 * index, 44, 62 + 28 * index, 58), fill=color)
    typed = [f"$ mri-edge {' '.join(COMMAND[:3])} \\", f"    {' '.join(COMMAND[3:])} {FOLDER}"]
    for row, line in enumerate([*typed, "", *lines]):
        color = GREEN if row < len(typed) else DIM if line.startswith(("label", "vgg16", "Research")) else TEXT
        draw.text((48, 92 + 34 * row), line, font=mono, fill=color)

    with Image.open(CHECKOUT / SCAN) as scan:
        side = 268
        picture.paste(scan.convert("RGB").resize((side, side)), (1040, 72))
    narrow = heatmap.resize((side, round(heatmap.height * side / heatmap.width)))
    picture.paste(narrow, (1040 + side + 8, 72))
    draw.text((1040, 32), "scan", font=sans, fill=TEXT)
    draw.text((1040 + side + 8, 32), f"{FOLDER}phantom-2.jpg.png", font=sans, fill=TEXT)
    note = "A template brain with a drawn lesion, no patient.\nAs here, the heatmap often misses the lesion."
    draw.multiline_text((1040, 408), note, font=sans, fill=DIM, spacing=8)

    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(128).save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(CHECKOUT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
