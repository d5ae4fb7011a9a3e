"""Open the Keras model to export, and compute its own answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.keras_models.loading import one_column_a_class, open_model
from mri_edge.scans.preprocessing import Preprocessing


def load(path: Path, content: bytes | None = None) -> keras.Model:
    """Open a ``.keras`` or ``.h5`` file, or its ``content``, without running code from it.

    Raises
    ------
    BundleError
        It is not a Keras model, contains code (a Lambda layer) or layers that Keras does not know, or has more
        weights than its size allows.
    """
    return open_model(path, keras, content)


def answers(
    model: keras.Model, batches: Iterable[NDArray[np.uint8]], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """The Keras model's probabilities, float32 (N, classes), for batches of pixels uint8 (n, H, W, 3)."""
    probabilities = [
        keras.ops.convert_to_numpy(model(preprocessing.normalize(batch), training=False)).astype(np.float32)
        for batch in batches
    ]
    return np.concatenate([one_column_a_class(rows) for rows in probabilities])
