"""Fit a plane to the features of training images, so that a device can detect scans that are unlike them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Novelty
from mri_edge.inference.out_of_distribution import distances
from mri_edge.scans.preprocessing import Preprocessing

FeaturesOf = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

FILE = "novelty.npy"
# Chosen on the features of the robust recipe: of 8, 16 and 32 dimensions, 32 detect inverted scans best at the limit
# below. All of them detect photographs and noise.
DIMENSIONS = 32
# The limit is this quantile of the distances of scans outside the fit, taken from the source where it is largest,
# because small and varied sources are further from the plane, and the scans of a device come from yet another source.
# With one quantile over all scans, 8 of 51 test scans of the reference exceeded the limit; with the largest per source
# 1 of 51, and 3 of 537 scans of both sources. These counts are those of the int8 artifact, which devices run.
QUANTILE = 0.99
_MAX_IMAGES = 1000  # images to fit on; more barely change the plane
_FOLDS = 5
_OWN_QUANTILE = 50  # scans below which a source gets no quantile of its own


@dataclass(frozen=True)
class FittedOutOfDistribution:
    """The manifest's entry and the bytes of its file in the bundle."""

    entry: Novelty
    content: bytes


def fit_out_of_distribution(
    features: FeaturesOf,
    pixels: NDArray[np.uint8],
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    seed: int,
    *,
    source: NDArray[np.str_] | None = None,
) -> FittedOutOfDistribution:
    """Fit the plane on training images of every source, and the limit on images outside the fit.

    The limit comes from ``held_out`` and from the training images, each of which is measured from a plane fitted to
    the other four fifths. With this cross-fitting a few images give as good a limit as many.

    Parameters
    ----------
    features
        Maps uint8 (N, height, width, 3) RGB to the channel means of the last feature map, float32 (N, channels).
    pixels
        uint8 (M, height, width, 3) RGB.
    train, held_out
        Positions in ``pixels``. ``held_out`` may be empty. Neither may contain test images.
    source
        Source of each picture (M,); ``None`` for a single source.
    """
    if source is None:
        source = np.zeros(len(pixels), "U1")
    rng = np.random.default_rng([seed, 2])
    chosen, held_out = (_balance_sources(rows, source, rng) for rows in (train, held_out))
    roots = np.sqrt(features(pixels[chosen]))
    plane = _plane(roots)
    distance = np.empty(len(chosen), np.float32)
    for fold in np.array_split(rng.permutation(len(chosen)), min(_FOLDS, len(chosen))):
        distance[fold] = distances(roots[fold] ** 2, _plane(np.delete(roots, fold, axis=0)))
    if len(held_out):
        further = distances(features(pixels[held_out]), plane)
        distance = np.concatenate([distance, further])
    file = io.BytesIO()
    np.save(file, plane, allow_pickle=False)
    entry = Novelty(
        file=FILE,
        method=f"residual outside {len(plane) - 1} principal components of square-rooted channel means",
        limit=_limit(distance, source[np.concatenate([chosen, held_out])]),
        quantile=QUANTILE,
        fitted_images=len(chosen),
        held_out_images=len(distance),
    )
    return FittedOutOfDistribution(entry, file.getvalue())


def _balance_sources(rows: NDArray[np.intp], source: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return at most ``_MAX_IMAGES`` of these rows, equally many from each source as far as it has enough."""
    shuffled = rng.permutation(rows)
    turn = np.empty(len(shuffled), np.intp)  # position within its source
    for name in np.unique(source[shuffled]):
        members = source[shuffled] == name
        turn[members] = np.arange(np.count_nonzero(members))
    return shuffled[np.argsort(turn, kind="stable")[:_MAX_IMAGES]]


def _plane(roots: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return mean and principal directions of square-rooted features (N, channels): (1 + directions, channels)."""
    mean = roots.mean(axis=0)
    # The images span at most this many directions.
    directions = np.linalg.svd(roots - mean, full_matrices=False)[2][: min(DIMENSIONS, max(1, len(roots) - 1))]
    return np.concatenate([mean[None], directions]).astype(np.float32)


def _limit(distance: NDArray[np.float32], source: NDArray[np.str_]) -> float:
    names, counts = np.unique(source, return_counts=True)
    parts = [distance, *(distance[source == name] for name in names[counts >= _OWN_QUANTILE])]
    return float(max(np.quantile(part, QUANTILE) for part in parts))


def keras_features(backbone: Any, preprocessing: Preprocessing) -> FeaturesOf:
    """Return the ``features`` function of ``fit_out_of_distribution`` for the last convolution of a Keras model."""
    import keras

    last = next(layer for layer in reversed(backbone.layers) if isinstance(layer, keras.layers.Conv2D))
    network = keras.Model(backbone.inputs, last.output)

    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        means = [
            np.asarray(network.predict_on_batch(preprocessing.normalize(pixels[start : start + 32]))).mean(axis=(1, 2))
            for start in range(0, len(pixels), 32)
        ]
        return np.concatenate(means).astype(np.float32)

    return features
