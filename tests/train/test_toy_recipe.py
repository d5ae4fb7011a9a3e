"""Test that one file can add a backbone and a recipe, which every command then accepts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras", reason="needs the extra 'train'")
pytest.importorskip("tf2onnx", reason="needs the extra 'export'")

from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.models.network import Backbone
from mri_edge.train.recipes import registry as recipes
from mri_edge.train.recipes.base import Augmentation, Calibration, Head, HeadTraining, RecipeSpec, SplitPolicy

TOY_RECIPE = RecipeSpec(
    name="toy",
    summary="for this test",
    run_name="toy",
    backbone="toy",
    preprocessing=Preprocessing(height=32, width=32),
    head=Head(hidden=8, dropout=0.1),
    transforms=Augmentation(horizontal_flip=True),
    schedule=HeadTraining(epochs=6, batch=4, learning_rate=0.01),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, toy_backbone: Backbone) -> None:
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


@pytest.fixture
def four_classes(tmp_path: Path) -> Path:
    """A data folder with 15 pictures each of ``glioma``, ``meningioma``, ``notumor`` and ``pituitary``."""
    rng = np.random.default_rng(11)
    for place, name in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for _ in range(15):
            pixels = rng.integers(0, 90, (40, 40), dtype=np.uint8)
            if name != "notumor":
                pixels[10 * place : 10 * place + 9, 4:36] = 240
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{name}-{rng.integers(10**9)}.png")
    return tmp_path / "data"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("calibrated", [False, True])
def test_four_labels_are_trained_exported_evaluated_and_predicted(
    four_classes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], calibrated: bool
) -> None:
    if calibrated:
        split = SplitPolicy(("reference", "grouped"), keep_apart=True, validation_folds=4)
        recipes.RECIPES["toy"] = dataclasses.replace(TOY_RECIPE, split=split, calibration=Calibration())
    out, labels = tmp_path / "toy", ["glioma", "meningioma", "notumor", "pituitary"]
    given = ["train", str(four_classes), "--recipe", "toy", "--labels", "folders", "--out", str(out)]
    assert run([*given, "--split", "grouped" if calibrated else "stratified"]) == 0
    printed = capfd.readouterr()
    assert "labels: glioma; meningioma; notumor; pituitary (no positive label)" in printed.err
    assert "macro_f1" in printed.out
    assert all(f"{label} " in printed.out for label in labels)
    manifest = Bundle.open(out).manifest
    assert (list(manifest.labels), manifest.positive, manifest.threshold) == (labels, None, None)
    assert manifest.training.classes == {label: [label] for label in labels}
    assert ("temperature" in manifest.training.details) == calibrated
    assert run(["export", str(out), "--formats", "onnx", "--data", str(four_classes)]) == 0
    capfd.readouterr()
    assert run(["evaluate", str(out), "--data", str(four_classes), "--artifact", "model.onnx", "--json"]) == 0
    printed = capfd.readouterr()
    record = json.loads(printed.out)
    assert "labels: glioma; meningioma; notumor; pituitary (no positive label)" in printed.err
    assert set(record["by_label"]) == set(labels)
    assert record["data"]["label_folders"] == {label: [label] for label in labels}
    scan = next((four_classes / "glioma").iterdir())
    assert run(["predict", str(scan), "--model", str(out), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)
    assert result["positive"] is None
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("eager")
def test_folders_with_other_names_are_scored_with_a_mapping(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path / "toy", tmp_path / "elsewhere"
    assert run(["train", str(folders), "--recipe", "toy", "--out", str(out)]) == 0
    (folders / "no").rename(folders / "clear")
    folders.rename(elsewhere)
    capfd.readouterr()
    assert run(["evaluate", str(out), "--data", str(elsewhere)]) == 2
    refused = capfd.readouterr().err
    assert "Labels of the data: clear, yes; of the model: no tumour, tumour" in refused
    assert "--labels clear=LABEL,yes=tumour" in refused
    mapping = "clear=no tumour,yes=tumour"
    assert run(["evaluate", str(out), "--data", str(elsewhere), "--labels", mapping, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["data"]["label_folders"] == {"no tumour": ["clear"], "tumour": ["yes"]}


@pytest.mark.usefixtures("eager")
def test_four_labels_are_cross_validated(four_classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    given = ["train", str(four_classes), "--recipe", "toy", "--labels", "folders", "--cv", "3", "--out", str(out)]
    assert run(given) == 0
    record = json.loads((out / "crossval.json").read_text())
    assert record["positive"] is None
    assert record["threshold"] is None
    assert set(record["pooled"]["model"]["by_label"]) == set(record["labels"])
    assert record["grouping"].startswith("near-duplicates (file order carries no identity")


@pytest.mark.usefixtures("eager")
def test_toy_recipe_is_cross_validated(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert run(["train", str(folders), "--recipe", "toy", "--cv", "2", "--out", str(out)]) == 0
    record = json.loads((out / "crossval.json").read_text())
    assert record["recipe"] == "toy"
    assert record["pooled"]["model"]["accuracy"]["images"] == 30


@pytest.mark.usefixtures("eager")
def test_toy_backbone_is_fine_tuned_with_the_robust_schedule(two_sources: Path, tmp_path: Path) -> None:
    """Train it with the schedule, transforms, split and calibration of the robust recipe."""
    robust = recipes.find_recipe("robust")
    schedule = dataclasses.replace(robust.schedule, batch=4, epochs=1, epoch_images=16, warmup_steps=2, frozen_stages=1)
    tuned = dataclasses.replace(
        robust, backbone="toy", preprocessing=TOY_RECIPE.preprocessing, head=Head(8, 0.1), schedule=schedule
    )
    recipes.RECIPES["toy"] = tuned
    assert run(["train", str(two_sources), "--recipe", "toy", "--out", str(tmp_path / "toy")]) == 0
    manifest = Bundle.open(tmp_path / "toy").manifest
    assert manifest.threshold is not None
    assert manifest.training.details["plan"]["frozen_blocks"] == 1
