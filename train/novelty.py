"""Fits the plane near which training images lie, so that a device can say what is unlike them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from mri_edge.manifest import Novelty
from mri_edge.novelty import distances
from mri_edge.preprocess import Preprocessing
from numpy.typing import NDArray

FILE = "novelty.npy"
# Chosen on the robust recipe's features: of 8, 16, 32 and 64 dimensions, 16 tell photographs and inverted
# scans best while scans that training did not see stay inside.
DIMENSIONS = 16
QUANTILE = 0.99  # of the held-out images' distances: about 1 in 100 real scans is warned about
_MOST = 1000  # images to fit on; more change the plane little


@dataclass(frozen=True)
class FittedNovelty:
    """What goes into the bundle: the manifest's entry and the bytes of its file."""

    entry: Novelty
    content: bytes


def fit_novelty(
    backbone: Any,
    pixels: NDArray[np.uint8],
    train: NDArray[np.intp],
    held_out: NDArray[np.intp],
    preprocessing: Preprocessing,
    seed: int,
) -> FittedNovelty:
    """Fit the plane on training images, and the limit on images held out from it.

    Parameters
    ----------
    backbone
        Keras model whose last convolution gives the feature map.
    pixels
        uint8 (M, height, width, 3) RGB.
    train, held_out
        Positions in ``pixels``. Without ``held_out``, a fifth of the training images is held out.
        Test images belong to neither.
    """
    rng = np.random.default_rng([seed, 2])
    chosen = rng.permutation(train)[:_MOST]
    if not len(held_out):
        held_out, chosen = np.split(chosen, [max(1, len(chosen) // 5)])
    held_out = rng.permutation(held_out)[:_MOST]
    roots = np.sqrt(features(backbone, pixels[chosen], preprocessing))
    mean = roots.mean(axis=0)
    # At most as many directions as the images span.
    directions = np.linalg.svd(roots - mean, full_matrices=False)[2][: min(DIMENSIONS, len(chosen) - 1)]
    plane = np.concatenate([mean[None], directions]).astype(np.float32)
    limit = float(np.quantile(distances(features(backbone, pixels[held_out], preprocessing), plane), QUANTILE))
    file = io.BytesIO()
    np.save(file, plane, allow_pickle=False)
    entry = Novelty(
        file=FILE,
        method=f"residual outside {len(directions)} principal components of square-rooted channel means",
        limit=limit,
        quantile=QUANTILE,
        fitted_images=len(chosen),
        held_out_images=len(held_out),
    )
    return FittedNovelty(entry, file.getvalue())


def features(backbone: Any, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Means of the last convolution's channels: uint8 (N, height, width, 3) RGB -> float32 (N, channels)."""
    import keras

    last = next(layer for layer in reversed(backbone.layers) if isinstance(layer, keras.layers.Conv2D))
    network = keras.Model(backbone.inputs, last.output)
    means = [
        np.asarray(network.predict_on_batch(preprocessing.normalise(pixels[start : start + 32]))).mean(axis=(1, 2))
        for start in range(0, len(pixels), 32)
    ]
    return np.concatenate(means).astype(np.float32)
