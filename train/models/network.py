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
    """A network that is trained in one form and exported in another, as a student of a distillation is.

    ``build_trainable(recipe, classes, seed)`` returns a model that maps gray float32 (N, height, width, 1), 0 to 1, to
    probabilities. ``build_shipped(recipe, classes)`` returns the ``Network`` to export, without weights.
    ``fold(trained, shipped)`` transfers the weights. ``architecture(recipe)`` describes the network for the manifest,
    in plain types.
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
        Called with weights, height and width; returns a frozen Keras model that maps float32 (N, height, width, 3) to
        a feature map of ``feature_channels`` channels at 1 / ``feature_stride`` of the size. Without weights it keeps
        its random ones.
    load_weights
        Called with the value of ``--backbone-weights`` and a function that shows a message; returns the weights.
    stages
        Prefix of the layer names of each stage, from the input upwards; fine-tuning freezes whole stages.
    preprocessing
        The preprocessing that the weights were trained with.
    fast_in_bfloat16
        Whether a step of the training is faster in bfloat16 on hardware that multiplies it.
    ignore_color
        Changes a built backbone in place so that color does not affect it; ``None`` if the backbone needs no change.
    student
        How the network is trained by distillation; ``None`` if it cannot be distilled.
    """

    title: str
    build: Callable[[BackboneWeights | None, int, int], Any]
    load_weights: Callable[[str, Callable[[str], None]], BackboneWeights]
    stages: tuple[str, ...]
    preprocessing: Preprocessing
    feature_stride: int
    feature_channels: int
    fast_in_bfloat16: bool = True
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
    stack = [layers.GlobalAveragePooling2D(name="pool") if head.pooled else layers.Flatten(name="flatten")]
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


def ignore_color(first: str, backbone: Any, preprocessing: Preprocessing) -> None:
    """Change the convolution ``first`` so that it responds only to the mean of the color channels.

    Gray pictures give the same features as before, except for a constant in the outermost pixels if the mean differs
    between channels, because zero padding stands in for a normalized value there. A tinted picture gives the features
    of its gray version.
    """
    layer = backbone.get_layer(first)
    kernel, bias = layer.get_weights()
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (preprocessing.mean, preprocessing.deviation))
    gray = (kernel / std).mean(axis=2, keepdims=True)
    shift = (kernel * (mean.mean() - mean) / std).sum(axis=(0, 1, 2))
    layer.set_weights([gray * std, bias + shift])


def predict(
    model: Any,
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    batch: int = 64,
    *,
    rows: NDArray[np.intp] | None = None,
) -> NDArray[np.float32]:
    """Return probabilities float32 (N, classes) of pictures uint8 (M, height, width, 3) RGB, by default of all.

    ``rows`` (N,) select some of the pictures. If ``pixels`` are memory-mapped, only one batch is in memory at a time.
    """
    rows = np.arange(len(pixels)) if rows is None else rows
    parts = [
        np.asarray(model.predict_on_batch(preprocessing.normalize(pixels[rows[start : start + batch]])))
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts).astype(np.float32)
