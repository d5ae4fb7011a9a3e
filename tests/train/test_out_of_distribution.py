"""Test the fitted plane: similar images are within its limit, other pictures are not."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs mri-edge[train]")

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.inference.out_of_distribution import distances
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.data.folder import find_scans
from mri_edge.train.evaluation import out_of_distribution
from mri_edge.train.evaluation.out_of_distribution import fit_out_of_distribution, keras_features
from scripts import refit_out_of_distribution

PREPROCESSING = Preprocessing(height=32, width=32)


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(6)
    entry = keras.Input((32, 32, 3))
    hidden = keras.layers.Conv2D(24, 3, activation="relu", padding="same")(entry)
    hidden = keras.layers.Conv2D(96, 3, activation="relu", padding="same")(keras.layers.MaxPooling2D()(hidden))
    return keras.Model(entry, keras.layers.MaxPooling2D()(hidden))


def blobs(count: int, seed: int) -> np.ndarray:
    """Draw bright discs of random size, position and brightness on black."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    pictures = []
    for _ in range(count):
        radius, (y, x) = rng.uniform(5, 12), rng.uniform(12, 20, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        pictures.append(np.repeat((disc * rng.uniform(100, 255))[..., None], 3, axis=2))
    return np.array(pictures).astype(np.uint8)


def fraction_outside(backbone, fitted, pictures: np.ndarray) -> float:
    plane = np.load(io.BytesIO(fitted.content), allow_pickle=False)
    return float((distances(keras_features(backbone, PREPROCESSING)(pictures), plane) > fitted.entry.limit).mean())


@pytest.mark.parametrize("separate", [True, False], ids=["validation images", "training images alone"])
def test_plane_accepts_similar_images_and_detects_others(backbone, separate):
    pixels = blobs(400, seed=1)
    train, held_out = (np.arange(300), np.arange(300, 400)) if separate else (np.arange(400), np.arange(0))
    fitted = fit_out_of_distribution(keras_features(backbone, PREPROCESSING), pixels, train, held_out, seed=0)
    assert fitted.entry.held_out_images == 400
    # The limit aims at 1 in 100. Of 1,000 new images up to 20 may exceed it (binomial, 99.9%, with that of the 400).
    assert fraction_outside(backbone, fitted, blobs(1000, seed=2)) < 0.02
    noise = np.random.default_rng(3).integers(0, 256, (50, 32, 32, 3), np.uint8)
    assert fraction_outside(backbone, fitted, noise) == 1


def test_limit_comes_from_the_source_with_the_largest_distances():
    rng = np.random.default_rng(5)
    source = np.array(["large"] * 2000 + ["small"] * 60 + ["tiny"] * 5)
    distance = np.concatenate([rng.normal(1, 0.1, 2000), rng.normal(2, 0.1, 60), np.full(5, 9)]).astype(np.float32)
    limit = out_of_distribution._limit(distance, source)
    assert limit == np.quantile(distance[source == "small"], out_of_distribution.QUANTILE), (
        "a source of five scans is too small"
    )
    assert out_of_distribution._limit(distance[:2000], source[:2000]) == np.quantile(
        distance[:2000], out_of_distribution.QUANTILE
    )


def test_sources_contribute_equally_as_far_as_they_have_images(backbone, monkeypatch):
    monkeypatch.setattr(out_of_distribution, "_MAX_IMAGES", 40)
    source = np.array(["large"] * 90 + ["small"] * 10)
    chosen = out_of_distribution._balance_sources(np.arange(100), source, np.random.default_rng(0))
    assert np.count_nonzero(source[chosen] == "small") == 10
    assert len(set(chosen.tolist())) == 40


def test_the_same_seed_gives_the_same_plane(backbone):
    pixels = blobs(60, seed=4)
    features = keras_features(backbone, PREPROCESSING)
    first, second = (fit_out_of_distribution(features, pixels, np.arange(60), np.arange(0), seed=7) for _ in range(2))
    assert first == second


def test_refit_uses_the_roles_that_the_bundle_records(tiny_bundle, folders, monkeypatch):
    """No seed and no rule gives these roles: the split of a teacher or of --groups is as good as another."""
    scans, _ = find_scans(folders)
    roles = np.random.default_rng(0).choice(["train", "validation", "test", "excluded"], len(scans))
    images = [SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in zip(scans, roles, strict=True)]
    bundle = Bundle.open(tiny_bundle)
    with rewrite_bundle(bundle) as writer:
        writer.add_document(SPLIT, Split(tuple(reversed(images))).to_json())
    found = {}

    def stop(features, pixels, train, held_out, seed, *, source):
        found.update(train=train, validation=held_out)
        raise InterruptedError

    monkeypatch.setattr(refit_out_of_distribution, "fit_out_of_distribution", stop)
    monkeypatch.setattr(sys, "argv", ["refit", str(tiny_bundle), "--data", str(folders)])
    with pytest.raises(InterruptedError):
        refit_out_of_distribution.main()
    for role, rows in found.items():
        np.testing.assert_array_equal(rows, np.flatnonzero(roles == role))
    scans[0].path.unlink()
    with pytest.raises(SystemExit, match="not the images"):
        refit_out_of_distribution.main()
