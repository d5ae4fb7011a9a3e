"""Fits the plane near which training images lie, so that a device can say what is unlike them."""

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
# Chosen on the robust recipe's features: of 8, 16 and 32 dimensions, 32 tell inverted scans best at the limit below,
# and all tell photographs and noise.
DIMENSIONS = 32
# Of the distances of scans that took no part in the fit, in the source where it is largest: a small and varied source
# lies further out, and a device's own scans are of no source that training knew. Taken over all scans alike, the
# limit warned of 8 in 51 of the reference's test scans; taken so, of 1, and of 3 in 537 scans of both sources together.
# Those are counts in the features of the int8 artefact, which is what runs on a device.
QUANTILE = 0.99
_MOST = 1000  # images to fit on; more change the plane little
_FOLDS = 5
_OWN_QUANTILE = 50  # scans of a source from which its far end can be told at all


@dataclass(frozen=True)
class FittedNovelty:
    """What goes into the bundle: the manifest's entry and the bytes of its file."""

    entry: Novelty
    content: bytes


def fit_novelty(
    features: FeaturesOf,
    pixels: NDArray[np.uint8],
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    seed: int,
    *,
    source: NDArray[np.str_] | None = None,
) -> FittedNovelty:
    """Fit the plane on training images, every source heard, and the limit on images that the plane did not see.

    Those are ``held_out`` and the training images themselves, each measured from a plane of the other
    four fifths (cross-fitting: few images then give as good a limit as many).

    Parameters
    ----------
    features
        Means of the last feature map's channels: uint8 (N, height, width, 3) RGB -> float32 (N, channels).
    pixels
        uint8 (M, height, width, 3) RGB.
    train, held_out
        Positions in ``pixels``; ``held_out`` may be empty. Test images belong to neither.
    source
        Where each picture is from (M,); ``None`` for one source.
    """
    if source is None:
        source = np.zeros(len(pixels), "U1")
    rng = np.random.default_rng([seed, 2])
    chosen, held_out = (_of_every_source(some, source, rng) for some in (train, held_out))
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
    return FittedNovelty(entry, file.getvalue())


def _of_every_source(among: NDArray[np.intp], source: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """At most ``_MOST`` of these positions, the sources in equal numbers as far as each goes."""
    shuffled = rng.permutation(among)
    turn = np.empty(len(shuffled), np.intp)  # the how-manieth of its source
    for one in np.unique(source[shuffled]):
        members = source[shuffled] == one
        turn[members] = np.arange(np.count_nonzero(members))
    return shuffled[np.argsort(turn, kind="stable")[:_MOST]]


def _plane(roots: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean and principal directions of square-rooted features (N, channels): float32 (1 + dimensions, channels)."""
    mean = roots.mean(axis=0)
    # At most as many directions as the images span.
    directions = np.linalg.svd(roots - mean, full_matrices=False)[2][: min(DIMENSIONS, max(1, len(roots) - 1))]
    return np.concatenate([mean[None], directions]).astype(np.float32)


def _limit(distance: NDArray[np.float32], source: NDArray[np.str_]) -> float:
    large = [one for one, count in zip(*np.unique(source, return_counts=True), strict=True) if count >= _OWN_QUANTILE]
    parts = [distance, *(distance[source == one] for one in large)]
    return float(max(np.quantile(part, QUANTILE) for part in parts))


def keras_features(backbone: Any, preprocessing: Preprocessing) -> FeaturesOf:
    """What ``fit_novelty`` takes, from a Keras model whose last convolution gives the feature map."""
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
