"""Draw README's picture, a terminal beside a demo scan and its heatmap: ``python scripts/draw_readme_picture.py``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

CHECKOUT = Path(__file__).resolve().parents[1]
TARGET = CHECKOUT / "docs" / "assets" / "predict.png"
COMMAND = ("predict", "examples/phantom-2.jpg", "--model", "small", "--heatmap", "heatmaps/")

MARGIN, LINE, SIDE = 28, 30, 384  # pixels
INK, PAPER, PROMPT, DIM = "#e6edf3", "#0d1117", "#7ee787", "#9da7b3"


def main() -> None:
    """Run the command in a temporary folder, and draw what it printed beside what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(CHECKOUT / "examples")
        done = subprocess.run(
            [sys.executable, "-m", "mri_edge", *COMMAND], cwd=folder, capture_output=True, text=True, check=True
        )
        heatmap = Image.open(folder / "heatmaps" / "phantom-2.jpg.png").convert("RGB")
    scan = Image.open(CHECKOUT / "examples" / "phantom-2.jpg").convert("RGB").resize((SIDE, SIDE))
    # The caption below the heatmap says what the terminal says.
    pictures = [scan, heatmap.crop((0, 0, heatmap.width, round(heatmap.width * scan.height / scan.width)))]
    header, *results = (done.stdout + done.stderr).splitlines()
    model, artifact, *ran = header.split(" | ")
    lines = ["$ mri-edge " + " ".join(COMMAND[:2]) + " \\", "      " + " ".join(COMMAND[2:]), ""]
    lines += [f"{model} | {artifact} |", " | ".join(ran), *results]

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), 19)
    wide = round(max(font.getlength(line) for line in lines))
    terminal = wide + 2 * MARGIN
    page = Image.new("RGB", (terminal + len(pictures) * (SIDE + MARGIN), SIDE + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    top = (page.height - LINE * len(lines)) // 2
    for number, line in enumerate(lines):
        color = PROMPT if number < 2 else DIM if line.startswith(("Research", "mri-edge:")) else INK
        draw.text((MARGIN, top + number * LINE), line, fill=color, font=font)
    for number, picture in enumerate(pictures):
        page.paste(picture.resize((SIDE, SIDE)), (terminal + number * (SIDE + MARGIN), MARGIN))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    page.save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(CHECKOUT)}: {page.width} x {page.height}, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
