"""Test the robust recipe: roles, draws, independence of color, its bundle, and its cross-validation."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Split
from mri_edge.cli import run
from mri_edge.errors import DataError, OutputError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture as images
from mri_edge.storage.atomic import fingerprint
from mri_edge.train import crossval, pipeline, training
from mri_edge.train.data import duplicates, sampling
from mri_edge.train.data import roles as assigned
from mri_edge.train.data.collection import Collection, collect
from mri_edge.train.data.folder import Scan, find_scans
from mri_edge.train.data.grouping import parse_groups
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.selection import select
from mri_edge.train.loops import checkpoint as unfinished
from mri_edge.train.models.network import predict
from mri_edge.train.models.registry import BACKBONES
from mri_edge.train.models.vgg16 import VGG16, build_backbone
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.registry import find_recipe
from mri_edge.train.recipes.robust import ROBUST
from mri_edge.train.transforms import mri

from . import small_robust_run


@pytest.fixture(scope="module")
def tiny_recipe():
    return dataclasses.replace(
        ROBUST,
        preprocessing=dataclasses.replace(ROBUST.preprocessing, height=32, width=32),
        head=Head(hidden=8, dropout=0.5),
        schedule=dataclasses.replace(ROBUST.schedule, batch=4, epochs=1, epoch_images=16, warmup_steps=2, rise=1),
    )


@pytest.fixture
def toy_recipe(tiny_recipe, toy_backbone):
    """``tiny_recipe`` on a backbone of two convolutions, one of which is trained."""
    schedule = dataclasses.replace(tiny_recipe.schedule, frozen_stages=1)
    return dataclasses.replace(tiny_recipe, backbone="toy", schedule=schedule)


def collection_of(data, recipe):
    scans, labels = find_scans(data)
    return collect(scans, recipe.preprocessing), labels


@pytest.fixture
def as_reference(two_sources, monkeypatch):
    """``two_sources`` with source ``a`` in place of the reference's data set."""
    contents = [scan.sha256 for scan in find_scans(two_sources / "a")[0]]
    monkeypatch.setattr(reference, "DATA", fingerprint(contents))
    return two_sources


def test_hash_is_stable_under_resizing_jpeg_and_brightening():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 200, (9, 9), dtype=np.uint8)).resize((180, 180), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    smooth.resize((130, 150)).point(lambda value: value * 1.15 + 8).save(encoded, "JPEG", quality=40)
    other = Image.fromarray(rng.integers(0, 200, (9, 9), dtype=np.uint8)).resize((180, 180), Image.Resampling.BICUBIC)
    own, again, another = (
        duplicates.difference_hash(images.load(item)) for item in (smooth, encoded.getvalue(), other)
    )
    assert np.count_nonzero(own != again) <= duplicates.SAME_SLICE_BITS
    assert np.count_nonzero(own != another) > 2 * duplicates.KEEP_APART_BITS


def test_close_pairs_and_groups_equal_an_exhaustive_search():
    rng = np.random.default_rng(1)
    hashes = rng.random((700, 128)) < 0.5  # more than one block of 512
    for copy, original in ((600, 3), (650, 600), (20, 10)):
        hashes[copy] = hashes[original] ^ (np.arange(128) < 6)
    hashes[650, :12] ^= True  # near 600, not near 3: joined through the chain
    hashes[650, 6:12] ^= True
    apart = (hashes[:, None] != hashes[None]).sum(axis=2)
    expected = {(i, j) for i, j in zip(*np.nonzero(apart <= 8), strict=True) if i < j}
    assert {tuple(pair) for pair in duplicates.close_pairs(hashes, 8)} == expected
    assert len(expected) >= 3
    group = duplicates.groups(hashes, 8)
    assert group[3] == group[600] == group[650]
    assert group[10] == group[20] != group[3]
    assert len(np.unique(group)) == 700 - 3


def test_draws_balance_classes_and_sources_and_show_every_image():
    label = np.repeat([0, 1, 0, 1], [9, 25, 40, 300])
    source = np.repeat(["small", "small", "large", "large"], [9, 25, 40, 300])
    count = 2 * sampling.ROUND_IMAGES
    drawn = sampling.balanced_draws(label, source, count, np.random.default_rng(0), exponent=0.5)
    assert len(drawn) == count
    small = 3 / (3 + np.sqrt(40))  # shares grow with the root of the rarer class: 9 and 40
    # Each of 374 images is drawn as often as its weight requires, to within one, in 2,048 draws.
    for of_class in (0, 1):
        assert np.mean(label[drawn] == of_class) == pytest.approx(0.5, abs=0.01)
        of_small = np.mean(source[drawn][label[drawn] == of_class] == "small")
        assert of_small == pytest.approx(small, abs=0.01)
    times = np.bincount(drawn[: sampling.ROUND_IMAGES], minlength=len(label))
    for cell in {(s, c) for s, c in zip(source.tolist(), label.tolist(), strict=True)}:
        of_cell = times[(source == cell[0]) & (label == cell[1])]
        assert of_cell.min() >= 1
        assert of_cell.max() - of_cell.min() <= 1


def test_first_layer_ignores_color_and_keeps_its_response_to_gray(small_weights):
    preprocessing = dataclasses.replace(ROBUST.preprocessing, height=32, width=32)
    backbone = build_backbone(small_weights, 32, 32)
    first = keras.Model(backbone.input, backbone.get_layer("block1_conv1").output)
    rng = np.random.default_rng(3)
    tinted = rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    gray = np.repeat(tinted.mean(axis=-1, keepdims=True), 3, axis=-1)

    def answer(pixels):
        return np.asarray(first.predict_on_batch(preprocessing.normalize(pixels)))

    before = answer(gray)
    assert np.abs(answer(tinted) - before).max() > 0.1
    VGG16.ignore_color(backbone, preprocessing)
    # These are float32 sums of 27 products of a few units each.
    np.testing.assert_allclose(answer(tinted), answer(gray), atol=1e-4)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(answer(gray)[inner], before[inner], atol=1e-4)


def test_roles_exclude_near_duplicates_of_test_images_and_divide_no_group(as_reference, tiny_recipe):
    two_sources = as_reference
    copied = sorted((two_sources / "b" / "notumor").iterdir())[0]
    scans, _ = find_scans(two_sources)
    test = {image.file for image in assigned.choose_roles(collect(scans, tiny_recipe.preprocessing)).of("test")}
    # Copy a test image to the other source in another file format.
    victim = next(file for file in sorted(test) if file.startswith("a/no"))
    Image.open(two_sources / victim).save(copied.with_name("copy.bmp"))
    collection, _ = collection_of(two_sources, tiny_recipe)
    split = assigned.choose_roles(collection)
    role = {image.file: image.role for image in split.images}
    assert {file for file, one in role.items() if one == "test"} == test
    assert all(file.startswith("a/") for file in test)
    assert role["b/notumor/copy.bmp"] == "excluded"
    roles = np.array([image.role for image in split.images])
    assert set(collection.group[roles == "train"]).isdisjoint(collection.group[roles == "validation"])
    folder = np.array([scan.folder for scan in collection.scans])
    assert set(folder[roles == "validation"]) == {"a/no", "a/yes", "b/notumor", "b/glioma"}
    np.testing.assert_array_equal(assigned.may_train(collection), np.isin(roles, ("train", "validation")))


def slices_of_patients(patients, slices):
    """Create a collection of folders ``no`` and ``yes``, with half of the patients each, without pictures."""
    patient_of = np.repeat(np.arange(patients), slices)
    label = (patient_of >= patients // 2).astype(int)
    names = [("no", "yes")[index] for index in label]
    scans = [
        Scan(Path(f"{i}.png"), f"{name}/{i}.png", name, one, str(i))
        for i, (name, one) in enumerate(zip(names, label, strict=True))
    ]
    hashes = np.random.default_rng(0).random((len(label), duplicates.HASH_BITS)) < 0.5
    group = duplicates.groups(hashes, patients=[str(patient) for patient in patient_of])
    return Collection(scans, [], np.zeros((0,), np.uint8), label, np.array([""] * len(label)), group, hashes)


def test_other_data_in_folders_no_and_yes_is_not_mistaken_for_the_reference():
    collection = slices_of_patients(40, 10)
    split = assigned.choose_roles(collection)
    assert {role: len(split.of(role)) for role in ("train", "validation", "test", "excluded")} == {
        "train": 280,
        "validation": 40,
        "test": 80,
        "excluded": 0,
    }
    roles = np.array([image.role for image in split.images])
    assert all(len(set(roles[collection.group == group])) == 1 for group in np.unique(collection.group))
    assert assigned.may_train(collection).all(), "a cross-validation trains on all images in turn"


@pytest.mark.parametrize(("images", "left", "needed"), [(9, 7, 8), (4, 4, 5)])  # two of nine are test images
def test_too_few_slices_to_hold_out_are_reported(folders, tiny_recipe, images, left, needed):
    for path in sorted((folders / "no").iterdir())[images:]:
        path.unlink()
    collection, _ = collection_of(folders, tiny_recipe)
    message = f"held out.*'no' has {left} groups of images left.*at least {needed}"
    with pytest.raises(DataError, match=message) as refused:
        assigned.choose_roles(collection)
    assert "folds" not in str(refused.value)  # the user has asked for none


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_same_seed_gives_same_calibrated_weights_and_frozen_stages(two_sources, tiny_recipe, small_weights):
    collection, labels = collection_of(two_sources, tiny_recipe)
    roles = np.array([image.role for image in assigned.choose_roles(collection).images])
    train, validation = (np.flatnonzero(roles == role) for role in ("train", "validation"))

    def once(seed):
        job = training.Job(collection, labels, train, validation, validation, small_weights, seed)
        return training.train_model(job, tiny_recipe)

    first, again, other = once(0), once(0), once(1)
    for left, right in zip(first.network.whole.get_weights(), again.network.whole.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert first.threshold == again.threshold
    kept = first.network.backbone.get_layer("block2_conv2").get_weights()[0]
    tuned = first.network.backbone.get_layer("block3_conv1").get_weights()[0]
    np.testing.assert_array_equal(kept, small_weights.arrays[3][0])
    assert np.abs(tuned - small_weights.arrays[4][0]).max() > 0
    assert np.abs(tuned - other.network.backbone.get_layer("block3_conv1").get_weights()[0]).max() > 0
    assert {layer.compute_dtype for layer in first.network.whole.layers} == {"float32"}
    for left, right in zip(first.network.whole.get_weights(), first.quick.whole.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    positive = predict(first.network.whole, collection.pixels[validation], tiny_recipe.preprocessing)[:, 1]
    is_positive = collection.label[validation] == 1
    assert np.mean(positive[is_positive] >= first.threshold) >= 0.95


@pytest.mark.slow
def test_bundle_records_how_it_was_trained(as_reference, tiny_recipe, weights_file, tmp_path, reference_split):
    two_sources = as_reference
    out = tmp_path / "bundle"
    trained = pipeline.train_bundle(two_sources, out, tiny_recipe, backbone_weights=str(weights_file), seed=0)
    bundle = Bundle.open(out)
    manifest = bundle.manifest
    assert manifest.threshold is not None
    assert 0 <= manifest.threshold <= 1
    assert manifest.training.recipe == "robust"
    details = manifest.training.details
    assert details["temperature"] > 0
    assert details["precision"] in ("float32", "mixed_bfloat16")
    assert details["target_sensitivity"] == 0.95
    split = Split.from_json((out / "split.json").read_text())
    expected = reference_split(find_scans(two_sources / "a")[0])
    assert {image.sha256 for image in split.of("test")} == {image.sha256 for image in expected.of("test")}
    saved = keras.models.load_model(out / "model.keras")
    test = [two_sources / image.file for image in split.of("test")]
    preprocessing = manifest.preprocessing
    batch = preprocessing.normalize(np.stack([preprocessing.resize_picture(images.load(path)) for path in test]))
    # float32 sums may have another order with another batch size.
    np.testing.assert_allclose(np.asarray(saved.predict_on_batch(batch)), trained.probabilities, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_cross_validation_scores_each_image_once_without_leaks(two_sources, toy_recipe, tmp_path, monkeypatch):
    collection, labels = collection_of(two_sources, toy_recipe)
    trainable = np.arange(len(collection.scans)) % 10 != 0
    seen = []
    real = crossval.train_model

    def watch(job, *arguments):
        seen.append(np.concatenate([job.train, job.validation]))
        return real(job, *arguments)

    monkeypatch.setattr(crossval, "train_model", watch)
    result = crossval.score_folds(
        collection, trainable, None, toy_recipe, labels=labels, folds=2, seed=0, store=tmp_path / "folds"
    )
    fold = np.array(result["images"]["fold"])
    assert set(fold) == {1, 2}
    for number, used in enumerate(seen, start=1):
        assert trainable[used].all()
        assert set(collection.group[used]).isdisjoint(collection.group[fold == number])
    pooled = result["pooled"]["model"]
    assert pooled["auc"]["images"] == len(collection.scans)
    assert pooled["sensitivity"]["images"] == 50
    (stressed,) = {item["auc"]["images"] for item in result["stress"]["model"].values()}
    assert 80 <= stressed <= 100  # as many of either kind as the rarer one has in its fold
    assert set(result["stress"]["model"]) == {"none", *mri.CHANGES}
    json.dumps(result)  # plain types


def test_leaving_out_a_source_trains_only_on_the_others(two_sources, tiny_recipe, tmp_path, monkeypatch):
    collection, labels = collection_of(two_sources, tiny_recipe)
    seen = []

    def train(job, *arguments):
        seen.append(set(job.data.source[job.train]) | set(job.data.source[job.validation]))
        network = SimpleNamespace(whole=SimpleNamespace(predict_on_batch=answer))
        return SimpleNamespace(quick=network, temperature=1.0, threshold=0.3)

    monkeypatch.setattr(crossval, "train_model", train)
    everyone = np.ones(len(collection.scans), bool)
    result = crossval.score_folds(
        collection, everyone, None, tiny_recipe, labels=labels, folds=None, seed=0, store=tmp_path / "folds"
    )
    assert seen == [{"b"}, {"a"}]
    assert [fold["sources"] for fold in result["by_fold"]] == [["a"], ["b"]]
    assert (result["protocol"], result["folds"]) == ("sources", 2)


def test_stress_changes_alter_the_picture_but_not_its_size(tiny_recipe):
    rng = np.random.default_rng(4)
    pixels = np.zeros((90, 70), np.uint8)
    pixels[20:70, 15:55] = rng.integers(60, 200, (50, 40), dtype=np.uint8)
    scan = mri.Slice.from_pixels(np.repeat(pixels[:, :, None], 3, axis=2))
    other = rng.integers(0, 255, (50, 50), dtype=np.uint8)
    plain = mri.resize(scan.gray, tiny_recipe.preprocessing)
    changed = {name: change(scan, other, tiny_recipe.preprocessing) for name, change in mri.CHANGES.items()}
    for picture in changed.values():
        assert picture.dtype == np.uint8
        assert picture.shape == plain.shape
        assert np.abs(picture.astype(int) - plain).mean() > 1
    assert np.count_nonzero(changed["black margin of a fifth"]) < np.count_nonzero(plain)
    assert np.count_nonzero(changed["cropped to the head"]) > np.count_nonzero(plain)
    np.testing.assert_allclose(changed["half as bright"], plain / 2, atol=0.5)  # rounded to whole levels


@pytest.mark.data
@pytest.mark.slow
def test_no_real_training_image_is_near_a_test_image_of_the_reference(scans, reference_split):
    collection, _ = collection_of(scans, find_recipe("robust"))
    split = assigned.choose_roles(collection)
    of_reference = reference_split(find_scans(scans / "navoneel")[0])
    assert {image.sha256 for image in split.of("test")} == {image.sha256 for image in of_reference.of("test")}
    roles = np.array([image.role for image in split.images])
    apart = np.count_nonzero(
        collection.hashes[roles == "test"][:, None] != collection.hashes[np.isin(roles, ("train", "validation"))][None],
        axis=2,
    )
    assert apart.min() > duplicates.KEEP_APART_BITS


def test_preprocessing_is_that_of_the_weights():
    # torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()
    assert find_recipe("robust").preprocessing == Preprocessing(
        channel_order="RGB", scale=1 / 255, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cv", "3", "--split", "grouped"], "--split"),
        (["--cv", "3", "--name", "mine"], "--name"),
        (["--cv", "3", "--resume"], "--resume"),
        (["--recipe", "robust", "--split", "stratified"], "--split"),
    ],
)
def test_options_without_a_meaning_are_rejected(two_sources, tmp_path, capfd, options, named):
    assert run(["train", "--data", str(two_sources), "--out", str(tmp_path / "out"), *options]) == 2
    assert named in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_patients_are_never_divided_and_exclusions_are_recorded(two_sources, tiny_recipe, tmp_path):
    """Eight pictures of each folder belong to four patients. One patient of each label is in both sources."""
    everyone, _ = find_scans(two_sources)
    csv = tmp_path / "patients.csv"
    rows = ["file,group"]
    for index, scan in enumerate(everyone):
        number = index % 25
        patient = f"both-{scan.label}" if number == 24 else f"{scan.folder}-{number // 2 if number < 8 else number}"
        rows.append(f"{scan.file},{patient}")
    csv.write_text("\n".join(rows))
    selection = select(two_sources, None, ["a/no/1[0-2].png"], parse_groups(csv))
    assert len(selection.left_out) == 3
    used = len(selection.scans)
    collection = collect(selection.scans, tiny_recipe.preprocessing, rule=selection.rule, patients=selection.patients)
    for split in ("reference", "grouped"):
        record = assigned.choose_roles(collection, split, selection.left_out)
        roles = np.array([image.role for image in record.images])
        assert [image.file for image in record.images[used:]] == [scan.file for scan in selection.left_out]
        assert set(roles[used:]) == {"excluded"}
        patients = {role: {selection.patients[i] for i in np.flatnonzero(roles[:used] == role)} for role in set(roles)}
        assert not patients["train"] & patients["validation"]
        assert not patients["test"] & (patients["train"] | patients["validation"])
    assert {image.file[0] for image in record.of("test")} == {"a", "b"}, "a grouped split tests all sources"


def test_slices_on_disk_equal_those_in_memory(two_sources, tiny_recipe, tmp_path):
    scans, _ = find_scans(two_sources)
    held = collect(scans, tiny_recipe.preprocessing)
    mapped = collect(scans, tiny_recipe.preprocessing, store=tmp_path)
    np.testing.assert_array_equal(held.pixels, mapped.pixels)
    for left, right in zip(held.slices, mapped.slices, strict=True):
        np.testing.assert_array_equal(left.gray, right.gray)
        assert left.head == right.head


@pytest.mark.slow
def test_killed_and_resumed_training_ends_with_the_same_weights(two_sources, tmp_path, monkeypatch):
    """The precision is that in which this machine trains."""
    monkeypatch.setitem(BACKBONES, ROBUST.backbone, small_robust_run.BACKBONE)
    chosen = {"backbone_weights": "none", "seed": small_robust_run.SEED}
    pipeline.train_bundle(two_sources, tmp_path / "whole", small_robust_run.RECIPE, **chosen)
    command = [sys.executable, small_robust_run.__file__, str(two_sources)]
    checkpoint = tmp_path / ".broken.training" / "checkpoint.npz"
    process = subprocess.Popen([*command, str(tmp_path / "broken")])
    while not checkpoint.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "broken").exists(), "the training ended before it was killed"
    assert 2 <= len(unfinished.facts_in(checkpoint)) < 64
    pipeline.train_bundle(two_sources, tmp_path / "broken", small_robust_run.RECIPE, **chosen, resume=True)
    whole, broken = (keras.models.load_model(tmp_path / name / "model.keras") for name in ("whole", "broken"))
    for left, right in zip(whole.get_weights(), broken.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    thresholds = {Bundle.open(tmp_path / name).manifest.threshold for name in ("whole", "broken")}
    assert len(thresholds) == 1
    assert not checkpoint.parent.exists()


def test_interrupted_cross_validation_keeps_finished_folds(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch
):
    trained = []

    def train(job, *arguments):
        if len(trained) == 1:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append(len(job.train))
        network = SimpleNamespace(whole=SimpleNamespace(predict_on_batch=answer))
        return SimpleNamespace(quick=network, temperature=1.0, threshold=0.3)

    monkeypatch.setattr(crossval, "train_model", train)
    chosen = {"folds": 3, "backbone_weights": str(weights_file), "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        crossval.cross_validate(two_sources, tmp_path / "cut", tiny_recipe, **chosen)
    resumed = crossval.cross_validate(two_sources, tmp_path / "cut", tiny_recipe, **chosen)
    assert len(trained) == 4
    whole = crossval.cross_validate(two_sources, tmp_path / "whole", tiny_recipe, **chosen)
    assert {**resumed, "creation": None} == {**whole, "creation": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "data", "whole"]
    assert not list((tmp_path / "cut").glob(".scans-*"))
    crossval.cross_validate(two_sources, tmp_path / "cut", tiny_recipe, **chosen)
    assert len(trained) == 7  # the three folds of the other folder; none is trained again
    crossval.cross_validate(two_sources, tmp_path / "cut", tiny_recipe, **chosen, overwrite=True)
    assert len(trained) == 10


def answer(batch):
    positive = np.asarray(batch).max(axis=(1, 2, 3)) > 2
    return np.stack([~positive, positive], axis=1).astype(np.float32)


def test_source_with_one_class_is_scored_without_metrics_that_need_both(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch
):
    shutil.copytree(two_sources / "b" / "glioma", two_sources / "c" / "glioma")
    trained = SimpleNamespace(
        quick=SimpleNamespace(whole=SimpleNamespace(predict_on_batch=answer)), temperature=1.0, threshold=0.3
    )
    monkeypatch.setattr(crossval, "train_model", lambda *arguments, **options: trained)
    chosen = {"folds": None, "backbone_weights": str(weights_file), "seed": 0}
    result = crossval.cross_validate(two_sources, tmp_path / "out", tiny_recipe, **chosen)
    of_c = result["by_fold"][2]["models"]["model"]
    assert of_c["sensitivity"]["images"] == of_c["accuracy"]["images"] == 25
    assert not {"auc", "specificity", "false_positive_rate_at_sensitivity"} & set(of_c)
    assert {source for source, models in result["by_source"].items() if "auc" in models["model"]} == {"a", "b"}
    assert json.loads((tmp_path / "out" / "crossval.json").read_text(), parse_constant=pytest.fail) == result
    assert {answers["sensitivity"]["images"] for answers in result["stress"]["model"].values()} == {50}, (
        "25 each of a and b"
    )


def test_source_that_cannot_be_left_out_is_reported_before_training(tmp_path):
    collection = slices_of_patients(20, 1)
    alone = dataclasses.replace(collection, source=np.where(collection.label == 0, "a", "b"))
    with pytest.raises(DataError, match="source 'a' cannot be left out"):
        crossval.score_folds(
            alone,
            np.ones(20, bool),
            None,
            ROBUST,
            labels=Labels(("no", "yes"), 1, {}),
            folds=None,
            seed=0,
            store=tmp_path,
        )


def test_unwritable_output_is_reported_before_training(two_sources, tiny_recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        crossval.cross_validate(
            two_sources, tmp_path / "file" / "out", tiny_recipe, folds=2, backbone_weights="nowhere", seed=0
        )
