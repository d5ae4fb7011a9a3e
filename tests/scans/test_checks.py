"""The pixel rules catch what is no scan, and rarely warn about real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mri_edge.scans.checks import ResultWarning, warnings_for
from mri_edge.scans.frame import Pixels
from mri_edge.scans.readers import picture as images
from mri_edge.scans.resize import resize_bilinear

EXAMPLES = Path(__file__).parents[2] / "examples"


def doubts_about(pixels: Pixels) -> tuple[ResultWarning, ...]:
    return warnings_for([pixels.shape[:2]], resize_bilinear([pixels], 128, 128))[0]


def text_page() -> Pixels:
    page = Image.new("RGB", (600, 800), "white")
    draw = ImageDraw.Draw(page)
    for line in range(40):
        draw.text(
            (30, 10 + 19 * line), "Findings: no restricted diffusion. Impression: unremarkable. " * 2, fill="black"
        )
    return np.asarray(page)


def photograph() -> Pixels:
    """A smooth color picture: sky over grass."""
    rows = np.linspace(0, 1, 300)[:, None, None]
    sky, grass = np.array([90, 150, 230]), np.array([70, 140, 40])
    picture = np.where(rows < 0.5, sky * (1 - rows / 2), grass * (0.5 + rows / 2)) * np.ones((300, 400, 1))
    return picture.astype(np.uint8)


def demo(name: str = "mni152-slice-1.jpg") -> Pixels:
    return images.load(EXAMPLES / name)


@pytest.mark.parametrize(
    ("pixels", "code", "word"),
    [
        (photograph(), "coloured", "coloured"),
        (text_page(), "bright_border", "bright at the border"),
        (255 - demo(), "bright_border", "bright at the border"),
        (np.zeros((256, 256, 3), np.uint8), "blank", "blank"),
        (np.full((256, 256, 3), 200, np.uint8), "blank", "blank"),
        (np.random.default_rng(0).integers(0, 256, (256, 256, 1), np.uint8).repeat(3, 2), "noise", "noise"),
        (demo()[::4, ::4], "tiny", "tiny"),
        (demo()[100:160], "narrow", "long and narrow"),
    ],
    ids=["photograph", "text page", "inverted scan", "black", "grey", "noise", "thumbnail", "strip"],
)
def test_a_picture_that_is_not_a_scan_gets_a_warning(pixels, code, word):
    [doubt] = [doubt for doubt in doubts_about(pixels) if doubt.code == code]
    assert word in str(doubt) == doubt.message
    below = code in ("tiny", "blank")
    assert doubt.value < doubt.limit if below else doubt.value > doubt.limit


@pytest.mark.parametrize(("rows", "columns", "warned"), [(12, 68, True), (16, 52, False)])
def test_a_slice_with_a_sliver_of_tissue_counts_as_blank(rows, columns, warned):
    """Every 16th pixel is looked at: 51 or 52 of 1,024, on both sides of 5%."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[40 : 40 + rows, 40 : 40 + columns] = 220
    assert [doubt.code for doubt in doubts_about(pixels)] == ["blank"] * warned


# Found from both sides, so that each limit is held where the module says it is, and not far from it.
FRAME = [(110, False), (118, False), (122, True), (130, True), (200, True)]


@pytest.mark.parametrize(("level", "doubted"), FRAME, ids=str)
def test_a_border_brighter_than_120_gets_a_warning(level, doubted):
    """A scan in a frame of one grey level: the mean along the border is that level."""
    pixels = np.full((160, 160, 3), level, np.uint8)
    pixels[20:140, 20:140] = 40
    pixels[60:100, 60:100] = 220
    assert ("bright_border" in [doubt.code for doubt in doubts_about(pixels)]) is doubted


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jpg")), ids=lambda path: path.name)
def test_demo_scans_get_no_warning(path):
    assert doubts_about(images.load(path)) == ()


@pytest.mark.data
def test_less_than_2_percent_of_real_scans_get_a_warning(scans, record_property):
    paths = [*scans.glob("navoneel/*/*"), *sorted(scans.glob("nickparvar-train/*/*"))[::8]]
    doubted = [path for path in paths if doubts_about(images.load(path))]
    record_property("scans doubted", f"{len(doubted)} of {len(paths)}")
    assert len(paths) > 250
    assert len(doubted) / len(paths) < 0.02
