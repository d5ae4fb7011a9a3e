"""Test the cross-validation of head training: undivided groups, one score per image, and its commands."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mri_edge.errors import DataError

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.cli import run
from mri_edge.train import crossval, training
from mri_edge.train.crossval import cross_validate
from mri_edge.train.data.roles import by_group
from mri_edge.train.evaluation import intervals
from mri_edge.train.recipes import registry


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_divided_and_every_image_has_a_fold(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, 120)
    group = np.where(truth == 1, 100, 0) + rng.integers(0, 30, 120)
    folds = by_group(truth, group, 5, seed)
    assert sorted(np.concatenate(folds)) == list(range(120))
    assert len(folds) == 5
    assert sum(len(set(group[held])) for held in folds) == len(set(group))


def test_too_few_groups_are_rejected():
    with pytest.raises(DataError, match=r"class '0' has 2 groups of images.*at least 3.*fewer folds"):
        by_group(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 3, 4]), 3, 0)


@pytest.mark.usefixtures("eager")
def test_every_image_is_scored_by_a_model_that_did_not_see_it(folders, toy_reference, tmp_path, monkeypatch):
    learned = []

    def spy(network, train, validation, *arguments, **options):
        learned.append((set(train.rows.tolist()), set(validation.rows.tolist())))
        return fit(network, train, validation, *arguments, **options)

    fit = training.fit
    monkeypatch.setattr(training, "fit", spy)
    out = tmp_path / "figures"
    record = cross_validate(folders, out, toy_reference, folds=3, backbone_weights="none", seed=1)
    assert json.loads((out / "crossval.json").read_text()) == record
    assert sorted(path.name for path in out.iterdir()) == ["crossval.json", "fold-1", "fold-2", "fold-3", "identity"]
    assert [path.name for path in (out / "fold-1").iterdir()] == ["model.npz"]
    assert len(learned) == 3
    assert all(not train & held for train, held in learned)
    for number, (_, held) in enumerate(learned, start=1):
        assert set(np.flatnonzero(np.array(record["images"]["fold"]) == number)) == held
    right = np.mean(np.array(record["images"]["called"]["model"]) == record["images"]["label"])
    assert record["pooled"]["model"]["accuracy"]["value"] == pytest.approx(right)
    assert sum(item["models"]["model"]["accuracy"]["images"] for item in record["by_fold"]) == 30
    assert {
        figures["model"]["auc"]["method"]
        for figures in (record["pooled"], *(item["models"] for item in record["by_fold"]))
    } == {intervals.GROUPED_DELONG}


def test_source_that_cannot_be_left_out_is_reported_before_training(two_sources, small_recipe, weights_file, tmp_path):
    shutil.rmtree(two_sources / "a" / "yes")
    shutil.rmtree(two_sources / "b" / "notumor")
    chosen = {"folds": None, "backbone_weights": str(weights_file), "seed": 1}
    with pytest.raises(DataError, match="source 'a' cannot be left out"):
        cross_validate(two_sources, tmp_path / "figures", small_recipe, **chosen)


@pytest.mark.usefixtures("eager")
def test_resumed_cross_validation_keeps_folds_and_gives_the_same_record(folders, toy_reference, tmp_path, monkeypatch):
    fitted = []
    real = training.fit

    def fit(*arguments, **options):
        fitted.append(options["checkpoint"].parent.name)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(training, "fit", fit)
    chosen = {"folds": 2, "backbone_weights": "none", "seed": 1}
    with pytest.raises(KeyboardInterrupt):
        cross_validate(folders, tmp_path / "cut", toy_reference, **chosen)
    resumed = cross_validate(folders, tmp_path / "cut", toy_reference, **chosen)
    assert fitted == ["fold-1", "fold-2", "fold-2"]
    whole = cross_validate(folders, tmp_path / "whole", toy_reference, **chosen)
    assert {**resumed, "creation": None} == {**whole, "creation": None}


def test_patients_and_exclusions_are_respected(folders, small_recipe, weights_file, tmp_path, monkeypatch):
    (tmp_path / "patients.csv").write_text(
        "file,group\n" + "".join(f"{n}/{n}{i:02}.png,{n}{i // 4}\n" for n in ("no", "yes") for i in range(16))
    )
    learned = []

    def train(job, *arguments):
        learned.append((job.train, job.watched))
        whole = SimpleNamespace(predict_on_batch=lambda batch: np.full((len(batch), 2), 0.5, np.float32))
        return SimpleNamespace(quick=SimpleNamespace(whole=whole), temperature=None, threshold=None)

    monkeypatch.setattr(crossval, "train_model", train)
    record = cross_validate(
        folders,
        tmp_path / "figures",
        small_recipe,
        folds=3,
        backbone_weights=str(weights_file),
        seed=1,
        excluded=["no/no00.png"],
        groups=tmp_path / "patients.csv",
    )
    assert record["excluded"] == ["no/no00.png"]
    assert record["patients"] == "patients.csv"
    files = sorted(record["images"]["file"])
    assert "no/no00.png" not in files
    patient = [f"{file[:2]}{int(file[-6:-4]) // 4}" for file in files]
    assert len(learned) == 3
    for learn, held in learned:
        assert not {patient[row] for row in learn} & {patient[row] for row in held}


@pytest.mark.usefixtures("eager")
def test_evaluate_runs_a_cross_validation(folders, toy_reference, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(registry.RECIPES, "reference", toy_reference)
    common = ["evaluate", "--data", str(folders), "--cv", "2"]
    assert run(common) == 2
    assert "--out" in capfd.readouterr().err
    assert run([*common, "--out", str(tmp_path / "figures")]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["pooled"]["model"]["accuracy"]["images"] == 30
    assert run([*common, "--out", str(tmp_path / "fewer"), "--exclude", "no/no00.png", "--epochs", "1"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["pooled"]["model"]["accuracy"]["images"] == 29


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["small"], "BUNDLE"),
        (["--model", "small"], "--model"),
        (["--role", "all"], "--role"),
        (["--json"], "--json"),
        (["--artifact", "model.onnx"], "--artifact"),
        (["--engine", "litert"], "--engine"),
        (["--provider", "cpu"], "--provider"),
        (["--threads", "1"], "--threads"),
        (["--window", "auto"], "--window"),
        (["--any-modality"], "--any-modality"),
    ],
)
def test_options_for_a_model_are_refused_with_folds(folders, tmp_path, capfd, option, named):
    given = ["--data", str(folders), "--cv", "2", "--out", str(tmp_path / "out")]
    assert run(["evaluate", *option, *given]) == 2
    assert f"error: {named} applies to a trained model, and --cv trains its own" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folds_are_never_written_into_other_folders(folders, tiny_bundle, tmp_path, capfd):
    before = sorted(tmp_path.rglob("*"))
    for data, out, said in (
        (folders, tiny_bundle, f"{tiny_bundle}: folder is not empty and contains no cross-validation"),
        (folders, folders, f"{folders}: folder is not empty"),
        (folders, folders / "figures", f"figures: is inside {folders}"),
        (tmp_path / "none", tmp_path / "new", "none"),
    ):
        assert run(["evaluate", "--data", str(data), "--cv", "2", "--out", str(out)]) == 2
        assert said in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("folds", ["", "1", "all"])
def test_invalid_folds_are_rejected_before_training(folders, tmp_path, capfd, command, folds):
    out = tmp_path / "out"
    assert run([command, "--data", str(folders), "--out", str(out), "--cv", folds]) == 2
    assert f"--cv takes a number of folds from 2, or 'sources'. Received: {folds!r}" in capfd.readouterr().err
    assert not out.exists()


def test_evaluate_rejects_training_options_without_cv(folders, capfd):
    assert run(["evaluate", "--data", str(folders), "--exclude", "no/*"]) == 2
    assert "--exclude applies to training" in capfd.readouterr().err
