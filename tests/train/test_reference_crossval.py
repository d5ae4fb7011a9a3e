"""Cross-validation of the head-only recipe: no group on both sides, every image scored once, one command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mri_edge.errors import DataError

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.cli import run
from mri_edge.train import recipe, reference_crossval
from mri_edge.train.reference_crossval import cross_validate_reference, grouped_folds


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_divided_and_every_image_has_a_fold(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 120)
    group = np.where(truth == 1, 100, 0) + rng.integers(0, 30, 120)
    folds = grouped_folds(truth, group, 5, seed)
    assert set(folds) == {1, 2, 3, 4, 5}
    assert all(len(set(folds[group == one])) == 1 for one in np.unique(group))


def test_too_few_groups_are_refused():
    with pytest.raises(DataError, match="a class has 2 distinct images: too few for 3 folds"):
        grouped_folds(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 3, 4]), 3, 0)


def test_every_image_is_scored_by_a_model_that_did_not_see_it(
    folders, small_recipe, weights_file, tmp_path, monkeypatch
):
    learned = []

    def spy(network, train, validation, *arguments, **options):
        learned.append((set(train.rows.tolist()), set(validation.rows.tolist())))
        return fit(network, train, validation, *arguments, **options)

    fit = reference_crossval.fit
    monkeypatch.setattr(reference_crossval, "fit", spy)
    out = tmp_path / "figures"
    record = cross_validate_reference(folders, out, small_recipe, folds=3, backbone_weights=str(weights_file), seed=1)
    assert json.loads((out / "crossval.json").read_text()) == record
    assert [path.name for path in out.iterdir()] == ["crossval.json"]
    assert len(learned) == 3
    assert all(not train & held for train, held in learned)
    for number, (_, held) in enumerate(learned, start=1):
        assert {index for index, one in enumerate(record["predictions"]) if one["fold"] == number} == held
    right = sum(one["called"] == one["label"] for one in record["predictions"])
    assert record["pooled"]["accuracy"]["value"] == pytest.approx(right / 30)
    assert sum(one["accuracy"]["images"] for one in record["by_fold"]) == 30


def test_evaluate_hands_cross_validation_on(folders, small_recipe, weights_file, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(recipe.RECIPES, "reference", small_recipe)
    common = ["evaluate", "--data", str(folders), "--cv", "2", "--backbone-weights", str(weights_file)]
    assert run(common) == 2
    assert "--out" in capfd.readouterr().err
    assert run([*common, "--out", str(tmp_path / "figures")]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["pooled"]["accuracy"]["images"] == 30
