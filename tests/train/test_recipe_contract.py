"""Test what the recipes specify: views, lesions, targets, schedule, clipping and calibration."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

from mri_edge.bundles.bundle import Bundle
from mri_edge.scans.preprocessing import Preprocessing

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train import pipeline, training
from mri_edge.train.data import roles as assigned
from mri_edge.train.data import sampling
from mri_edge.train.data.collection import Collection, collect
from mri_edge.train.data.folder import Scan, find_scans
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.roles import as_split
from mri_edge.train.evaluation import calibration
from mri_edge.train.loops import distil
from mri_edge.train.loops import finetune as loop
from mri_edge.train.models.network import Network, predict
from mri_edge.train.models.vgg16 import VGG16
from mri_edge.train.recipes.base import Distillation, FineTuning, Head
from mri_edge.train.recipes.distilled import SMALL
from mri_edge.train.recipes.lite import LITE
from mri_edge.train.recipes.robust import ROBUST
from mri_edge.train.transforms import mri

TWO = Labels(("no tumour", "tumour"), 1, {})
SCHEDULE = FineTuning(
    epochs=90,
    batch=1,
    learning_rate=0.05,
    epoch_images=1,
    frozen_stages=2,
    warmup_steps=3,
    warmup_rate=0.02,
    rise=10,
    weight_decay=0.0,
    largest_gradient=1.0,
    averaging=0.0,
    label_smoothing=0.0,
)
finetune = functools.partial(loop.finetune, stages=VGG16.stages)


# --- records


@pytest.mark.parametrize(("name", "recipe"), [("vgg16", ROBUST), ("lite", LITE)])
def test_recipe_is_that_of_the_shipped_model(name, recipe):
    manifest = Bundle.open(name).manifest
    details = manifest.training.details
    assert details["plan"] == training.schedule_of(recipe)
    assert details["batch"] == recipe.schedule.batch
    assert details["label_smoothing"] == recipe.schedule.label_smoothing
    assert details["drawn_lesion_share"] == recipe.transforms.lesion_probability
    assert details.get("filtered_share", 0) == recipe.transforms.filter_probability
    assert details["target_sensitivity"] == recipe.calibration.target_sensitivity == 0.95
    assert Head(**details["architecture"]) == recipe.head
    assert manifest.preprocessing == recipe.preprocessing


def test_small_recipe_is_that_of_the_shipped_model():
    details = Bundle.open("small").manifest.training.details
    assert details["plan"] == training.schedule_of(SMALL)
    assert details["pool_views"] == SMALL.schedule.pool_views
    assert details["architecture"]["dropout"] == SMALL.head.dropout


# --- views


@pytest.fixture(scope="module")
def degraded():
    """Degrade a flat field, a ramp and a bright line with the same 400 random states; return the change of each."""
    flat = np.full((64, 64), 120, np.float32)
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32) + 60, (64, 64))
    line = flat.copy()
    line[:, 32] = 220

    def change(field, seed):
        result = mri._degrade(np.random.default_rng(seed), field.copy())
        return np.abs(np.rint(result) - field)[12:-12, 12:-12]

    changes = [[change(field, seed) for field in (flat, ramp, line)] for seed in range(400)]
    noisy = np.array([flat.std() > 0.4 for flat, _, _ in changes])
    # Only JPEG bends a ramp. Blurring, sharpening and resizing keep it straight, except for rounding.
    encoded = np.array([ramp.mean() > 0.2 for _, ramp, _ in changes]) & ~noisy
    refocused = np.array([line[:, 18:23].max() > 3 for _, _, line in changes]) & ~noisy & ~encoded
    return noisy, encoded, refocused


def test_three_in_ten_views_are_noisy(degraded):
    assert degraded[0].mean() == pytest.approx(0.3, abs=0.08)  # 3.5 standard deviations of 400 throws


def test_three_in_ten_views_are_jpeg_encoded(degraded):
    noisy, encoded, _ = degraded
    assert encoded.sum() / (~noisy).sum() == pytest.approx(0.3, abs=0.1)


def test_a_third_of_the_views_are_blurred_or_sharpened(degraded):
    noisy, encoded, refocused = degraded
    assert refocused.sum() / (~noisy & ~encoded).sum() == pytest.approx(0.35, abs=0.1)


def test_views_get_noise_unless_they_are_untouched():
    """``augment`` leaves 3 in 10 views of a flat slice untouched, and 0.7 x 0.3 of the views have noise."""
    scan = mri.Slice(np.full((160, 160), 120, np.uint8), (0, 0, 160, 160))
    size = Preprocessing(height=96, width=96)
    rough = []
    for seed in range(250):
        view = mri.augment(np.random.default_rng(seed), scan, scan.gray, size).astype(float)
        rough.append(np.diff(view[40:56, 40:56], 2, axis=1).std() > 2)
    assert 0.1 < np.mean(rough) < 0.32


def ellipse(level: int) -> np.ndarray:
    """Draw a head of one gray level on black, uint8 (96, 96)."""
    down, across = np.mgrid[-1:1:96j, -1:1:96j]
    return np.where((down / 0.8) ** 2 + (across / 0.65) ** 2 < 1, level, 0).astype(np.uint8)


def heads(labels, tumour_level):
    """Create a collection in memory: healthy slices are heads of level 110, the others of ``tumour_level``."""
    label = np.array(labels)
    slices = [
        mri.Slice(gray, mri.head_box(gray))
        for gray in (ellipse(110 if label == 0 else tumour_level) for label in labels)
    ]
    names = [f"{one}/{index}.png" for index, one in enumerate(labels)]
    scans = [Scan(None, name, name[0], one, name) for name, one in zip(names, labels, strict=True)]
    count = len(labels)
    return Collection(
        scans, slices, np.zeros((count, 1), np.uint8), label, np.array(["a"] * count), np.arange(count), None
    )


@pytest.fixture
def lesions_drawn(monkeypatch):
    """Record the pictures before and after a lesion is drawn, while views are made."""
    drawn = []
    real = sampling.draw_lesion

    def watch(rng, gray):
        result = real(rng, gray)
        drawn.append((gray.copy(), result.copy()))
        return result

    monkeypatch.setattr(sampling, "draw_lesion", watch)
    return drawn


def labels_of_views(data, recipe, labels, steps):
    make = sampling.view_maker(
        data,
        np.arange(len(data.scans)),
        recipe.preprocessing,
        recipe.transforms,
        steps=steps,
        batch=recipe.schedule.batch,
        labels=labels,
        seed=0,
    )
    return np.concatenate([make(step)[1] for step in range(steps)])


def test_three_in_ten_tumor_views_are_healthy_slices_with_a_lesion(tiny_recipe, lesions_drawn):
    """Tumor slices are black here, so a picture with a head comes from a healthy slice."""
    label = labels_of_views(heads([0, 1] * 8, tumour_level=0), tiny_recipe, TWO, steps=60)
    tumours = np.count_nonzero(label == 1)
    assert tumours == pytest.approx(len(label) / 2, abs=10)
    assert len(lesions_drawn) / tumours == pytest.approx(0.3, abs=0.1)  # 3.5 standard deviations of 240 throws
    for before, _ in lesions_drawn:
        assert (before > 40).mean() > 0.15, "the slice must be a healthy one"
    assert np.mean([(before != after).any() for before, after in lesions_drawn]) > 0.95


def test_no_lesion_is_drawn_with_more_than_two_labels(tiny_recipe, lesions_drawn):
    data = heads([0, 1, 2] * 6, tumour_level=0)
    label = labels_of_views(data, tiny_recipe, Labels(("none", "glioma", "meningioma"), 1, {}), steps=20)
    assert set(label) == {0, 1, 2}
    assert lesions_drawn == []


def test_drawn_lesion_is_visible_in_the_view(tiny_recipe):
    scan = heads([0], tumour_level=0).slices[0]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        view = mri.augment(rng, scan, scan.gray, tiny_recipe.preprocessing, lambda rng, gray: np.full_like(gray, 200))
        # The drawing covers the whole picture, so there is no background except in corners after a rotation.
        assert (view[8:24, 8:24] > 30).all()


def test_classes_are_balanced_even_if_a_source_has_only_one():
    label = np.repeat([0, 1, 1], [40, 60, 500])
    source = np.repeat(["both", "both", "tumours"], [40, 60, 500])
    drawn = sampling.balanced_draws(label, source, 2 * sampling.ROUND_IMAGES, np.random.default_rng(0), exponent=0.5)
    assert np.mean(label[drawn] == 0) == pytest.approx(0.5, abs=0.01)
    assert 0.1 < np.mean(source[drawn][label[drawn] == 1] == "both") < 0.9


# --- fine-tuning


def build_small_network():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(6, activation="relu", name=f"block{number}_conv1") for number in (1, 3)]
    backbone = keras.Sequential([keras.Input((6,)), *layers])
    head = keras.layers.Dense(2, activation="softmax", name="head")
    return keras.Sequential([keras.Input((6,)), backbone, head]), backbone


def make_batch(step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, 2, 8)
    pictures = rng.normal(0, 0.3, (8, 6)) + label[:, None]
    return pictures.astype(np.float32), np.eye(2, dtype=np.float32)[label]


def cosine(step, steps, rise, rate, floor):
    """Compute the learning rate of a step: a linear rise, then half a cosine down to a fraction ``floor``."""
    if step < rise:
        return rate * step / rise
    return rate * (floor + (1 - floor) * (1 + np.cos(np.pi * (step - rise) / (steps - rise))) / 2)


def test_fine_tuning_rate_rises_and_falls_to_2_percent():
    whole, backbone = build_small_network()
    rates = []
    finetune(whole, backbone, SCHEDULE, make_batch, lambda *_: rates.append(float(whole.optimizer.learning_rate)))
    assert rates[: SCHEDULE.warmup_steps] == pytest.approx([SCHEDULE.warmup_rate] * SCHEDULE.warmup_steps)
    expected = [
        cosine(step, SCHEDULE.steps, SCHEDULE.rise, SCHEDULE.learning_rate, 0.02)
        for step in range(1, SCHEDULE.steps + 1)
    ]
    assert rates[SCHEDULE.warmup_steps :] == pytest.approx(expected, rel=1e-4)  # the schedule computes in float32
    assert rates[-1] == pytest.approx(0.02 * SCHEDULE.learning_rate)


@pytest.mark.parametrize(("limit", "clipped"), [(1.0, True), (1e9, False)])
def test_gradients_are_clipped(limit, clipped):
    """Adam's second moments are means of squared gradients, so they cannot exceed the square of the largest."""

    def wild(step):
        pictures, targets = make_batch(step)
        return (pictures * 1e4, targets[:, ::-1]) if step == SCHEDULE.warmup_steps + 4 else (pictures, targets)

    whole, backbone = build_small_network()
    finetune(whole, backbone, dataclasses.replace(SCHEDULE, epochs=20, largest_gradient=limit), wild)
    moments = [variable for variable in whole.optimizer.variables if variable.path.endswith("velocity")]
    assert len(moments) == 4
    largest = max(float(np.max(keras.ops.convert_to_numpy(moment))) for moment in moments)
    assert (largest <= 1) == clipped


def test_result_is_the_running_mean_of_the_weights_computed_by_hand():
    whole, backbone = build_small_network()
    kept = []
    schedule = dataclasses.replace(SCHEDULE, epochs=25, averaging=0.8)
    finetune(
        whole,
        backbone,
        schedule,
        make_batch,
        lambda *_: kept.append([get_weight.copy() for get_weight in whole.get_weights()]),
    )
    mean = kept[schedule.warmup_steps]
    for weights in kept[schedule.warmup_steps + 1 :]:
        mean = [0.8 * old + 0.2 * new for old, new in zip(mean, weights, strict=True)]
    for found, by_hand, last in zip(whole.get_weights()[2:], mean[2:], kept[-1][2:], strict=True):
        np.testing.assert_allclose(found, by_hand, atol=1e-5)
        assert np.abs(found - last).max() > 1e-3


def test_weights_decay_as_scheduled():
    """Without a gradient, a step of AdamW multiplies a weight by 1 - rate x decay."""
    schedule = dataclasses.replace(SCHEDULE, epochs=20, rise=1, weight_decay=0.5)
    whole, backbone = build_small_network()
    start = {}

    def still(step):
        return np.zeros((8, 6), np.float32), np.full((8, 2), 0.5, np.float32)

    def keep(done, total, loss):
        if done == schedule.warmup_steps:
            start["weights"] = whole.get_weights()[2]

    finetune(whole, backbone, schedule, still, keep)
    left = np.prod(
        [
            1 - 0.5 * cosine(step, schedule.steps, schedule.rise, schedule.learning_rate, 0.02)
            for step in range(schedule.steps)
        ]
    )
    np.testing.assert_allclose(whole.get_weights()[2], left * start["weights"], rtol=1e-4)


def test_distillation_rate_follows_half_a_cosine_and_answers_are_softened(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    student = keras.Sequential(layers)
    rng = np.random.default_rng(0)
    answers = np.tile(np.array([[0.9, 0.1]], np.float32), (32, 1))
    pool = distil.Pool(rng.integers(0, 255, (32, 8, 8), dtype=np.uint8), answers)
    schedule = Distillation(
        epochs=40,
        batch=8,
        learning_rate=0.05,
        teacher="robust",
        pool_views=32,
        rise=20,
        weight_decay=0.0,
        temperature=2.0,
        students=1,
    )
    rates = []
    distil.distil(student, pool, schedule, 0, lambda *_: rates.append(float(student.optimizer.learning_rate)))
    expected = [cosine(step, 160, 20, 0.05, 0.0) for step in range(1, 161)]
    assert rates == pytest.approx(expected, abs=1e-6)
    found = np.asarray(student.predict_on_batch(pool.views[..., None].astype(np.float32) / 255))
    # A temperature of 2 turns odds of 9 into odds of 3.
    assert found[:, 0].mean() == pytest.approx(0.75, abs=0.03)


# --- a complete robust training, with a network of two layers instead of VGG16


@pytest.fixture
def two_layers(monkeypatch):
    """Replace the network by one that trains in a second; the rest of the recipe is unchanged."""

    def build(weights, recipe, classes, seed, precision):
        keras.utils.set_random_seed(seed)
        backbone = keras.Sequential(
            [
                keras.Input((recipe.preprocessing.height, recipe.preprocessing.width, 3)),
                keras.layers.MaxPooling2D(4, name="block1_pool"),
                keras.layers.Conv2D(4, 3, activation="relu", name="block3_conv1"),
            ]
        )
        head = [keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(classes, activation="softmax")]
        return Network(backbone, None, keras.Sequential([keras.Input(backbone.input_shape[1:]), backbone, *head]))

    monkeypatch.setattr(training, "build_in_precision", build)


@pytest.fixture
def collection(two_sources, tiny_recipe):
    return collect(find_scans(two_sources)[0], tiny_recipe.preprocessing)


@pytest.fixture
def roles(collection):
    """Return the rows that train, validate and test."""
    return assigned.rows_of(assigned.choose_roles(collection), collection)


def trained_on(collection, roles, recipe, labels=TWO, store=None, **changes):
    schedule = dataclasses.replace(
        recipe.schedule,
        warmup_steps=4,
        epoch_images=30 * recipe.schedule.batch,
        rise=2,
        learning_rate=0.03,
        averaging=0.5,
        **changes,
    )
    job = training.Job(collection, labels, *roles, weights=None, seed=0, store=store)
    return training.train_model(job, dataclasses.replace(recipe, schedule=schedule))


def same(left, right):
    return all(np.array_equal(*pair) for pair in zip(left, right, strict=True))


def test_a_share_of_the_backbone_keeps_its_initial_weights(two_layers, collection, roles, tiny_recipe, monkeypatch):
    ends = []
    real = training.finetune

    def finetune(network, *arguments, **options):
        ends.append(network.get_weights())
        losses = real(network, *arguments, **options)
        ends.append(network.get_weights())
        return losses

    monkeypatch.setattr(training, "finetune", finetune)
    trained = trained_on(collection, roles, tiny_recipe, initial_share=0.25)
    initial, tuned = ends
    backbone = len(trained.network.backbone.get_weights())
    assert 0 < backbone < len(initial)
    assert not same(initial[:backbone], tuned[:backbone])
    found = trained.network.whole.get_weights()
    for array, start, end in zip(found[:backbone], initial[:backbone], tuned[:backbone], strict=True):
        np.testing.assert_allclose(array, 0.25 * start + 0.75 * end, rtol=1e-5, atol=1e-7)
    # The head keeps no share. The temperature divides its last layer.
    for array, end in zip(found[-2:], tuned[-2:], strict=True):
        np.testing.assert_allclose(array * trained.temperature, end, rtol=1e-5)
    assert same(trained.quick.whole.get_weights(), found)
    assert trained.details["plan"]["initial_share"] == 0.25


def test_a_training_that_has_ended_is_not_repeated(two_layers, collection, roles, tiny_recipe, tmp_path, monkeypatch):
    whole = trained_on(collection, roles, tiny_recipe, store=tmp_path, initial_share=0.25)
    steps = []
    monkeypatch.setattr(keras.Model, "train_on_batch", counting(keras.Model.train_on_batch, steps))
    resumed = trained_on(collection, roles, tiny_recipe, store=tmp_path, initial_share=0.25)
    assert not steps
    assert same(whole.network.whole.get_weights(), resumed.network.whole.get_weights())


def counting(real, calls):
    def call(*arguments, **options):
        calls.append(None)
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("classes", [2, 3])
def test_targets_are_smoothed_by_5_percent(two_layers, collection, roles, tiny_recipe, monkeypatch, classes):
    batches = []
    real = training.finetune

    def watch(network, backbone, schedule, make_batch, *arguments, **options):
        batches.append(make_batch(0))
        two_steps = dataclasses.replace(schedule, epochs=1, epoch_images=2 * schedule.batch)
        return real(network, backbone, two_steps, make_batch, *arguments, **options)

    monkeypatch.setattr(training, "finetune", watch)
    labels = TWO if classes == 2 else Labels(("no tumour", "tumour", "other"), 1, {})
    trained = trained_on(collection, roles, tiny_recipe, labels)
    [(pictures, targets)] = batches
    assert pictures.shape == (tiny_recipe.schedule.batch, 32, 32, 3)
    low, high = 0.05 / classes, 0.95 + 0.05 / classes
    np.testing.assert_allclose(np.sort(targets, axis=1), [[low] * (classes - 1) + [high]] * len(targets), rtol=1e-6)
    assert trained.details["label_smoothing"] == 0.05


def test_threshold_is_chosen_on_calibrated_validation_images(two_layers, collection, roles, tiny_recipe):
    validation = roles[1]
    label = collection.label.copy()
    label[validation[::5]] = 1 - label[validation[::5]]  # else nothing bounds the certainty that fits best
    collection = dataclasses.replace(collection, label=label)
    trained = trained_on(collection, roles, tiny_recipe)
    assert abs(np.log(trained.temperature)) > 0.05, "the network must be miscalibrated for this test"
    for network in (trained.network, trained.quick):
        found = predict(network.whole, collection.pixels, tiny_recipe.preprocessing, rows=validation)
        assert calibration.fit_temperature(found, label[validation]) == pytest.approx(1, abs=0.02)
        assert calibration.choose_threshold(found[:, 1], label[validation]) == pytest.approx(
            trained.threshold, abs=1e-6
        )


def test_training_does_not_depend_on_test_images(two_layers, collection, roles, tiny_recipe):
    """Changed pixels and labels of all other images do not change the weights or the threshold."""
    first = trained_on(collection, roles, tiny_recipe)
    others = np.setdiff1d(np.arange(len(collection.scans)), np.concatenate(roles[:2]))
    assert len(others) >= 10
    pixels, label, slices = collection.pixels.copy(), collection.label.copy(), list(collection.slices)
    pixels[others] = 255 - pixels[others]
    label[others] = 1 - label[others]
    for index in others:
        slices[index] = dataclasses.replace(slices[index], gray=255 - slices[index].gray)
    changed = dataclasses.replace(collection, pixels=pixels, label=label, slices=slices)
    again = trained_on(changed, roles, tiny_recipe)
    for left, right in zip(first.network.whole.get_weights(), again.network.whole.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (first.temperature, first.threshold) == (again.temperature, again.threshold)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("split", ["reference", "grouped"])
def test_bundle_trains_on_training_images_and_calibrates_on_validation_images(
    two_sources, tiny_recipe, weights_file, tmp_path, monkeypatch, split
):
    seen = []

    def stop(job, *arguments):
        seen.append((job.data, job.train, job.validation))
        raise _StopError

    monkeypatch.setattr(pipeline, "train_model", stop)
    with pytest.raises(_StopError):
        pipeline.train_bundle(
            two_sources,
            tmp_path / "bundle",
            tiny_recipe,
            backbone_weights=str(weights_file),
            seed=0,
            split=split,
            excluded=["a/no/00.png"],
        )
    [(data, train, validation)] = seen
    assert "a/no/00.png" not in [scan.file for scan in data.scans]
    record = assigned.choose_roles(data, split)
    for rows, role in ((train, "train"), (validation, "validation")):
        assert {data.scans[row].file for row in rows} == {image.file for image in record.of(role)} != set()


def test_rows_of_roles_match_the_record_without_excluded_scans(collection):
    record = assigned.choose_roles(collection, left_out=collection.scans[:3])
    assert len(record.images) == len(collection.scans) + 3
    for rows, role in zip(assigned.rows_of(record, collection), ("train", "validation", "test"), strict=True):
        assert [record.images[row].role for row in rows] == [role] * len(rows)
        assert len(rows) == len(record.of(role)) > 0
        assert rows.max() < len(collection.scans)


def test_split_records_test_and_excluded_images(collection):
    test = np.arange(len(collection.scans)) % 5 == 0
    record = as_split(collection.scans[:-2], test[:-2], collection.scans[-2:])
    assert [image.role == "test" for image in record.images[:-2]] == test[:-2].tolist()
    assert [image.role for image in record.images[-2:]] == ["excluded"] * 2
    assert json.loads(record.to_json())["images"][0]["role"] == "test"
