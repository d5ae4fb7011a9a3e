"""Define what a backbone provides, build a classifier on one, and predict with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import Head

from .weights import BackboneWeights


@dataclass(frozen=True)
class StudentNetwork:
    """A network that trains in one form and ships in another, as a student of a distillation does.

    ``build_trainable(recipe, classes, seed)`` gives gray float32 (N, height, width, 1) from 0 to 1 -> probabilities;
    ``build_shipped(recipe, classes)`` gives the ``Network`` that ships, without weights; ``fold(trained, shipped)``
    transfers the weights; ``architecture(recipe)`` describes the network for the manifest, in plain types.
    """

    build_trainable: Callable[..., Any]
    build_shipped: Callable[..., Any]
    fold: Callable[[Any, Any], None]
    architecture: Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Backbone:
    """A backbone that recipes can name.

    Attributes
    ----------
    title
        Its name in the manifest.
    build
        ``(weights, height, width)`` -> frozen Keras model: float32 (N, height, width, 3) -> a feature map of
        ``feature_channels`` channels at a ``feature_stride``-th of the size. Weights of ``None`` are random.
    load_weights
        ``(source, say)`` -> the weights that ``--backbone-weights`` names.
    stages
        Prefix of the layer names of each stage, from the input upwards; fine-tuning freezes whole stages.
    preprocessing
        The one that the weights were trained with.
    ignore_color
        Changes a built backbone so that color cannot matter, in place; ``None`` where that is not needed.
    student
        How the network is trained where it is distilled.
    """

    title: str
    build: Callable[[BackboneWeights | None, int, int], Any]
    load_weights: Callable[[str, Callable[[str], None]], BackboneWeights]
    stages: tuple[str, ...]
    preprocessing: Preprocessing
    feature_stride: int
    feature_channels: int
    ignore_color: Callable[[Any, Preprocessing], None] | None = None
    student: StudentNetwork | None = None


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
    keras = load_keras("train")
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
