"""The plane that training fits: held-out images stay inside, other pictures fall outside."""

from __future__ import annotations

import io

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs mri-edge[train]")

from mri_edge.novelty import distances  # noqa: E402
from mri_edge.preprocess import Preprocessing  # noqa: E402
from mri_edge.train.novelty import features, fit_novelty  # noqa: E402

PREPROCESSING = Preprocessing(height=32, width=32)


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(6)
    entry = keras.Input((32, 32, 3))
    hidden = keras.layers.Conv2D(24, 3, activation="relu", padding="same")(entry)
    hidden = keras.layers.Conv2D(24, 3, activation="relu", padding="same")(keras.layers.MaxPooling2D()(hidden))
    return keras.Model(entry, keras.layers.MaxPooling2D()(hidden))


def blobs(count: int, seed: int) -> np.ndarray:
    """Bright discs on black, of any size, place and brightness."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    pictures = []
    for _ in range(count):
        radius, (y, x) = rng.uniform(5, 12), rng.uniform(12, 20, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        pictures.append(np.repeat((disc * rng.uniform(100, 255))[..., None], 3, axis=2))
    return np.array(pictures).astype(np.uint8)


@pytest.mark.parametrize("separate", [True, False], ids=["validation images", "a fifth held out"])
def test_plane_keeps_its_own_kind_and_tells_others(backbone, separate):
    pixels = blobs(400, seed=1)
    train, held_out = (np.arange(300), np.arange(300, 400)) if separate else (np.arange(400), np.arange(0))
    fitted = fit_novelty(backbone, pixels, train, held_out, PREPROCESSING, seed=0)
    plane = np.load(io.BytesIO(fitted.content), allow_pickle=False)
    assert fitted.entry.held_out_images == (100 if separate else 80)

    def share_outside(pictures: np.ndarray) -> float:
        return float((distances(features(backbone, pictures, PREPROCESSING), plane) > fitted.entry.limit).mean())

    # 1 in 100 is meant; of 200 new ones up to 8 may fall outside with a limit taken from some 100 (binomial, 99.9%).
    assert share_outside(blobs(200, seed=2)) <= 0.04
    noise = np.random.default_rng(3).integers(0, 256, (50, 32, 32, 3), np.uint8)
    assert share_outside(noise) == 1


def test_same_seed_same_plane(backbone):
    pixels = blobs(60, seed=4)
    first, second = (
        fit_novelty(backbone, pixels, np.arange(60), np.arange(0), PREPROCESSING, seed=7) for _ in range(2)
    )
    assert first == second
