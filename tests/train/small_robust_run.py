"""Train a tiny robust recipe on a tiny network in a process of its own. Arguments: data, out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import keras

from mri_edge.train.models.registry import BACKBONES
from mri_edge.train.models.vgg16 import VGG16
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.robust import ROBUST

SEED = 3
RECIPE = dataclasses.replace(
    ROBUST,
    preprocessing=dataclasses.replace(ROBUST.preprocessing, height=32, width=32),
    head=Head(hidden=8, dropout=0.5),
    # An epoch, and so a checkpoint, every two steps.
    schedule=dataclasses.replace(ROBUST.schedule, batch=4, epochs=30, epoch_images=8, warmup_steps=4, rise=1),
)


def _build(weights: BackboneWeights | None, height: int, width: int) -> Any:
    """Build a frozen and a trained convolution, with names of layers of VGG16."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    pictures = keras.Input((height, width, 3))
    tensor = layers.Conv2D(8, 3, 4, "same", activation="relu", name="block1_conv1")(pictures)
    tensor = layers.Conv2D(8, 3, 8, "same", activation="relu", name="block3_conv1")(tensor)
    model = keras.Model(pictures, tensor, name="vgg16")
    model.trainable = False
    return model


BACKBONE = dataclasses.replace(
    VGG16, build=_build, load_weights=lambda source, say: BackboneWeights((), "random", "none", "0" * 64)
)

if __name__ == "__main__":
    data, out = sys.argv[1:]
    BACKBONES[RECIPE.backbone] = BACKBONE
    train_bundle(Path(data), Path(out), RECIPE, backbone_weights="none", seed=SEED)
