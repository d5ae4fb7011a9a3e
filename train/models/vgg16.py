"""The reference's network: VGG16 below, and on it Flatten, Dense, Dropout, Dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.loops.keras import load_keras
from mri_edge.train.recipes.base import Recipe


@dataclass(frozen=True)
class Network:
    """One network seen in two ways that share every weight and the optimiser.

    ``head`` takes the backbone's features (N, h, w, 512), ``whole`` normalised pictures
    float32 (N, height, width, 3); both give probabilities (N, classes).
    """

    backbone: Any
    head: Any
    whole: Any


def build_network(backbone: Any, recipe: Recipe, classes: int, seed: int) -> Network:
    """Put a seeded head on ``backbone`` and compile: Adam, categorical cross-entropy."""
    keras = load_keras()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    stack = [
        layers.Flatten(name="flatten"),
        layers.Dense(recipe.hidden, activation="relu", name="dense"),
        layers.Dropout(recipe.dropout, seed=seed, name="dropout"),
        # Probabilities and loss are float32 whatever precision the layers below compute in.
        layers.Dense(classes, activation="softmax", name="dense_1", dtype="float32"),
    ]

    def through(tensor: Any) -> Any:
        for layer in stack:
            tensor = layer(tensor)
        return tensor

    pictures = keras.Input(backbone.input_shape[1:], name="image")
    whole = keras.Model(pictures, through(backbone(pictures, training=False)), name="mri_edge")
    features = keras.Input(backbone.output_shape[1:], name="features")
    head = keras.Model(features, through(features), name="head")

    optimiser = keras.optimizers.Adam(recipe.learning_rate)
    optimiser.build(head.trainable_variables)
    for model in (head, whole):
        model.compile(optimizer=optimiser, loss="categorical_crossentropy", metrics=["accuracy"])
    return Network(backbone, head, whole)


def predict(
    model: Any,
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    batch: int = 64,
    *,
    rows: NDArray[np.intp] | None = None,
) -> NDArray[np.float32]:
    """Probabilities float32 (N, classes) of pictures uint8 (N, height, width, 3) RGB, or of those of them in ``rows``.

    No more than a batch of them is in memory at a time, where ``pixels`` are mapped from disk.
    """
    rows = np.arange(len(pixels)) if rows is None else rows
    parts = [
        np.asarray(model.predict_on_batch(preprocessing.normalise(pixels[rows[start : start + batch]])))
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts).astype(np.float32)
