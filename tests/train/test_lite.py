"""The recipe ``lite`` trains, exports and predicts; margins around the head do not change its answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.scans.resize import resize_antialiased
from mri_edge.train.models import registry as backbones
from mri_edge.train.models.efficientnet_lite0 import EFFICIENTNET_LITE0
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes import registry as recipes
from mri_edge.train.recipes.lite import LITE

SIDE = 64


def _random_weights(source: str, say: object) -> BackboneWeights:
    rng = np.random.default_rng(0)
    backbone = EFFICIENTNET_LITE0.build(None, SIDE, SIDE)
    shapes = [[array.shape for array in layer.get_weights()] for layer in backbone.layers if layer.weights]
    arrays = tuple(
        ((rng.standard_normal(kernel) * np.sqrt(2 / np.prod(kernel[:2]))).astype(np.float32) / 4, np.zeros(*bias))
        for kernel, bias in shapes
    )
    return BackboneWeights(arrays, "random", "none", "0" * 64)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = dataclasses.replace(EFFICIENTNET_LITE0, load_weights=_random_weights)
    monkeypatch.setitem(backbones.BACKBONES, LITE.backbone, backbone)
    recipe = dataclasses.replace(
        LITE,
        preprocessing=dataclasses.replace(LITE.preprocessing, height=SIDE, width=SIDE),
        schedule=dataclasses.replace(LITE.schedule, epochs=1, epoch_images=32, batch=8, warmup_steps=2, rise=2),
        split=dataclasses.replace(LITE.split, validation_folds=4),
    )
    monkeypatch.setitem(recipes.RECIPES, LITE.name, recipe)


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """Twenty ellipses of noise on black, half of them with a bright disc, each with other margins."""
    rng = np.random.default_rng(3)
    down, across = np.mgrid[-1:1:90j, -1:1:70j]
    for index in range(20):
        label = ("no", "yes")[index % 2]
        gray = np.where(down**2 + across**2 < 0.9, rng.integers(60, 120, down.shape), 0)
        if label == "yes":
            gray[np.hypot(down - rng.uniform(-0.4, 0.4), across - rng.uniform(-0.4, 0.4)) < 0.25] = 230
        padded = np.pad(gray, rng.integers(2, 30, (2, 2)))
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(padded.astype(np.uint8)).save(tmp_path / "data" / label / f"{index}.png")
    return tmp_path / "data"


@pytest.mark.usefixtures("eager")
def test_lite_trains_exports_and_predicts_the_head_in_its_square(
    heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lite"
    assert run(["train", str(heads), "--recipe", "lite", "--split", "grouped", "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["schema_version"], manifest["preprocessing"]["framing"]) == (3, "head")
    assert manifest["training"]["backbone"] == "EfficientNet-Lite0"
    capfd.readouterr()
    # The gate compares the file with the Keras model, through the preprocessing of each.
    assert run(["export", str(out), "--formats", "onnx", "--data", str(heads)]) == 0
    assert "met" in capfd.readouterr().out
    assert Bundle.open(out).manifest.preprocessing.resize == "antialiased"
    scan = np.asarray(Image.open(heads / "yes" / "1.png"))
    padded = [np.pad(scan, margin) for margin in (0, ((40, 0), (0, 0)), ((0, 10), (60, 20)))]
    with Classifier.load(out) as classifier:
        answers = [classifier.predict(picture).probabilities["tumour"] for picture in padded]
        stretched = resize_antialiased([np.repeat(picture[..., None], 3, axis=2) for picture in padded], SIDE, SIDE)
        without = classifier.engine.run(stretched)[:, 1]
    assert np.ptp(answers) < np.ptp(without) / 5, (answers, without)
