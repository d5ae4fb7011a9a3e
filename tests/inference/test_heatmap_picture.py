"""A heatmap picture has two panels, a color scale and a caption, and shows color only where the map is high."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mri_edge.bundles.manifest import Metric
from mri_edge.inference.heatmap.caption import arrange, caption, least_drawn
from mri_edge.inference.heatmap.picture import _ticks, draw
from mri_edge.inference.prediction import HOT_SPOT, NOTICE, Latency, Prediction

PREDICTION = Prediction(
    source="folder/scan.jpg",
    label="tumour",
    probabilities={"no tumour": 0.25, "tumour": 0.75},
    positive="tumour",
    threshold=0.6,
    model="small 1 (01234567)",
    model_hash="0123456789ab",
    artifact="model.onnx",
    engine="onnxruntime",
    provider="CPUExecutionProvider",
    latency_ms=Latency(1, 1, 1),
    explained="tumour",
)
SCORE = Metric(0.95, 0.88, 0.98, 100, "wilson")
MARGIN, SIDE = 12, 384


def map_with_peak(maximum: float, row: int = 8, column: int = 8) -> np.ndarray:
    """Return a map of 32 x 32 with one high square, whose top left corner is at (row, column)."""
    heatmap = np.zeros((32, 32), np.float32)
    heatmap[row : row + 4, column : column + 4] = maximum
    return heatmap


def gray_scan(height: int, width: int) -> np.ndarray:
    """Return a scan with a ramp of gray levels."""
    ramp = np.linspace(20, 235, height * width).reshape(height, width).astype(np.uint8)
    return np.repeat(ramp[..., None], 3, axis=2)


def page_of(pixels: np.ndarray, heatmap: np.ndarray, prediction: Prediction = PREDICTION) -> np.ndarray:
    """Return the picture as int (H, W, 3)."""
    with Image.open(io.BytesIO(draw(pixels, heatmap, prediction, SCORE))) as opened:
        assert opened.mode == "RGB"
        return np.asarray(opened).astype(int)


def panels(page: np.ndarray, height: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Return the panel of the scan and that of the heatmap."""
    width = (page.shape[1] - 3 * MARGIN) // 2
    rows = slice(MARGIN, MARGIN + height)
    return page[rows, MARGIN : MARGIN + width], page[rows, 2 * MARGIN + width : 2 * MARGIN + 2 * width]


def colorfulness(pixels: np.ndarray) -> np.ndarray:
    """Return the difference of the largest and the smallest channel of each pixel."""
    return np.ptp(pixels, axis=2)


def text_of(prediction: Prediction, maximum: float = 9.25, score: Metric | None = SCORE) -> list[str]:
    """Return the rows of the caption of a wide page."""
    return [row.text for row in arrange(caption(prediction, maximum, score), 2000, 1.0)]


# --- the panels


def test_color_lies_at_the_place_of_the_peak_in_the_second_panel_only():
    scan, overlay = panels(page_of(gray_scan(64, 64), map_with_peak(9)))
    assert not colorfulness(scan).any()
    rows, columns = np.nonzero(colorfulness(overlay) > 30)
    # The square covers 8/32 to 12/32 of both sides; resizing moves its border by at most half a cell of the map.
    for found in (rows, columns):
        assert 96 - 6 <= found.min() <= 96 + 6
        assert 144 - 6 <= found.max() <= 144 + 6
    cold = colorfulness(overlay) == 0
    assert (overlay[cold] == scan[cold]).all(), "the anatomy outside the hot spot is unchanged"


@pytest.mark.parametrize("maximum", [0.0, 0.99 * HOT_SPOT])
def test_a_map_below_the_limit_gets_no_color_at_all(maximum):
    page = page_of(gray_scan(64, 64), map_with_peak(maximum))
    assert not colorfulness(page).any()
    scan, overlay = panels(page)
    assert (scan == overlay).all()


def test_the_limit_is_that_of_the_prediction():
    lower = replace(PREDICTION, hot_spot=0.5)
    assert colorfulness(page_of(gray_scan(64, 64), map_with_peak(0.6), lower)).any()
    assert not colorfulness(page_of(gray_scan(64, 64), map_with_peak(0.4), lower)).any()
    assert text_of(lower, maximum=0.4)[1] == "heatmap: no region changes the log-odds of tumour by 0.5 or more"


def test_parts_below_the_limit_are_transparent():
    heatmap = map_with_peak(9) + map_with_peak(0.95 * HOT_SPOT, row=20)
    _, overlay = panels(page_of(gray_scan(64, 64), heatmap))
    assert not colorfulness(overlay)[200:].any()


def test_color_rises_with_the_map_and_leaves_the_anatomy_visible():
    checks = np.kron(np.indices((16, 16)).sum(axis=0) % 2, np.ones((4, 4))) * 180 + 20
    scan = np.repeat(checks.astype(np.uint8)[..., None], 3, axis=2)
    heatmap = np.tile(np.linspace(6, 20, 32, dtype=np.float32), (32, 1))
    _, overlay = panels(page_of(scan, heatmap))
    green = overlay[:, :, 1].reshape(SIDE, 8, 48).mean(axis=(0, 2))  # green rises from purple to yellow
    assert (np.diff(green) > 0).all()
    inner = overlay[20:-20, 20:-20].mean(axis=2)
    dark, bright = np.percentile(inner, [20, 80])
    assert bright - dark > 50, "dark and bright tissue differ below the color"


def test_a_map_at_the_limit_is_drawn():
    _, overlay = panels(page_of(gray_scan(64, 64), np.full((4, 4), HOT_SPOT, np.float32)))
    assert (colorfulness(overlay) > 20).all()


@pytest.mark.parametrize(
    ("height", "width", "panel"),
    [
        (30, 30, (384, 384)),
        (512, 512, (512, 512)),
        (3000, 1500, (1024, 512)),
        (100, 200, (384, 768)),
        (2, 20_000, (384, 1024)),
        (20_000, 2, (1024, 384)),
        (1, 1, (384, 384)),
    ],
)
def test_panels_have_the_same_bounded_size(height, width, panel):
    page = page_of(gray_scan(height, width), map_with_peak(9))
    assert page.shape[1] == 2 * panel[1] + 3 * MARGIN
    assert panel[0] + 100 < page.shape[0] < panel[0] + 400
    scan, overlay = panels(page, panel[0])
    assert scan.shape == overlay.shape == (*panel, 3)


def test_a_color_scan_keeps_its_colors():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :, 2] = 200
    scan, overlay = panels(page_of(pixels, map_with_peak(0.5)))
    assert (scan == [0, 0, 200]).all()
    assert (overlay == scan).all()


# --- the scale


@pytest.mark.parametrize("maximum", [2.0, 2.01, 2.4, 3.59, 8.6, 12.0, 47.3, 999.0, 123456.0])
def test_ticks_are_a_few_round_values_between_the_limit_and_the_maximum(maximum):
    least = least_drawn(maximum, HOT_SPOT)
    ticks = _ticks(least, maximum)
    assert 2 <= len(ticks) <= 7
    assert ticks[-1][:2] == (f"maximum {maximum:.1f}", 1.0)
    positions = [position for _, position, _ in ticks]
    assert positions == sorted(positions)
    for text, position, is_round in ticks[:-1]:
        assert len(text) <= 6
        value = least + position * (maximum - least)
        assert float(text) == pytest.approx(value)
        assert is_round == (position > 0)


def test_scale_has_the_same_colors_as_the_overlay():
    page = page_of(np.zeros((64, 64, 3), np.uint8), map_with_peak(9))
    _, overlay = panels(page)
    scale = page[SIDE + 2 * MARGIN + 4, -MARGIN - SIDE : -MARGIN]
    assert np.abs(scale[-1] / 2 - overlay[120, 120]).max() < 1, (
        "half of the color over black, in the center of the peak"
    )
    assert (np.diff(scale[:, 1]) >= 0).all()


def test_colors_begin_at_the_limit():
    """A region between the limit and the maximum, 10, has the color in the middle of the scale."""
    heatmap = map_with_peak(10, 8, 8) + map_with_peak((10 + least_drawn(10, HOT_SPOT)) / 2, 20, 20)
    page = page_of(np.zeros((64, 64, 3), np.uint8), heatmap)
    _, overlay = panels(page)
    scale = page[SIDE + 2 * MARGIN + 4, -MARGIN - SIDE : -MARGIN]
    assert np.abs(overlay[264, 264] - scale[SIDE // 2] / 2).max() < 2


# --- the caption


def test_caption():
    assert text_of(PREDICTION) == [
        "tumour     p(tumour) = 0.750     threshold 0.600",
        "heatmap: colored regions change the log-odds of tumour by 2.3 or more     maximum: 9.2",
        "file: scan.jpg",
        "model: small 1 (01234567)     artifact: model.onnx (0123456789ab)",
        "heatmaps of this artifact: peak in the lesion: 0.95 (0.88 to 0.98) of drawn lesions that it called",
        NOTICE,
    ]


def test_caption_without_a_hot_spot_and_without_a_score():
    rows = text_of(PREDICTION, maximum=0.6 * HOT_SPOT, score=None)
    assert rows[1] == "heatmap: no region changes the log-odds of tumour by 1 or more"
    assert rows[4] == "heatmaps of this artifact: not measured: mri-edge evaluate --heatmaps"


def test_caption_names_the_frame():
    assert "file: a.nii     frame index 3 (10 frames)" in text_of(
        replace(PREDICTION, source="a.nii", index=3, frames=10)
    )


def test_caption_without_a_file():
    assert not any(row.startswith("file") for row in text_of(replace(PREDICTION, source=None)))


def test_caption_of_more_than_two_labels():
    probabilities = {"glioma": 0.1, "notumor": 0.8, "pituitary": 0.1}
    prediction = replace(PREDICTION, label="notumor", probabilities=probabilities, explained="glioma")
    without = text_of(replace(prediction, positive=None, threshold=None))
    assert without[0] == "notumor     p(notumor) = 0.800"
    assert "the log-odds of glioma" in without[1]
    one = text_of(replace(prediction, positive="glioma", threshold=0.5))
    assert one[0] == "notumor     p(notumor) = 0.800     threshold of glioma 0.500"


@pytest.mark.parametrize(
    "name",
    [
        "x" * 3000,
        "word " * 600,
        "\u041c\u0420\u0422" * 80,
        "\u05d0\u05d1" * 80,
        "a\nb\x1b[31m\u202e" * 50,
        "\udce9" * 90,
    ],
    ids=["long", "words", "cyrillic", "hebrew", "control codes", "not UTF-8"],
)
def test_names_do_not_change_the_layout(name):
    plain = page_of(gray_scan(64, 64), map_with_peak(9))
    long = replace(
        PREDICTION,
        source=name,
        label=name,
        probabilities={"no": 0.25, name: 0.75},
        positive=name,
        explained=name,
        model=name,
        artifact=name,
        index=1,
        frames=200,
    )
    page = page_of(gray_scan(64, 64), map_with_peak(9), long)
    assert page.shape[1] == plain.shape[1]
    assert page.shape[0] <= plain.shape[0] + 120
    assert (page[:, -MARGIN:] == 255).all(), "nothing is drawn over the margin"
    width = page.shape[1] - 2 * MARGIN
    for row in arrange(caption(long, 9.0, SCORE), width, 1.0):
        assert row.font.getlength(row.text) <= width
        assert row.text.isascii()
        assert row.text.isprintable()


def test_long_names_keep_their_end():
    [file] = [row for row in text_of(replace(PREDICTION, source="y" * 200 + "-left.nii.gz")) if row.startswith("file")]
    assert file.startswith("file: yyyy")
    assert file.endswith("-left.nii.gz")
    assert "..." in file
