"""Test the small recipe: folded network, pool, distillation, paired figures, bundle and cross-validation."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from sklearn.metrics import roc_curve

from mri_edge.authoring.teacher import TeacherAnswers
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.errors import DataError, OutputError, UsageError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train import crossval, training
from mri_edge.train.data import folder
from mri_edge.train.data.collection import collect
from mri_edge.train.data.roles import choose_roles
from mri_edge.train.evaluation import crossval_figures
from mri_edge.train.loops import checkpoint, distil
from mri_edge.train.models import small_cnn
from mri_edge.train.models.network import Network
from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes import registry
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.distilled import SMALL
from mri_edge.train.recipes.robust import ROBUST

SIZE = 32


@pytest.fixture(scope="module")
def recipe():
    """The small recipe with 2 epochs on a pool of 32 views, and one student per fold of a cross-validation."""
    schedule = dataclasses.replace(SMALL.schedule, batch=4, epochs=2, pool_views=32, students=1)
    return dataclasses.replace(SMALL, preprocessing=Preprocessing(SIZE, SIZE), schedule=schedule)


@pytest.fixture(scope="module")
def robust_recipe():
    prepared = dataclasses.replace(ROBUST.preprocessing, height=SIZE, width=SIZE)
    schedule = dataclasses.replace(ROBUST.schedule, batch=4, epochs=1, epoch_images=16, warmup_steps=2, rise=1)
    return dataclasses.replace(ROBUST, preprocessing=prepared, head=Head(8, 0.5), schedule=schedule)


@pytest.fixture
def shallow(monkeypatch):
    """Shorten the student to two convolutions, because Keras needs long to trace all of them."""
    monkeypatch.setattr(small_cnn, "STACK", small_cnn.STACK[:2])


@pytest.fixture
def quick(monkeypatch, robust_recipe, shallow, eager):
    """Shallow students, and teachers trained for 4 steps, without traced graphs."""
    monkeypatch.setitem(registry.RECIPES, "robust", robust_recipe)


def test_folded_network_equals_the_trained_one_and_ignores_color(recipe):
    trained = small_cnn.build_trainable(recipe, 2, seed=1)
    rng = np.random.default_rng(0)
    for layer in trained.layers:  # statistics as after training, not 0 and 1
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    shipped = small_cnn.build_shipped(recipe, 2)
    small_cnn.fold(trained, shipped)
    tinted = rng.integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.float32)
    gray = tinted.mean(axis=-1, keepdims=True) / 255
    expected = np.asarray(trained.predict_on_batch(gray))
    found = np.asarray(shipped.whole.predict_on_batch(recipe.preprocessing.normalize(tinted)))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 sums in another order
    features = shipped.backbone.predict_on_batch(recipe.preprocessing.normalize(tinted))
    np.testing.assert_allclose(np.asarray(shipped.head.predict_on_batch(features)), found, atol=1e-6)


def test_full_network_is_within_its_size_budget():
    """At most 150 KB in 8 bits, with some 20 KB for everything that is not a weight."""
    assert small_cnn.build_shipped(SMALL, 2).whole.count_params() < 130_000


def test_views_are_shifted_and_brightened_within_bounds():
    views = np.zeros((6, SIZE, SIZE), np.uint8)
    views[:, 12:20, 12:20] = 200
    changed = distil.augment_views(np.random.default_rng(0), views)
    assert changed.shape == (6, SIZE, SIZE, 1)
    assert changed.dtype == np.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    assert len({view.tobytes() for view in changed}) == 6
    np.testing.assert_array_equal(changed, distil.augment_views(np.random.default_rng(0), views))
    sizes = {int((view[..., 0] > view.mean() + 0.2).sum()) for view in changed}
    assert sizes == {64}  # the square is whole wherever it went


def test_student_learns_from_its_teacher_and_is_repeatable(tmp_path, recipe, shallow):
    def views_of(step):
        rng = np.random.default_rng(step)
        label = rng.integers(0, 2, 8)
        views = rng.integers(0, 60, (8, SIZE, SIZE), dtype=np.uint8)
        views[label == 1, 10:22, 10:22] += 150
        return views

    asked = []

    def teacher(pixels):
        asked.append(len(pixels))
        is_positive = (pixels[..., 0].max(axis=(1, 2)) > 100).astype(np.float32)
        return np.stack([0.9 - 0.8 * is_positive, 0.1 + 0.8 * is_positive], axis=1)

    assert distil.open_pool(tmp_path) is None
    pool, opened = distil.make_pool(views_of, 12, teacher, tmp_path), distil.open_pool(tmp_path)
    assert asked == [8] * 12
    assert opened is not None
    np.testing.assert_array_equal(opened.views, pool.views)
    np.testing.assert_array_equal(opened.answers, pool.answers)
    schedule = dataclasses.replace(recipe.schedule, epochs=6, batch=8, rise=5)

    def student():
        network = small_cnn.build_trainable(recipe, 2, seed=4)
        return network, distil.distil(network, pool, schedule, seed=4)

    (first, losses), (again, _) = student(), student()
    for left, right in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(losses) == 72
    # The cross-entropy is at least the entropy of the softened answers: at a temperature of 2, 0.9 becomes 0.75.
    floor = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert floor < np.mean(losses[-12:]) < floor + 0.5 * (np.mean(losses[:12]) - floor)


def twice(answers):
    return answers.of(np.arange(len(answers.called)).repeat(2))


def test_specificity_equals_the_roc_curve_and_a_model_equals_itself():
    rng = np.random.default_rng(2)
    is_positive = rng.random(300) < 0.6
    score = np.round(rng.normal(is_positive, 1), 1)  # with ties
    false_positive, found, _ = roc_curve(is_positive, score, drop_intermediate=False)
    expected = 1 - false_positive[np.argmax(found >= crossval_figures.SENSITIVITY)]
    assert crossval_figures.specificity_at(is_positive, score, np.ones((1, 300)))[0] == pytest.approx(expected)
    one, chance = (crossval_figures.BinaryAnswers(its, its > 0.5) for its in (score, rng.normal(size=300)))
    group = np.arange(300)
    same = crossval_figures.student_minus_teacher(is_positive, one, one, group)
    worse = crossval_figures.student_minus_teacher(is_positive, one, chance, group)
    twins = crossval_figures.student_minus_teacher(is_positive.repeat(2), twice(one), twice(chance), group.repeat(2))
    for figure in ("auc", "specificity", "accuracy"):
        assert same[figure]["value"] == same[figure]["low"] == same[figure]["high"] == 0
        assert worse[figure]["high"] < 0
        for bound in ("value", "low", "high"):
            assert twins[figure][bound] == pytest.approx(worse[figure][bound]), "copies add no evidence"
    assert set(
        crossval_figures.student_minus_teacher(
            is_positive[is_positive], one.of(is_positive), chance.of(is_positive), group[is_positive]
        )
    ) == {"accuracy"}
    right = [np.mean(its.called == is_positive) for its in (chance, one)]
    assert worse["accuracy"]["value"] == pytest.approx(right[0] - right[1])


def test_threshold_of_a_fold_is_chosen_on_other_folds_without_test_images():
    rng = np.random.default_rng(3)
    is_positive, fold_of = rng.random(600) < 0.6, rng.integers(0, 4, 600)
    students = {
        name: crossval_figures.BinaryAnswers(rng.normal(is_positive, 0.6).clip(0, 1), np.zeros(600, bool))
        for name in ("a", "b")
    }
    choosable = rng.random(600) < 0.9
    by_fold = crossval_figures.thresholds_of_other_folds(is_positive, students, fold_of, choosable)
    called = crossval_figures.called_by_other_folds(students, fold_of, by_fold)
    for fold in (1, 2, 3):
        others = np.flatnonzero(np.isin(fold_of, [1, 2, 3]) & (fold_of != fold) & choosable)
        threshold = crossval_figures.threshold_of(is_positive, list(students.values()), others)
        for name, one in students.items():
            np.testing.assert_array_equal(
                called[name].called[fold_of == fold], one.positive[fold_of == fold] >= threshold
            )
    assert not called["a"].called[fold_of == 0].any()
    # Neither held-out images nor test images affect the threshold of a fold.
    other = {name: crossval_figures.BinaryAnswers(one.positive.copy(), one.called) for name, one in students.items()}
    for one in other.values():
        one.positive[(fold_of == 1) & is_positive] = 0
        one.positive[~choosable & (fold_of != 1)] = 0.5
    by_fold = crossval_figures.thresholds_of_other_folds(is_positive, other, fold_of, choosable)
    again = crossval_figures.called_by_other_folds(other, fold_of, by_fold)
    healthy = (fold_of == 1) & ~is_positive & choosable
    np.testing.assert_array_equal(again["a"].called[healthy], called["a"].called[healthy])


@pytest.mark.slow
def test_student_bundle_records_its_teacher_and_rejects_one_of_another_split(
    two_sources, recipe, robust_recipe, weights_file, tmp_path, quick
):
    teacher = tmp_path / "teacher"
    train_bundle(two_sources, teacher, robust_recipe, backbone_weights=str(weights_file), seed=0)
    out = tmp_path / "student"
    trained = train_bundle(two_sources, out, recipe, teachers=[str(teacher)], seed=2)
    bundle = Bundle.open(out)
    bundle.verify()
    made = bundle.manifest.training
    assert (made.recipe, made.backbone) == ("small", small_cnn.SMALL_CNN.title)
    assert made.backbone_weights == "distilled from vgg16 (robust, seed 0)"
    assert made.split_fingerprint == Bundle.open(teacher).manifest.training.split_fingerprint
    assert bundle.manifest.novelty is not None
    answers = TeacherAnswers.from_json((out / "teacher.json").read_bytes())
    assert len(answers.called) == made.test_images == len(trained.truth)
    reopened = keras.models.load_model(out / "model.keras")
    assert len(reopened.inputs[0].shape) == 4
    # An additional picture gives another split, in which the teacher may have seen a test image.
    extra = two_sources / "b" / "glioma" / "00.png"
    extra.with_name("more.png").write_bytes(extra.read_bytes())
    with pytest.raises(DataError, match="another split"):
        train_bundle(two_sources, tmp_path / "other", recipe, teachers=[str(teacher)], seed=2)
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".other*"))


@pytest.fixture
def taught(monkeypatch):
    """Replace training by building one layer; record each training, and interrupt the ``cut_off``-th."""
    calls = []

    real = crossval.train_model

    def set_up(cut_off=None):
        def train(job, recipe, pool=None):
            if pool is not None:
                return real(job, recipe, pool)
            calls.append("teacher")
            if len(calls) == cut_off:
                raise KeyboardInterrupt
            keras.utils.set_random_seed(job.seed)
            layers = [keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
            network = Network(None, None, keras.Sequential(layers))
            return training.Trained(network, network, temperature=1.0, threshold=0.5, details={})

        monkeypatch.setattr(crossval, "train_model", train)
        return calls

    return set_up


@pytest.mark.slow
def test_distillation_cross_validation_is_paired_and_resumes(
    two_sources, recipe, weights_file, tmp_path, quick, taught
):
    out, given = tmp_path / "cv", {"folds": 3, "backbone_weights": str(weights_file), "seed": 0}
    calls = taught(cut_off=2)
    with pytest.raises(KeyboardInterrupt):
        crossval.cross_validate(two_sources, out, recipe, **given)
    result = crossval.cross_validate(two_sources, out, recipe, **given)
    assert len(calls) == 4  # the first fold's teacher was kept
    assert set(result["pooled"]) == {"teacher", "student 0"}
    assert set(result["student_minus_teacher"]) == {"student 0"}
    assert set(result["images"]["fold"]) == {1, 2, 3}
    assert set(result["student_minus_teacher_at_threshold_of_other_folds"]) == {"student 0"}
    assert 0 <= result["threshold"]["value"] <= 1
    split = choose_roles(collect(folder.find_scans(two_sources)[0], recipe.preprocessing))
    seen = len(split.of("train")) + len(split.of("validation"))
    assert split.of("test")
    assert f"to {seen} images out of fold" in result["threshold"]["rule"]
    assert json.loads((out / "crossval.json").read_text()) == result
    assert result["labels"][result["positive"]] == "tumour"
    # Another schedule for the students does not retrain the teachers.
    crossval.cross_validate(two_sources, out, recipe.with_epochs(1), **given)
    assert len(calls) == 4
    # Naming the default positive label changes nothing. Another positive label or seed is another run.
    crossval.cross_validate(two_sources, out, recipe, **given, positive="tumour")
    assert len(calls) == 4
    for other in ({"seed": 1}, {"positive": "no tumour"}):
        with pytest.raises(OutputError, match="other data, positive label"):
            crossval.cross_validate(two_sources, out, recipe, **{**given, **other})


@pytest.mark.slow
def test_folds_of_several_machines_can_be_merged(two_sources, recipe, weights_file, tmp_path, quick, taught):
    given = {"folds": 3, "backbone_weights": str(weights_file), "seed": 0}
    calls = taught()
    whole = crossval.cross_validate(two_sources, tmp_path / "whole", recipe, **given)
    for fold in (2, 1, 3):
        alone = crossval.cross_validate(two_sources, tmp_path / f"only-{fold}", recipe, **given, only=fold)
        assert alone["folds_scored"] == [fold]
        assert "student_minus_teacher_at_threshold_of_other_folds" not in alone
        assert set(alone["images"]["fold"]) == {fold}
    assert len(calls) == 6
    # Merge only the answers, without the views that students learn from.
    together = tmp_path / "together"
    for fold in (1, 2, 3):
        (together / f"fold-{fold}").mkdir(parents=True)
        for file in (tmp_path / f"only-{fold}" / f"fold-{fold}").glob("*.npz"):
            shutil.copy(file, together / f"fold-{fold}")
    shutil.copy(tmp_path / "only-1" / "identity", together)
    result = crossval.cross_validate(two_sources, together, recipe, **given)
    assert len(calls) == 6  # nothing was trained anew
    for part in ("pooled", "threshold", "student_minus_teacher", "student_minus_teacher_by_fold", "images"):
        assert result[part] == whole[part]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "small", "--cv", "3", "--fold", "4"], "there are folds 1 to 3. Received: 4"),
        (["--recipe", "small", "--teacher", "vgg16", "--fold", "1"], "--fold applies only to a cross-validation"),
    ],
    ids=["no such fold", "no cross-validation"],
)
def test_wrong_use_of_fold_is_rejected(two_sources, tmp_path, capfd, arguments, said):
    assert run(["train", "--data", str(two_sources), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--recipe", "small"], ["--teacher", "vgg16"], ["--recipe", "small", "--cv", "3", "--teacher", "vgg16"]],
    ids=["no teacher", "wrong recipe", "cv trains its own"],
)
def test_teacher_requires_the_small_recipe(two_sources, tmp_path, capfd, arguments):
    assert run(["train", "--data", str(two_sources), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert re.search("--teacher BUNDLE(, from which| applies only to --recipe small)", capfd.readouterr().err)


def test_missing_disk_space_for_the_views_is_reported_first(two_sources, recipe, weights_file, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OutputError, match="5 MB free, this training needs 439 MB"):
        train_bundle(two_sources, tmp_path / "student", SMALL, teachers=["vgg16"], seed=0)
    schedule = dataclasses.replace(recipe.schedule, pool_views=SMALL.schedule.pool_views)
    recipe = dataclasses.replace(recipe, schedule=schedule)
    with pytest.raises(OutputError, match="5 MB free, this training needs 702 MB"):
        crossval.cross_validate(
            two_sources, tmp_path / "cv", recipe, folds=3, backbone_weights=str(weights_file), seed=0
        )


@pytest.mark.slow
def test_distillation_is_cross_validated_by_source(two_sources, recipe, weights_file, tmp_path, quick, taught):
    taught()
    given = {"folds": None, "backbone_weights": str(weights_file), "seed": 0}
    result = crossval.cross_validate(two_sources, tmp_path / "cv", recipe, **given)
    assert (result["protocol"], result["folds"], result["folds_scored"]) == ("sources", 2, [1, 2])
    assert [fold["sources"] for fold in result["by_fold"]] == [["a"], ["b"]]
    assert set(result["by_source"]) == {"a", "b"}
    assert set(result["pooled"]) == {"teacher", "student 0"}
    assert len(result["threshold"]["by_fold"]) == 2
    with pytest.raises(UsageError, match=r"there are folds 1 to 2\. Received: 3"):
        crossval.cross_validate(two_sources, tmp_path / "cv", recipe, **given, only=3)
