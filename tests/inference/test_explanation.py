"""Explanation by covering: the map is highest where what a model reacts to lies, in every engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier
from mri_edge.inference.explanation import explain, log_odds_of
from mri_edge.inference.prediction import HOT_SPOT

from .test_covering import phantom, spot

DEMO_SCAN = Path(__file__).parents[2] / "examples" / "mni152-slice-1.jpg"


def brightness_of_spot(gain: float = 0.08, radius: float = 8):
    """A model that reacts only to the brightness of the spot: log-odds of inputs (N, H, W, 3)."""

    def log_odds(batch: np.ndarray) -> np.ndarray:
        gray = batch[..., 0].astype(float)
        return gain * (gray[:, spot(side=gray.shape[1], radius=radius)].mean(axis=1) - 110)

    return log_odds


@pytest.mark.parametrize("side", [64, 128, 192])
def test_the_peak_lies_where_the_model_looks(side):
    pixels = phantom(side=side)
    found = explain(pixels, brightness_of_spot())
    assert found.shape == (side, side)
    assert found.dtype == np.float32
    assert spot(side=side, radius=9).ravel()[found.argmax()]
    before = brightness_of_spot()(pixels[None])[0]
    assert HOT_SPOT < found.max() <= before * 1.3
    share = spot(side=side).sum() / (found > 0).sum()
    assert found[spot(side=side)].sum() > 1.8 * share * found.sum()


def test_a_model_that_ignores_the_scan_gets_no_hot_spot():
    assert explain(phantom(), lambda batch: np.zeros(len(batch))).max() == 0


def test_what_speaks_against_the_label_is_not_in_the_map():
    against = brightness_of_spot(gain=-0.08)
    assert explain(phantom(), against).max() < 0.2


def test_the_air_gets_nothing():
    pixels = phantom()

    def brightness_of_corner(batch: np.ndarray) -> np.ndarray:
        return batch[:, :8, :8, 0].mean(axis=(1, 2)) + brightness_of_spot()(batch)

    def contributions(batch: np.ndarray) -> np.ndarray:
        cells = np.zeros((len(batch), 8, 8), np.float32)
        cells[:, 0, 0] = 50
        return cells

    found = explain(pixels, brightness_of_corner, contributions)
    assert found[:10, :10].max() == 0
    assert spot(radius=9).ravel()[found.argmax()]


def test_contributions_are_moved_back_and_averaged():
    """Each copy is shifted, so the contributions of a spot arrive at other positions."""

    def cells_of(batch: np.ndarray) -> np.ndarray:
        return (batch[..., 0] == 220).reshape(len(batch), 16, 8, 16, 8).mean(axis=(2, 4)).astype(np.float32) * 10

    found = explain(phantom(), lambda batch: np.zeros(len(batch)), cells_of)
    rows, columns = np.mgrid[:128, :128]
    center = [(axis * found).sum() / found.sum() for axis in (rows, columns)]
    assert center == pytest.approx([60, 44], abs=1)
    spread = ((rows - 60) ** 2 * found).sum() / found.sum()
    # That of the spot, of a cell, and of the linear interpolation between cells.
    assert spread == pytest.approx(8**2 / 4 + 8**2 / 12 + 8**2 / 6, rel=0.15)
    without = explain(phantom(), lambda batch: np.zeros(len(batch)), lambda batch: None)
    assert without.max() == 0


def test_covered_copies_are_made_few_at_a_time():
    for side, most in ((128, 16), (256, 4), (64, 16)):
        sizes = []
        explain(phantom(side=side), lambda batch, sizes=sizes: sizes.append(len(batch)) or np.zeros(len(batch)))
        assert max(sizes) == most
        assert 60 < sum(sizes) < 200


def test_log_odds_are_exact_for_certain_answers():
    probabilities = np.array([[1e-20, 1.0], [0.25, 0.75], [1.0, 0.0]], np.float32)
    found = log_odds_of(probabilities, 1)
    assert found == pytest.approx([20 * np.log(10), np.log(3), -30 * np.log(10)], rel=1e-5)
    of_three = log_odds_of(np.array([[0.2, 0.3, 0.5]], np.float32), 0)
    assert of_three == pytest.approx([np.log(0.2 / 0.8)])


@pytest.mark.parametrize(
    ("artifact", "engine"),
    [
        ("model.int8.onnx", "onnxruntime"),
        ("model.onnx", "onnxruntime"),
        ("model.int8.tflite", "litert"),
        ("model.int8.onnx", "openvino"),
    ],
)
def test_every_engine_explains(artifact, engine):
    if engine != "onnxruntime":
        pytest.importorskip({"litert": "ai_edge_litert", "openvino": "openvino"}[engine])
    with Classifier.load("small", artifact=artifact, engine=engine) as classifier:
        prediction = classifier.predict(DEMO_SCAN, explain=True)
        plain = classifier.predict(DEMO_SCAN)
    assert prediction.heatmap.shape == (128, 128)
    assert np.isfinite(prediction.heatmap).all()
    assert prediction.explained == "tumour"
    assert prediction.label == plain.label
    assert plain.heatmap is None
    assert plain.explained is None
