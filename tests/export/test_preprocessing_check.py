"""Export warns about a preprocessing that does not suit the model, and names the right one."""

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
def correct(bundle):
    """The preprocessing with which the fixture ``model`` was trained: ImageNet's mean and standard deviation."""
    from mri_edge.bundles.bundle import Bundle

    return Bundle.open(bundle).manifest.preprocessing


def test_the_correct_preprocessing_gives_no_warning(model, located, correct):
    assert check_preprocessing(model, located, correct, 0) is None


def test_the_warning_names_the_correct_preprocessing(model, located, correct):
    warning = check_preprocessing(model, located, dataclasses.replace(correct, scale=1.0), 0)
    assert "of 64 pictures" in warning
    assert '"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]' in warning
    assert '"height": 32, "width": 32' in warning


def test_the_warning_keeps_framing_and_resizing(model, located, correct):
    stated = dataclasses.replace(correct, scale=1.0, framing="head", resize="antialiased")
    warning = check_preprocessing(model, located, stated, 0)
    assert '"framing": "head", "resize": "antialiased"' in warning


def test_warns_if_no_common_preprocessing_helps(model, located, correct):
    """If the labels are in the wrong order, no preprocessing helps."""
    swapped = [(path, 1 - label) for path, label in located]
    warning = check_preprocessing(model, swapped, correct, 0)
    assert "no better than guessing (0.50)" in warning
    assert "--labels" in warning


@pytest.mark.parametrize(("scale", "warned"), [("1", True), ("0.00392156862745098", False)])
def test_the_command_prints_the_warning(model, pictures, tmp_path, capfd, scale, warned):
    model.save(tmp_path / "model.keras")
    rest = '"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]'
    arguments = ["--from", str(tmp_path / "model.keras"), "--labels", "no,yes", "--data", str(pictures)]
    arguments += ["--preprocessing", f'{{"height": 32, "width": 32, "scale": {scale}, {rest}}}', "--formats", "onnx"]
    assert run(["export", str(tmp_path / "out"), *arguments]) in (0, 5)
    errors = capfd.readouterr().err
    assert ("Warning: with the stated preprocessing" in errors) is warned
    assert ("--preprocessing '{" in errors) is warned


def test_few_pictures_are_enough_to_run(model, located):
    assert check_preprocessing(model, [located[0], located[-1]], Preprocessing(32, 32), 0) is not None
