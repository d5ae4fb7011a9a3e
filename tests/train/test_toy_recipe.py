"""Test that one file can add a backbone and a recipe, which every command then accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")
pytest.importorskip("tf2onnx", reason="needs the extra 'export'")

from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.models import registry as backbones
from mri_edge.train.models.network import Backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes import registry as recipes
from mri_edge.train.recipes.base import Augmentation, Head, HeadTraining, RecipeSpec


def build(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Build two convolutions that map float32 (N, height, width, 3) to (N, height // 8, width // 8, 8)."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    pictures = keras.Input((height, width, 3))
    tensor = layers.Conv2D(8, 3, 4, "same", activation="relu", name="stage1_conv")(pictures)
    features = layers.Conv2D(8, 3, 2, "same", activation="relu", name="stage2_conv")(tensor)
    model = keras.Model(pictures, features, name="toy")
    model.trainable = False
    return model


TOY_BACKBONE = Backbone(
    title="two convolutions",
    build=build,
    load_weights=lambda source, say: BackboneWeights((), "random", "none", "0" * 64),
    stages=("stage1_", "stage2_"),
    preprocessing=Preprocessing(height=32, width=32),
    feature_stride=8,
    feature_channels=8,
)
TOY_RECIPE = RecipeSpec(
    name="toy",
    summary="for this test",
    run_name="toy",
    backbone="toy",
    preprocessing=TOY_BACKBONE.preprocessing,
    head=Head(hidden=8, dropout=0.1),
    transforms=Augmentation(horizontal_flip=True),
    schedule=HeadTraining(epochs=6, batch=4, learning_rate=0.01),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "toy", TOY_BACKBONE)
    monkeypatch.setitem(recipes.RECIPES, TOY_RECIPE.name, TOY_RECIPE)


def test_toy_recipe_trains_exports_and_evaluates(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy"
    assert run(["train", str(folders), "--recipe", "toy", "--out", str(out)]) == 0
    training = Bundle.open(out).manifest.training
    assert (training.recipe, training.backbone, training.backbone_weights) == ("toy", "two convolutions", "random")
    capfd.readouterr()
    assert run(["export", str(out), "--formats", "onnx", "--data", str(folders)]) == 0
    assert "model.onnx" in [artifact.file for artifact in Bundle.open(out).manifest.artifacts]
    capfd.readouterr()
    assert run(["evaluate", str(out), "--data", str(folders), "--artifact", "model.onnx", "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["recipe"] == "toy"
    assert record["metrics"]["accuracy"]["images"] == training.test_images


def test_toy_recipe_is_cross_validated(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert run(["train", str(folders), "--recipe", "toy", "--cv", "2", "--out", str(out)]) == 0
    record = json.loads((out / "crossval.json").read_text())
    assert record["recipe"] == "toy"
    assert record["pooled"]["model"]["accuracy"]["images"] == 30


def test_toy_backbone_is_fine_tuned_with_the_robust_schedule(two_sources: Path, tmp_path: Path) -> None:
    """Train it with the schedule, transforms, split and calibration of the robust recipe."""
    import dataclasses

    robust = recipes.find_recipe("robust")
    schedule = dataclasses.replace(robust.schedule, batch=4, epochs=1, epoch_images=16, warmup_steps=2, frozen_stages=1)
    tuned = dataclasses.replace(
        robust, backbone="toy", preprocessing=TOY_BACKBONE.preprocessing, head=Head(8, 0.1), schedule=schedule
    )
    recipes.RECIPES["toy"] = tuned
    assert run(["train", str(two_sources), "--recipe", "toy", "--out", str(tmp_path / "toy")]) == 0
    manifest = Bundle.open(tmp_path / "toy").manifest
    assert manifest.threshold is not None
    assert manifest.training.details["plan"]["frozen_blocks"] == 1
