"""Define what a backbone consists of: builder, source of weights, stages and preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mri_edge.scans.preprocessing import Preprocessing

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
