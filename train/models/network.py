"""A classifier as one object: backbone, head, and both together; how it is built and how it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.loops.keras import load_keras
from mri_edge.train.recipes.base import Head


@dataclass(frozen=True)
class Network:
    """Two views of one network that share every weight and the optimizer.

    ``head`` takes the backbone's features (N, h, w, channels), ``whole`` takes normalized pictures
    float32 (N, height, width, 3); both return probabilities (N, classes).
    """

    backbone: Any
    head: Any
    whole: Any


def build_network(backbone: Any, head: Head, learning_rate: float, classes: int, seed: int) -> Network:
    """Put a seeded head on ``backbone`` and compile with Adam and categorical cross-entropy."""
    keras = load_keras()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    stack = [layers.Flatten(name="flatten")]
    if head.hidden:
        stack.append(layers.Dense(head.hidden, activation="relu", name="dense"))
    stack += [
        layers.Dropout(head.dropout, seed=seed, name="dropout"),
        # Probabilities and loss are float32, whatever precision the layers below compute in.
        layers.Dense(classes, activation="softmax", name="dense_1", dtype="float32"),
    ]

    def apply_stack(tensor: Any) -> Any:
        for layer in stack:
            tensor = layer(tensor)
        return tensor

    pictures = keras.Input(backbone.input_shape[1:], name="image")
    whole = keras.Model(pictures, apply_stack(backbone(pictures, training=False)), name="mri_edge")
    features = keras.Input(backbone.output_shape[1:], name="features")
    head_model = keras.Model(features, apply_stack(features), name="head")

    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(head_model.trainable_variables)
    for model in (head_model, whole):
        model.compile(optimizer=optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return Network(backbone, head_model, whole)


def predict(
    model: Any,
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    batch: int = 64,
    *,
    rows: NDArray[np.intp] | None = None,
) -> NDArray[np.float32]:
    """Return probabilities float32 (N, classes) of pictures uint8 (N, height, width, 3) RGB, or of those in ``rows``.

    Only one batch is in memory at a time where ``pixels`` are mapped from disk.
    """
    rows = np.arange(len(pixels)) if rows is None else rows
    parts = [
        np.asarray(model.predict_on_batch(preprocessing.normalize(pixels[rows[start : start + batch]])))
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts).astype(np.float32)
