"""Test the record of a cross-validation: its figures follow from its answers, for any labels and any recipe."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.errors import DataError, OutputError, UsageError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.staging import lock_folder
from mri_edge.train import crossval
from mri_edge.train.data import duplicates
from mri_edge.train.data.collection import Collection
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.crossval_figures import (
    BinaryAnswers,
    figures_from,
    threshold_for,
    threshold_of,
    thresholds_of_other_folds,
)
from mri_edge.train.evaluation.crossval_record import ScoredImages, to_json
from mri_edge.train.evaluation.intervals import GROUPED_DELONG
from mri_edge.train.evaluation.metrics import fraction_metric, measure_answers
from mri_edge.train.recipes.base import Head, RecipeSpec, ScanViews, SplitPolicy
from mri_edge.train.recipes.distilled import SMALL
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.recipes.robust import ROBUST

TWO = Labels(("healthy", "tumor"), 1, {})
FOUR = Labels(("glioma", "meningioma", "notumor", "pituitary"), None, {})
SMALL_PIXELS = {"height": 8, "width": 8}


def collection(labels: Labels, per_label: int = 60, copies: int = 2) -> Collection:
    """Create images in groups of ``copies``, of two sources, without pictures; their hashes are far apart."""
    label = np.arange(len(labels.names)).repeat(per_label)
    count = len(label)
    source = np.where(np.arange(count) // copies % 2 == 0, "a", "b")
    folders = [f"{where}/{labels.names[one]}" for one, where in zip(label, source, strict=True)]
    scans = [
        Scan(Path("x"), f"{folder}/{index}.png", folder, int(label[index]), f"{index:016x}" * 4)
        for index, folder in enumerate(folders)
    ]
    hashes = np.random.default_rng(0).random((count, duplicates.HASH_BITS)) < 0.5
    pixels = np.zeros((count, 8, 8, 3), np.uint8)
    return Collection(scans, [], pixels, label, source, np.arange(count) // copies, hashes, "pairs of files")


def noisy_answers(data: Collection, rows: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Return probabilities that are often right and depend on the image and the seed only."""
    logits = np.random.default_rng(seed).normal(0, 1.2, (len(data.scans), classes))[rows]
    logits[np.arange(len(rows)), data.label[rows]] += 1.5
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def trainings(monkeypatch):
    """Replace training and prediction by noisy answers; return the jobs, one per training."""
    jobs = []

    def train(job, recipe, pool=None):
        jobs.append(job)
        threshold = 0.4 if job.labels.positive is not None and recipe.calibration else None
        network = SimpleNamespace(whole=SimpleNamespace(job=job))
        return SimpleNamespace(quick=network, temperature=1.5 if recipe.calibration else None, threshold=threshold)

    def predict(model, pixels, preprocessing, rows=None):
        return noisy_answers(model.job.data, rows, len(model.job.labels.names), model.job.seed)

    monkeypatch.setattr(crossval, "train_model", train)
    monkeypatch.setattr(crossval, "predict", predict)
    monkeypatch.setattr(crossval, "open_pool", lambda folder: None)
    monkeypatch.setattr(crossval, "draw_pool", lambda *arguments: None)
    return jobs


def recipe_of(name: str):
    recipe = {"reference": REFERENCE, "robust": ROBUST, "small": SMALL}[name]
    small = dataclasses.replace(recipe.preprocessing, **SMALL_PIXELS)
    return dataclasses.replace(recipe, preprocessing=small, head=Head(8, 0.5), stress_tests=False)


def score(store: Path, name: str, labels: Labels, folds: int | None = 3, only: int | None = None, data=None):
    data = collection(labels) if data is None else data
    everyone = np.ones(len(data.scans), bool)
    return crossval.score_folds(
        data, everyone, None, recipe_of(name), labels=labels, folds=folds, seed=0, store=store, only=only
    )


@pytest.mark.parametrize(
    ("name", "labels", "folds"),
    [
        ("reference", TWO, 3),
        ("reference", FOUR, None),
        ("robust", TWO, None),
        ("robust", FOUR, 3),
        ("small", TWO, None),
        ("small", FOUR, 3),
    ],
)
def test_every_recipe_writes_one_schema_whose_figures_follow_from_its_answers(tmp_path, trainings, name, labels, folds):
    record = score(tmp_path, name, labels, folds)
    text = to_json(record)
    read = json.loads(text)
    assert read == record
    stored = {key: read[key] for key in ("schema_version", "labels", "positive", "images")}
    for key, value in figures_from(stored).items():
        assert value == record[key], key
    assert record["schema_version"] == 2
    assert (record["protocol"], record["folds"]) == (("folds", 3) if folds else ("sources", 2))
    assert record["grouping"] == "pairs of files"
    assert record["positive"] == labels.positive
    models = {"teacher", "student 0", "student 1", "student 2"} if name == "small" else {"model"}
    for part in ("pooled", "mean_of_folds", "calibration"):
        assert set(record[part]) == models
    assert set(record["by_source"]) == {"a", "b"}
    assert (record["teacher"] is not None) == (name == "small")
    assert ("student_minus_teacher" in record) == (name == "small")
    columns = text[text.index('"images": {') :].splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in columns][:8] == [
        *('"file"', '"sha256"', '"label"', '"group"', '"source"', '"fold"', '"selectable"', '"probabilities"')
    ], "one line per column"


@pytest.mark.parametrize("name", ["reference", "robust"])
def test_every_image_is_scored_once_and_no_group_is_in_two_folds(tmp_path, trainings, name):
    data = collection(FOUR, per_label=150, copies=5)  # blocks of five
    record = score(tmp_path, name, FOUR, 3, data=data)
    images = record["images"]
    assert images["file"] == [scan.file for scan in data.scans]
    assert images["sha256"] == [scan.sha256[:16] for scan in data.scans]
    assert {len(column) for name, column in images.items() if isinstance(column, list)} == {len(data.scans)}
    folds_of = {}
    for group, fold in zip(images["group"], images["fold"], strict=True):
        folds_of.setdefault(group, set()).add(fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    for job in trainings:
        held = set(data.group[job.watched].tolist())
        assert not held & set(data.group[np.concatenate([job.train, job.validation])].tolist())


def test_planted_neighbor_in_another_source_trains_nothing(tmp_path, trainings):
    """An image of source b that is in the group of an image of source a never trains the model that scores a."""
    data = collection(TWO, copies=1)
    of_a, of_b = np.flatnonzero(data.source == "a"), np.flatnonzero(data.source == "b")
    data.group[of_b[3]] = data.group[of_a[3]]
    record = score(tmp_path, "robust", TWO, None, data=data)
    first = trainings[0]
    assert set(data.source[first.watched]) == {"a"}
    assert of_b[3] not in np.concatenate([first.train, first.validation])
    assert len(first.train) + len(first.validation) == len(of_b) - 1
    assert record["images"]["group"][of_b[3]] == record["images"]["group"][of_a[3]]


def test_figures_of_four_labels_have_a_row_for_each_label(tmp_path, trainings):
    record = score(tmp_path, "robust", FOUR)
    images = ScoredImages.of(record)
    called = images.probabilities["model"].argmax(axis=1)
    assert images.called["model"].tolist() == called.tolist()
    found = record["pooled"]["model"]
    expected = measure_answers(images.label, images.probabilities["model"], called, None, images.group)
    assert {name: found[name] for name in expected} == {name: dataclasses.asdict(one) for name, one in expected.items()}
    assert list(found["by_label"]) == list(FOUR.names)
    assert found["by_label"]["glioma"]["auc"]["method"] == GROUPED_DELONG
    assert np.array(found["confusion_matrix"]).sum() == 240
    assert np.trace(found["confusion_matrix"]) == round(found["accuracy"]["value"] * 240)
    assert record["threshold"] is None
    assert "pooled_at_threshold_of_other_folds" not in record
    assert set(record["mean_of_folds"]["model"]) == {"macro_auc"}


def test_mean_of_folds_does_not_compare_probabilities_of_different_folds(tmp_path, trainings, monkeypatch):
    """Each fold ranks its images well, but on scales that differ."""
    plain = crossval.predict

    def shifted(model, pixels, preprocessing, rows=None):
        score = plain(model, pixels, preprocessing, rows=rows)[:, 1]
        number = int(model.job.label.split()[1].partition("/")[0])
        score = score / 10 + 0.3 * number - 0.1
        return np.stack([1 - score, score], axis=1).astype(np.float32)

    monkeypatch.setattr(crossval, "predict", shifted)
    record = score(tmp_path, "robust", TWO)
    own = [fold["models"]["model"]["auc"]["value"] for fold in record["by_fold"]]
    mean = record["mean_of_folds"]["model"]["auc"]
    assert mean["value"] == pytest.approx(np.mean(own))
    assert mean["low"] < mean["value"] < mean["high"]
    assert record["pooled"]["model"]["auc"]["value"] < mean["value"] - 0.1


def test_threshold_is_never_chosen_on_the_fold_that_it_judges(tmp_path, trainings):
    record = score(tmp_path, "reference", TWO)
    images = ScoredImages.of(record)
    is_positive, scores = images.label == 1, images.probabilities["model"][:, 1]
    answers = BinaryAnswers(scores, np.zeros(len(scores), bool))
    called = np.zeros(len(scores), bool)
    for entry in record["threshold"]["by_fold"]:
        others = np.flatnonzero((images.fold != entry["fold"]) & images.selectable)
        assert entry["value"] == threshold_of(is_positive, [answers], others)
        held = images.fold == entry["fold"]
        called[held] = scores[held] >= entry["value"]
    for name, kind, hits in (("sensitivity", is_positive, called), ("specificity", ~is_positive, ~called)):
        expected = fraction_metric(hits[kind], images.group[kind])
        assert record["threshold"][name] == dataclasses.asdict(expected)
        assert record["pooled_at_threshold_of_other_folds"]["model"][name] == record["threshold"][name]
    chosen_on = np.flatnonzero(images.selectable)
    assert record["threshold"]["value"] == threshold_of(is_positive, [answers], chosen_on)
    assert record["threshold"]["images"] == len(chosen_on) < len(scores)
    # Answers of the judged fold change only the thresholds of the others.
    changed = json.loads(to_json(record))
    for index in np.flatnonzero(images.fold == 1):
        changed["images"]["probabilities"]["model"][index] = [0.5, 0.5]
    again = figures_from(changed)["threshold"]["by_fold"]
    assert again[0] == record["threshold"]["by_fold"][0]
    assert again[1] != record["threshold"]["by_fold"][1]


def test_images_that_test_a_bundle_choose_no_threshold(tmp_path, trainings):
    """The test images are those of the recipe's own split, and images of their groups are excluded with them."""
    data = collection(TWO)
    record = score(tmp_path, "reference", TWO, data=data)
    split = crossval.assign_roles(data, REFERENCE.split, "reference", TWO.names)
    test = np.array([image.role == "test" for image in split.images])
    selectable = np.array(record["images"]["selectable"], bool)
    assert test.any()
    assert not set(data.group[test]) & set(data.group[selectable])
    assert selectable.sum() == np.count_nonzero(~np.isin(data.group, data.group[test]))
    assert record["split_fingerprint"] == split.split_fingerprint
    # Their answers do not change the threshold.
    changed = json.loads(to_json(record))
    for index in np.flatnonzero(~selectable):
        changed["images"]["probabilities"]["model"][index] = [0.9, 0.1]
    assert figures_from(changed)["threshold"]["value"] == record["threshold"]["value"]


def test_threshold_of_a_bundle_is_chosen_without_its_own_test_images(tmp_path, trainings):
    data = collection(TWO)
    record = score(tmp_path, "reference", TWO, data=data)
    assert threshold_for(record, []) == record["threshold"]
    tested = np.flatnonzero(record["images"]["selectable"])[::5]
    found = threshold_for(record, [data.scans[row].sha256 for row in tested])
    assert found["images"] == np.count_nonzero(
        np.array(record["images"]["selectable"], bool) & ~np.isin(data.group, data.group[tested])
    )
    # Other answers to the test images and their groups change nothing.
    changed = json.loads(to_json(record))
    for index in np.flatnonzero(np.isin(data.group, data.group[tested])):
        changed["images"]["probabilities"]["model"][index] = [0.9, 0.1]
    again = threshold_for(changed, [data.scans[row].sha256[:16] for row in tested])
    assert (again["value"], again["by_fold"]) == (found["value"], found["by_fold"])
    (tmp_path / "four").mkdir()
    assert threshold_for(score(tmp_path / "four", "reference", FOUR), []) is None


def test_answers_of_one_class_choose_no_threshold():
    is_positive, fold = np.array([1, 1, 0, 0, 1, 1], bool), np.array([1, 1, 1, 1, 2, 2])
    model = {"model": BinaryAnswers(np.linspace(0, 1, 6), np.zeros(6, bool))}
    assert thresholds_of_other_folds(is_positive, model, fold, np.ones(6, bool)) is None  # fold 2 has one class
    assert thresholds_of_other_folds(is_positive, model, np.ones(6, int), np.ones(6, bool)) is None  # one fold


@pytest.mark.parametrize("name", ["reference", "robust", "small"])
def test_folds_of_several_machines_can_be_merged_for_every_recipe(tmp_path, trainings, name):
    for folder in ("whole", "shared"):
        (tmp_path / folder).mkdir()
    whole = score(tmp_path / "whole", name, TWO)
    count = len(trainings)
    for fold in (2, 3, 1):
        alone = score(tmp_path / "shared", name, TWO, only=fold)
        assert fold in alone["folds_scored"]
    assert len(trainings) == 2 * count
    assert {**alone, "creation": None} == {**whole, "creation": None}
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["fold-1", "fold-2", "fold-3"]


def test_single_fold_has_a_threshold_but_none_of_other_folds(tmp_path, trainings):
    alone = score(tmp_path, "robust", TWO, only=2)
    assert alone["folds_scored"] == [2]
    assert set(alone["threshold"]) == {"value", "rule", "images"}


def test_answers_of_an_older_version_are_trained_again(tmp_path, trainings):
    score(tmp_path, "reference", TWO)
    path = tmp_path / "fold-1" / "model.npz"
    with np.load(path) as kept:
        content = {key: kept[key] for key in kept if key != "probabilities"} | {"positive": kept["probabilities"][:, 1]}
    np.savez(path, **content)
    score(tmp_path, "reference", TWO)
    assert len(trainings) == 4


def test_fold_keeps_the_probabilities_of_all_labels(tmp_path, trainings):
    data = collection(FOUR)
    score(tmp_path, "robust", FOUR, data=data)
    with np.load(tmp_path / "fold-1" / "model.npz") as kept:
        held, validation = trainings[0].watched, trainings[0].validation
        np.testing.assert_array_equal(kept["probabilities"], noisy_answers(data, held, 4, 0))
        np.testing.assert_array_equal(kept["validation"], noisy_answers(data, validation, 4, 0))
        np.testing.assert_array_equal(kept["validation_label"], data.label[validation])
        assert np.isnan(kept["threshold"])


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks")
@pytest.mark.usefixtures("small_files")
def test_full_disk_is_an_error_of_the_file_with_the_answers(tmp_path, trainings):
    with pytest.raises(OutputError, match=r"fold-1/model\.npz: cannot write"):
        score(tmp_path, "reference", TWO)
    assert not list((tmp_path / "fold-1").iterdir())


def test_fold_is_trained_by_one_process_at_a_time(tmp_path, trainings):
    (tmp_path / "fold-1").mkdir(parents=True)
    handle = lock_folder(tmp_path / "fold-1")
    with pytest.raises(UsageError, match="another process is training this fold"):
        score(tmp_path, "reference", TWO)
    os.close(handle)
    assert score(tmp_path, "reference", TWO)["folds_scored"] == [1, 2, 3]


def test_folds_that_others_finish_meanwhile_are_in_the_record(tmp_path, trainings, monkeypatch):
    """Two processes train a fold each into one folder: the record of the one that ends last covers both folds."""
    train = crossval.train_model

    def train_while_another_process_does(job, recipe, pool=None):
        monkeypatch.setattr(crossval, "train_model", train)
        assert score(tmp_path, "reference", TWO, only=1)["folds_scored"] == [1]
        return train(job, recipe, pool)

    monkeypatch.setattr(crossval, "train_model", train_while_another_process_does)
    assert score(tmp_path, "reference", TWO, only=3)["folds_scored"] == [1, 3]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks")
def test_answers_are_not_discarded_while_another_process_trains_a_fold(tmp_path, trainings):
    crossval._claim(tmp_path, "run", overwrite=False)
    score(tmp_path, "reference", TWO)
    (tmp_path / "crossval.json").write_text("{}")
    files = sorted(tmp_path.rglob("*"))
    handle = lock_folder(tmp_path / "fold-3")
    with pytest.raises(UsageError, match="another process is training this fold"):
        crossval._claim(tmp_path, "run", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == files
    os.close(handle)
    crossval._claim(tmp_path, "run", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]  # no record of discarded answers either


def test_folder_of_another_grouping_is_refused(tmp_path):
    data = collection(TWO)
    weights = SimpleNamespace(sha256="0" * 64)

    def identity(some: Collection) -> str:
        return crossval._identity(recipe_of("robust"), some, np.ones(120, bool), TWO, weights, 3, 0)

    crossval._claim(tmp_path, identity(data), overwrite=False)
    crossval._claim(tmp_path, identity(data), overwrite=False)
    other = identity(dataclasses.replace(data, group=np.arange(120)))
    with pytest.raises(OutputError, match="other data, positive label, groups"):
        crossval._claim(tmp_path, other, overwrite=False)
    (tmp_path / "fold-1").mkdir()
    crossval._claim(tmp_path, other, overwrite=True)
    assert not (tmp_path / "fold-1").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"transforms": ScanViews(filter_probability=0.5)},
        {"preprocessing": Preprocessing(96, 96)},
        {"split": SplitPolicy(("reference",), keep_apart=True, validation_folds=4)},
    ],
)
def test_a_student_with_another_pool_is_another_run(changes):
    """The pool of views that the teacher labeled is kept, so a student must not be trained on that of other views."""

    def identity(recipe: RecipeSpec) -> str:
        weights = SimpleNamespace(sha256="0" * 64)
        return crossval._identity(recipe, collection(TWO), np.ones(120, bool), TWO, weights, 3, 0)

    more = dataclasses.replace(SMALL, schedule=dataclasses.replace(SMALL.schedule, epochs=30))
    assert identity(SMALL) == identity(more)
    assert identity(SMALL) != identity(dataclasses.replace(SMALL, **changes))


def test_overwriting_counts_the_space_of_finished_folds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(crossval, "check_space", lambda _out, needed: asked.append(needed))
    monkeypatch.setattr(crossval, "_missing", lambda *_: [])
    for overwrite in (False, True):
        crossval._check_space(tmp_path, recipe_of("robust"), 0, [], [1], overwrite=overwrite)
    assert asked[0] < asked[1]


def test_record_of_another_schema_is_refused():
    with pytest.raises(DataError, match="schema version 1; 2 is needed"):
        figures_from({"schema_version": 1, "images": [], "labels": [], "positive": 1})


def test_record_of_one_model_is_small(tmp_path, trainings):
    """Per image it takes at most the 500 kB of 3,975 images, with file names as long as in the larger collection."""
    data = collection(TWO, per_label=1000, copies=3)
    names = [f"nickparvar-train/meningioma/Tr-me_{index:04}.jpg" for index in range(2000)]
    scans = [dataclasses.replace(scan, file=name) for scan, name in zip(data.scans, names, strict=True)]
    data = dataclasses.replace(data, scans=scans, source=np.array(["nickparvar-train"] * 2000))
    record = score(tmp_path, "robust", TWO, data=data)
    figures = len(to_json({**record, "images": {}}))
    assert figures < 40_000
    assert (len(to_json(record)) - figures) / 2000 * 3975 < 480_000
