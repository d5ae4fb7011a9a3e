"""A preprocessing that does not suit the model is recognized by its accuracy, and the right one is named."""

from __future__ import annotations

import dataclasses

import pytest

from mri_edge.cli import run
from mri_edge.export.sources.preprocessing_check import check_preprocessing
from mri_edge.scans.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def located(pictures, split):
    return [pair for role in ("train", "test") for pair in split.locate(pictures, role)]


@pytest.fixture
def own(bundle):
    """The preprocessing that the fixture ``model`` was trained with: ImageNet's means and deviations."""
    from mri_edge.bundles.bundle import Bundle

    return Bundle.open(bundle).manifest.preprocessing


def test_the_right_preprocessing_gives_no_warning(model, located, own):
    assert check_preprocessing(model, located, own, 0) is None


def test_a_wrong_preprocessing_is_warned_about_with_the_right_one(model, located, own):
    said = check_preprocessing(model, located, dataclasses.replace(own, scale=1.0), 0)
    assert "of 64 pictures" in said
    assert '"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]' in said
    assert '"height": 32, "width": 32' in said


def test_warns_if_no_common_preprocessing_helps(model, located, own):
    """Labels in the wrong order: no preprocessing makes that right."""
    turned = [(path, 1 - label) for path, label in located]
    said = check_preprocessing(model, turned, own, 0)
    assert "no better than guessing (0.50)" in said
    assert "--labels" in said


@pytest.mark.parametrize(("scale", "warned"), [("1", True), ("0.00392156862745098", False)])
def test_the_command_warns(model, pictures, tmp_path, capfd, scale, warned):
    model.save(tmp_path / "model.keras")
    rest = '"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]'
    arguments = ["--from", str(tmp_path / "model.keras"), "--labels", "no,yes", "--data", str(pictures)]
    arguments += ["--preprocessing", f'{{"height": 32, "width": 32, "scale": {scale}, {rest}}}', "--formats", "onnx"]
    assert run(["export", str(tmp_path / "out"), *arguments]) in (0, 5)
    said = capfd.readouterr().err
    assert ("Warning: with the stated preprocessing" in said) is warned
    assert ("--preprocessing '{" in said) is warned


def test_few_pictures_are_enough_to_run(model, located):
    assert check_preprocessing(model, [located[0], located[-1]], Preprocessing(32, 32), 0) is not None
