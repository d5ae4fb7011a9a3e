"""Draw the two diagrams of docs/architecture.md as SVG: the layers of packages, and a scan's way through them.

    python scripts/draw_architecture.py

Text stands on filled boxes and lines are of a middle gray, so that both read on a light and on a dark page.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
LINE = "#7d8590"
BLUE, GREEN, AMBER, GRAY = "#cfe2ff", "#cdeed6", "#ffe3b3", "#e2e6ea"
LAYERS = [  # top to bottom: (name, what it does, color)
    ("commands", "one file for each command", BLUE),
    ("services", "folder, HTTP, DICOM, archive", BLUE),
    ("benchmarking", "scenarios, isolated processes, tuning", BLUE),
    ("authoring", "writer, model card, provenance, signing", BLUE),
    ("inference", "classifier, selection, prediction, heatmap, replay", GREEN),
    ("engines", "ONNX Runtime, LiteRT, OpenVINO: one file each", GREEN),
    ("bundles", "manifest, archive, signatures: the read side", GREEN),
    ("scans", "readers, checks, resize, preprocessing", GREEN),
    ("device, storage", "processor, caches; atomic writes, locks", GRAY),
    ("errors", "the error tree and its exit codes", GRAY),
]
STEPS = [  # (title, package, what comes out, color)
    ("scan.jpg", "", "a file, a folder, a pipe", GRAY),
    ("Read", "scans/readers", "uint8 RGB pixels", GREEN),
    ("Check, resize", "scans", "uint8 (N, H, W, 3)", GREEN),
    ("Run", "engines", "float32 (N, classes)", GREEN),
    ("Decide", "inference", "label, warnings", GREEN),
    ("Print", "commands", "table, JSON, CSV", BLUE),
]
STYLE = "font-family='system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif'"


def text(
    x: float, y: float, words: str, *, size: int = 15, bold: bool = False, color: str = "#1f2328", anchor: str = "start"
) -> str:
    """A line of text."""
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x}' y='{y}' font-size='{size}'{weight} fill='{color}' text-anchor='{anchor}'>{escape(words)}</text>"
    )


def box(x: float, y: float, width: float, height: float, color: str) -> str:
    """A filled box with round corners."""
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{color}' stroke='{LINE}'/>"


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with an arrow head at its end."""
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{LINE}' stroke-width='2' marker-end='url(#head)'/>"


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    """The whole SVG file."""
    head = (
        "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
        f"<path d='M0 0 10 5 0 10z' fill='{LINE}'/></marker></defs>"
    )
    opening = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {STYLE}>"
    return "\n".join([opening, f"<title>{escape(title)}</title>", head, *parts, "</svg>", ""])


def packages() -> str:
    """The layers of `mri_edge` beside `train` and `export`, and the bundle between them."""
    parts, x, width, height, gap = [], 20, 500, 44, 8
    for index, (name, words, color) in enumerate(LAYERS):
        y = 44 + index * (height + gap)
        parts += [box(x, y, width, height, color), text(x + 14, y + 28, name, bold=True)]
        parts.append(text(x + 150, y + 28, words, size=14))
    parts.append(text(x, 28, "mri_edge (runtime/): each layer may use those below it", color=LINE, bold=True))
    for y, name, words in [
        (44, "mri_edge.train", "train/: recipes, loops, evaluation"),
        (252, "mri_edge.export", "export/: ONNX, TFLite, parity gate"),
    ]:
        parts += [box(600, y, 290, 90, AMBER), text(616, y + 36, name, bold=True), text(616, y + 64, words, size=14)]
    parts += [box(600, 450, 290, 106, GRAY), text(616, 484, "a bundle", bold=True)]
    parts += [
        text(616, 510, "manifest.json, model files,", size=14),
        text(616, 532, "metrics.json, parity.json, report/", size=14),
    ]
    parts += [arrow(600, 89, 524, 89), arrow(600, 297, 524, 297), arrow(745, 342, 745, 446)]
    parts += [text(745, 170, "use mri_edge, and never each other;", size=14, color=LINE, anchor="middle")]
    parts += [text(745, 192, "they meet at the bundle", size=14, color=LINE, anchor="middle")]
    parts += [
        f"<path d='M890 89 H915 V503 H894' fill='none' stroke='{LINE}' stroke-width='2' marker-end='url(#head)'/>"
    ]
    parts += [
        f"<path d='M600 503 H560 V378 H524' fill='none' stroke='{LINE}' stroke-width='2' marker-end='url(#head)'/>",
    ]
    return picture(940, 580, "The packages of mri-edge and what each may import", parts)


def way_of_a_scan() -> str:
    """Six steps from a file to a line of output."""
    parts, width, gap = [], 170, 44
    for index, (title, package, out, color) in enumerate(STEPS):
        column, row = index % 3, index // 3
        x, y = 20 + column * (width + gap + 40), 20 + row * 150
        parts += [box(x, y, width, 92, color), text(x + width / 2, y + 30, title, bold=True, anchor="middle")]
        parts += [
            text(x + width / 2, y + 53, package, size=13, anchor="middle"),
            text(x + width / 2, y + 76, out, size=13, anchor="middle"),
        ]
        if column < 2:
            parts.append(arrow(x + width + 4, y + 46, x + width + gap + 36, y + 46))
    parts.append(
        f"<path d='M613 112 V141 H105 V166' fill='none' stroke='{LINE}' stroke-width='2' marker-end='url(#head)'/>"
    )
    return picture(718, 282, "A scan's way from its file to the answer", parts)


def main() -> None:
    """Write both files."""
    ASSETS.mkdir(parents=True, exist_ok=True)
    for name, drawing in [("packages", packages()), ("scan", way_of_a_scan())]:
        (ASSETS / f"{name}.svg").write_text(drawing, encoding="utf-8")
        print(f"docs/assets/{name}.svg")


if __name__ == "__main__":
    main()
