"""Test that no image, near-duplicate or patient is on both sides of a split or a fold, for every recipe."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mri_edge.inference.out_of_distribution import distances

pytest.importorskip("keras", reason="needs the extra 'train'")

from sklearn.metrics import confusion_matrix, recall_score, roc_curve

from mri_edge.train import crossval, pipeline
from mri_edge.train.data import duplicates, roles
from mri_edge.train.data.audit import inspect, table
from mri_edge.train.data.collection import Collection, collect
from mri_edge.train.data.folder import Scan, find_scans
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.roles import by_source
from mri_edge.train.evaluation import out_of_distribution
from mri_edge.train.evaluation.crossval_figures import Stress, figures
from mri_edge.train.evaluation.crossval_record import SCHEMA_VERSION, ScoredImages, image_columns
from mri_edge.train.evaluation.intervals import auc
from mri_edge.train.evaluation.metrics import fraction_metric
from mri_edge.train.recipes.distilled import SMALL
from mri_edge.train.recipes.robust import ROBUST
from mri_edge.train.training import Trained
from mri_edge.train.transforms import mri

TWO = Labels(("no tumour", "tumour"), 1, {})


def apart(hash_, bits):
    """Return a hash that differs in ``bits`` bits."""
    return hash_ ^ (np.arange(duplicates.HASH_BITS) < bits)


# --- near-duplicates


@pytest.mark.parametrize(("bits", "together"), [(0, True), (8, True), (9, False), (12, False)])
def test_pictures_at_most_8_bits_apart_form_a_group(bits, together):
    one = np.random.default_rng(0).random(duplicates.HASH_BITS) < 0.5
    group = duplicates.groups(np.stack([one, apart(one, bits)]))
    assert (group[0] == group[1]) == together


def test_chain_of_near_duplicates_is_one_group():
    one = np.random.default_rng(0).random(duplicates.HASH_BITS) < 0.5
    chain = np.stack([apart(one, bits) for bits in (0, 32, 8, 24, 16)])  # links of 8 bits, in no order
    assert np.count_nonzero(chain[0] != chain[1]) == 32
    assert len(set(duplicates.groups(chain))) == 1
    assert len(set(duplicates.groups(np.delete(chain, 4, axis=0)))) == 2  # without the link in the middle


@pytest.mark.parametrize("middle", [0, 1, 2])
def test_group_does_not_depend_on_the_order_of_near_duplicates(middle):
    one = np.random.default_rng(0).random(duplicates.HASH_BITS) < 0.5
    arms = [apart(one, 8), np.roll(apart(np.roll(one, -64), 8), 64)]  # 16 bits from each other
    arms.insert(middle, one)
    assert len(set(duplicates.groups(np.stack(arms)))) == 1
    assert len(set(duplicates.groups(np.delete(np.stack(arms), middle, axis=0)))) == 2


@pytest.mark.parametrize(("bits", "pairs"), [(7, 0), (8, 1), (9, 1)])
def test_close_pairs_include_the_given_number_of_bits(bits, pairs):
    one = np.random.default_rng(1).random(duplicates.HASH_BITS) < 0.5
    assert len(duplicates.close_pairs(np.stack([one, apart(one, 8)]), bits)) == pairs


def test_copies_are_found_by_their_bytes():
    """Files of equal bytes are duplicates even if their hashes are far apart."""
    scans = [Scan(Path(name), name, "no", label, sha) for name, label, sha in (("a", 0, "1"), ("b", 1, "1"))]
    hashes = np.stack([np.zeros(duplicates.HASH_BITS, bool), np.ones(duplicates.HASH_BITS, bool)])
    assert [(finding.kind, finding.files) for finding in inspect(scans, hashes)] == [
        ("duplicate", ("a", "b")),
        ("contradictory", ("a", "b")),
    ]


def test_each_set_of_similar_files_is_one_finding():
    """Findings grow with the number of files, not with that of their pairs."""
    hashes = np.random.default_rng(0).random((4, duplicates.HASH_BITS)) < 0.5
    rows = [(f"{row}", row >= 1500, f"{row % 2}" if row < 1000 else f"{row}", row // 1000) for row in range(2000)]
    rows += [("x", 0, "x", 2), ("y", 1, "y", 3), ("z", 0, "z", 3)]
    scans = [Scan(Path(name), name, "no", int(label), sha) for name, label, sha, _ in rows]
    found = inspect(scans, hashes[[row for *_, row in rows]])
    assert [(finding.kind, len(finding.files)) for finding in found] == [
        ("duplicate", 500), ("duplicate", 500),
        ("near-duplicate", 1000), ("near-duplicate", 1000), ("near-duplicate", 2),
        ("contradictory", 1000), ("contradictory", 2),
    ]  # fmt: skip
    assert found[-1].files == ("y", "z")
    text = table(scans, found)
    assert "1000  =  1001  =  1002  =  1003  =  … 995 more …  =  1999" in text
    assert len(text) < 1000


def flat_collection(count, groups=None):
    """Create ``count`` scans with random hashes, half of each label, without pictures."""
    label = (np.arange(count) >= count // 2).astype(np.intp)
    scans = [Scan(Path(f"{i}"), f"{one}/{i}.png", str(one), int(one), f"{i:064x}") for i, one in enumerate(label)]
    hashes = np.random.default_rng(0).random((count, duplicates.HASH_BITS)) < 0.5
    group = duplicates.groups(hashes) if groups is None else groups
    return Collection(scans, [], np.zeros((count, 1), np.uint8), label, np.array([""] * count), group, hashes)


def test_no_image_within_12_bits_of_a_test_image_trains_or_validates():
    data = flat_collection(200)
    test = [i for i, image in enumerate(roles.choose_roles(data).images) if image.role == "test"]
    others = np.setdiff1d(np.arange(200), test)
    near, far = others[::2][:40], others[1::2][:40]
    for index, victim in zip(near, test * 2, strict=False):
        data.hashes[index] = apart(data.hashes[victim], 12)
    for index, victim in zip(far, test * 2, strict=False):
        data.hashes[index] = ~apart(~data.hashes[victim], 13)
    role = [image.role for image in roles.choose_roles(data).images]
    assert [i for i, one in enumerate(role) if one == "test"] == test
    assert {role[index] for index in near} == {"excluded"}
    assert {role[index] for index in far} == {"train", "validation"}


def test_group_of_a_test_image_never_trains():
    data = flat_collection(160, np.arange(160) // 2 * 2)  # pairs, by patient
    role = np.array([image.role for image in roles.choose_roles(data).images])
    for group in np.unique(data.group[role == "test"]):
        assert set(role[data.group == group]) <= {"test", "excluded"}
    mask = roles.near(data, np.array([10, 40]))
    assert np.flatnonzero(mask).tolist() == [10, 11, 40, 41]


# --- folds


def watch_training(monkeypatch):
    """Train nothing, but record which images would train and validate in each fold."""
    seen = []

    def train(job, *arguments):
        seen.append((job.data, np.asarray(job.train), np.asarray(job.validation)))
        whole = SimpleNamespace(predict_on_batch=brightness)
        return SimpleNamespace(quick=SimpleNamespace(whole=whole), temperature=1.0, threshold=0.4)

    monkeypatch.setattr(crossval, "train_model", train)
    return seen


def brightness(batch):
    """Return probabilities (N, 2), where that of a tumor is the mean gray level of the picture, 0 to 1."""
    mean, deviation = (np.array(values) for values in (ROBUST.preprocessing.mean, ROBUST.preprocessing.deviation))
    gray = (np.asarray(batch) * deviation + mean).mean(axis=(1, 2, 3))
    return np.stack([1 - gray, gray], axis=1).astype(np.float32)


@pytest.fixture
def copied_between_sources(two_sources):
    """``two_sources`` with three pictures of each class of ``a`` copied to ``b`` in another file format."""
    for inner, outer in (("no", "notumor"), ("yes", "glioma")):
        for path in sorted((two_sources / "a" / inner).iterdir())[:3]:
            Image.open(path).save(two_sources / "b" / outer / f"copy-{path.stem}.bmp")
    return two_sources


def test_leaving_out_a_source_excludes_its_near_duplicates_in_others(
    copied_between_sources, tiny_recipe, tmp_path, monkeypatch
):
    scans, labels = find_scans(copied_between_sources)
    data = collect(scans, tiny_recipe.preprocessing)
    seen = watch_training(monkeypatch)
    everyone = np.ones(len(scans), bool)
    crossval.score_folds(data, everyone, None, tiny_recipe, labels=labels, folds=None, seed=0, store=tmp_path / "folds")
    assert len(seen) == 2
    for (_, train, validation), name in zip(seen, "ab", strict=True):
        learned = np.concatenate([train, validation])
        assert set(data.source[learned]) == {"b" if name == "a" else "a"}
        assert not set(data.group[learned]) & set(data.group[data.source == name])
        assert len(learned) == 50 - (0 if name == "a" else 6)


def test_head_training_excludes_near_duplicates_in_other_sources(
    copied_between_sources, small_recipe, weights_file, tmp_path, monkeypatch
):
    seen = []

    def train(job, *arguments):
        seen.append((job.train, job.watched))
        return SimpleNamespace(
            quick=SimpleNamespace(whole=SimpleNamespace(predict_on_batch=brightness)), temperature=None, threshold=None
        )

    monkeypatch.setattr(crossval, "train_model", train)
    chosen = {"folds": None, "backbone_weights": str(weights_file), "seed": 1}
    crossval.cross_validate(copied_between_sources, tmp_path / "out", small_recipe, **chosen)
    scans, _ = find_scans(copied_between_sources)
    copies = {index for index, scan in enumerate(scans) if "copy-" in scan.file}
    copied = {index for index, scan in enumerate(scans) if scan.source == "a" and scan.path.stem in ("00", "01", "02")}
    [(of_b, held_a), (of_a, held_b)] = seen
    assert {scans[row].source for row in held_a} == {"a"}
    assert {scans[row].source for row in held_b} == {"b"}
    assert len(copies) == len(copied) == 6
    assert not copies & set(of_b)
    assert not copied & set(of_a)
    assert (len(of_b), len(of_a)) == (50, 44)


@pytest.mark.parametrize("folds", [3, None])
def test_fold_trains_and_calibrates_without_held_out_and_excluded_images(
    two_sources, tiny_recipe, tmp_path, monkeypatch, folds
):
    scans, labels = find_scans(two_sources)
    data = collect(scans, tiny_recipe.preprocessing)
    data = dataclasses.replace(data, group=np.arange(100) // 2)
    trainable = np.arange(100) % 10 != 3
    seen = watch_training(monkeypatch)
    result = crossval.score_folds(
        data, trainable, None, tiny_recipe, labels=labels, folds=folds, seed=0, store=tmp_path / "folds"
    )
    fold = np.array(result["images"]["fold"])
    for number, (_, train, validation) in enumerate(seen, start=1):
        assert len(set(train) & set(validation)) == 0
        assert not set(data.group[train]) & set(data.group[validation])
        held = data.group[fold == number]
        learned = np.concatenate([train, validation])
        assert not set(data.group[learned]) & set(held)
        expected = np.flatnonzero(trainable & ~np.isin(data.group, held))
        np.testing.assert_array_equal(np.sort(learned), expected)
        assert set(data.label[validation]) == {0, 1}
    assert sum(fold["models"]["model"]["accuracy"]["images"] for fold in result["by_fold"]) == 100


@pytest.mark.parametrize("folds", [2, None])
def test_robust_cross_validation_respects_patients_and_exclusions(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch, folds
):
    scans, _ = find_scans(two_sources)
    patient = {scan.file: f"{scan.label}-{index % 25 // 2}" for index, scan in enumerate(scans)}
    patient |= {scan.file: f"{scan.file}" for scan in scans if int(scan.path.stem) > 7}  # the rest are each their own
    csv = tmp_path / "patients.csv"
    csv.write_text("file,group\n" + "".join(f"{file},{one}\n" for file, one in patient.items()))
    seen = watch_training(monkeypatch)
    result = crossval.cross_validate(
        two_sources,
        tmp_path / "out",
        tiny_recipe,
        folds=folds,
        backbone_weights=str(weights_file),
        seed=0,
        excluded=["b/glioma/0[0-3].png"],
        groups=csv,
    )
    assert result["excluded"] == [f"b/glioma/0{index}.png" for index in range(4)]
    assert result["patients"] == "patients.csv"
    files = result["images"]["file"]
    assert len(files) == 96
    assert not set(files) & set(result["excluded"])
    fold = np.array(result["images"]["fold"])
    for number, (data, train, validation) in enumerate(seen, start=1):
        assert not {scan.file for scan in data.scans} & set(result["excluded"])
        parts = [{patient[files[row]] for row in rows} for rows in (train, validation, np.flatnonzero(fold == number))]
        assert not parts[0] & parts[1]
        assert not parts[2] & (parts[0] | parts[1])


def test_teacher_and_students_train_and_calibrate_without_held_out_images(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch
):
    """One source replaces the reference's data: its test images and images near them never train in any fold."""
    kept_apart = np.arange(100) % 25 < 5
    monkeypatch.setattr(crossval, "may_train", lambda data: ~kept_apart)
    seen, collections, stored = [], [], {}

    def complete(fold, context, *rest):
        seen.append(fold)
        collections.append(context.data)
        score = brightness_of_labels(context.data, fold.held)
        both = np.stack([1 - score, score], axis=1)
        stored[f"fold-{fold.number}"] = crossval.FoldAnswers(both, (score >= 0.5) * 1, None, 0.5, Stress.empty())

    monkeypatch.setattr(crossval, "_complete_fold", complete)
    monkeypatch.setattr(crossval, "_missing", lambda *fold: [])
    monkeypatch.setattr(crossval, "_read", lambda path: stored[path.parent.name])
    recipe = dataclasses.replace(SMALL, preprocessing=tiny_recipe.preprocessing)
    given = {"folds": 3, "backbone_weights": str(weights_file), "seed": 0}
    result = crossval.cross_validate(two_sources, tmp_path / "out", recipe, **given)
    data = collections[0]
    assert sorted(np.concatenate([fold.held for fold in seen])) == list(range(100))
    for fold in seen:
        used = np.concatenate([fold.train, fold.validation])
        assert len(set(fold.train) & set(fold.validation)) == 0
        assert not set(data.group[used]) & set(data.group[fold.held])
        expected = np.flatnonzero(~kept_apart & ~np.isin(data.group, data.group[fold.held]))
        np.testing.assert_array_equal(np.sort(used), expected)
        assert set(data.label[fold.validation]) == {0, 1}
    assert result["images"]["fold"] == [
        next(number for number, fold in enumerate(seen, 1) if index in fold.held) for index in range(100)
    ]


def brightness_of_labels(data, rows):
    """Return scores (N,) that order images by label, with one mistake in ten."""
    return np.where((rows % 10 == 0) ^ (data.label[rows] == 1), 0.7, 0.2) + rows / 1000


class _StopError(Exception):
    pass


def test_feature_distance_is_fitted_on_training_and_limited_on_validation_images(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch
):
    data = collect(find_scans(two_sources)[0], tiny_recipe.preprocessing)
    record = roles.choose_roles(data)
    seen = []

    def stop(features, pixels, train, held_out, seed, *, source):
        seen.append((train, held_out))
        raise _StopError

    monkeypatch.setattr(pipeline, "fit_out_of_distribution", stop)
    monkeypatch.setattr(pipeline, "keras_features", lambda *arguments: None)
    monkeypatch.setattr(pipeline, "draw_report", lambda *arguments, **options: {})
    network = SimpleNamespace(whole=SimpleNamespace(predict_on_batch=brightness), backbone=None)
    monkeypatch.setattr(pipeline, "train_model", lambda *arguments: Trained(network, network, 1.0, 0.5, {}))
    with pytest.raises(_StopError):
        pipeline.train_bundle(two_sources, tmp_path / "out", tiny_recipe, backbone_weights=str(weights_file), seed=0)
    [rows] = seen
    for some, role in zip(rows, ("train", "validation"), strict=True):
        assert {record.images[row].role for row in some} == {role}


def test_training_images_are_measured_from_a_plane_fitted_without_them():
    """Thirty images define a plane exactly: their own distance from it is 0, while that of new images is large."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (330, 4, 8, 3), dtype=np.uint8)

    def features(some):
        return some.reshape(len(some), -1).astype(np.float32)

    fitted = out_of_distribution.fit_out_of_distribution(features, pixels, np.arange(30), np.empty(0, np.intp), seed=0)
    plane = np.load(io.BytesIO(fitted.content), allow_pickle=False)
    outside = distances(features(pixels[30:]), plane) > fitted.entry.limit
    assert outside.mean() < 0.25


def test_fold_of_a_source_has_exactly_its_images():
    source = np.array(["b", "a", "c", "a", "b", "c", "a"])
    label = np.array([0, 0, 1, 1, 1, 0, 0])
    folds = by_source(source, label)
    assert [fold.tolist() for fold in folds] == [[1, 3, 6], [0, 4], [2, 5]]


# --- figures of a cross-validation


def test_figures_of_a_fold_equal_scikit_learn_and_respect_groups():
    rng = np.random.default_rng(0)
    data = flat_collection(160, np.arange(160) // 4)
    data = dataclasses.replace(data, source=np.where(np.arange(160) % 3 == 0, "a", "b"))
    chosen = rng.permutation(160)[:120]
    positive = np.clip(rng.normal(0.4 + 0.25 * data.label, 0.2), 0, 1).round(2)
    called = positive >= 0.55
    both = np.stack([1 - positive, positive], axis=1)
    columns = image_columns(data, np.ones(160, int), np.ones(160, bool), {"model": both}, {"model": called.astype(int)})
    images = ScoredImages.of({"schema_version": SCHEMA_VERSION, "images": columns})
    found = figures(images, chosen, TWO.names, 1, images.probabilities["model"], images.called["model"])
    is_positive, score, is_called, group = data.label[chosen] == 1, positive[chosen], called[chosen], data.group[chosen]
    assert found["auc"] == dataclasses.asdict(auc(is_positive, score, group))
    assert found["auc"]["high"] - found["auc"]["low"] != pytest.approx(
        auc(is_positive, score).high - auc(is_positive, score).low
    )
    assert found["sensitivity"]["value"] == pytest.approx(recall_score(is_positive, is_called))
    assert found["specificity"]["value"] == pytest.approx(recall_score(is_positive, is_called, pos_label=False))
    assert found["sensitivity"]["images"] == is_positive.sum()
    assert found["sensitivity"] == dataclasses.asdict(fraction_metric(is_called[is_positive], group[is_positive]))
    assert found["accuracy"] == dataclasses.asdict(fraction_metric(is_called == is_positive, group))
    false_positive, true_positive, _ = roc_curve(is_positive, score, drop_intermediate=False)
    least = min(rate for rate, hit in zip(false_positive, true_positive, strict=True) if hit >= 0.95)
    assert found["false_positive_rate_at_sensitivity"]["value"] == pytest.approx(least)
    for name in ("0", "1"):
        inside = data.label[chosen] == int(name)
        assert found["right_by_folder"][name]["value"] == pytest.approx(np.mean((is_called == is_positive)[inside]))
    assert found["confusion_matrix"] == confusion_matrix(is_positive, is_called).tolist()


def test_stress_tests_detect_a_model_that_relies_on_brightness(tiny_recipe, tmp_path, monkeypatch):
    """Tumor slices are bright, healthy ones dark, and the network uses only brightness, at a threshold of 0.4."""
    rng = np.random.default_rng(1)
    data = flat_collection(60)
    greys = [rng.integers(*((150, 211) if label else (40, 81)), (40, 40), dtype=np.uint8) for label in data.label]
    slices = [mri.Slice(gray, (0, 0, 40, 40)) for gray in greys]
    pixels = np.stack([mri.resize(gray, tiny_recipe.preprocessing) for gray in greys])[..., None].repeat(3, -1)
    data = dataclasses.replace(data, slices=slices, pixels=pixels)
    watch_training(monkeypatch)
    everyone = np.ones(60, bool)
    result = crossval.score_folds(
        data, everyone, None, tiny_recipe, labels=TWO, folds=2, seed=0, store=tmp_path / "folds"
    )

    def rates(change):
        return tuple(result["stress"]["model"][change][name]["value"] for name in ("sensitivity", "specificity"))

    assert rates("none") == (1, 1)
    assert result["stress"]["model"]["none"]["auc"]["value"] == 1
    assert result["stress"]["model"]["none"]["sensitivity"]["images"] == 30
    assert rates("half as bright") == (0, 1)
    assert rates("gamma 0.6") == (1, 0)  # 60 becomes 107
    assert rates("black margin of a fifth") == (0, 1)  # half of the picture is black then
    assert rates("greys of another label's slice") == (0, 0)
    assert result["stress"]["model"]["greys of another label's slice"]["auc"]["value"] == 0
    for change in ("half the resolution", "JPEG quality 15", "cropped to the head"):
        assert rates(change) == (1, 1)


def test_probability_equal_to_the_threshold_is_positive(tiny_recipe, tmp_path, monkeypatch):
    """A probability of at least the threshold is positive, as ``decide`` has it on a device."""
    data = flat_collection(40)
    gray = np.full((40, 40), 102, np.uint8)  # 0.4 of 255
    slices = [mri.Slice(gray, (0, 0, 40, 40))] * 40
    data = dataclasses.replace(data, slices=slices, pixels=np.full((40, 32, 32, 3), 102, np.uint8))
    monkeypatch.setattr(
        crossval,
        "train_model",
        lambda *arguments, **options: SimpleNamespace(
            quick=SimpleNamespace(
                whole=SimpleNamespace(predict_on_batch=lambda batch: np.full((len(batch), 2), 0.5, np.float32))
            ),
            temperature=1.0,
            threshold=0.5,
        ),
    )
    everyone = np.ones(40, bool)
    result = crossval.score_folds(
        data, everyone, None, tiny_recipe, labels=TWO, folds=2, seed=0, store=tmp_path / "folds"
    )
    assert result["pooled"]["model"]["sensitivity"]["value"] == 1
    assert result["pooled"]["model"]["specificity"]["value"] == 0
    assert result["stress"]["model"]["none"]["sensitivity"]["value"] == 1
