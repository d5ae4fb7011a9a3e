"""Train one epoch of RECIPE on DATA into OUT, with a backbone of three small convolutions to save time."""

import dataclasses
import sys
from pathlib import Path

from mri_edge.authoring.quiet import load_keras
from mri_edge.train.models.registry import BACKBONES, find_backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.registry import find_recipe

keras = load_keras("train")
name, data, out = sys.argv[1:]


def build_backbone(weights, height, width):
    """Map (N, height, width, 3) to (N, height // 32, width // 32, 512), with the layer names of VGG16."""
    layers = keras.layers
    entry = tensor = keras.Input((height, width, 3))
    for block, (channels, step) in {1: (4, 8), 3: (8, 2), 5: (512, 2)}.items():
        tensor = layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"block{block}_conv1")(tensor)
        tensor = layers.MaxPooling2D(step, name=f"block{block}_pool")(tensor)
    model = keras.Model(entry, tensor, name="vgg16")
    model.trainable = False
    return model


tiny = dataclasses.replace(
    find_backbone("vgg16"),
    build=build_backbone,
    load_weights=lambda source, say: BackboneWeights((), "none", "none", "0" * 64),
)
BACKBONES["vgg16"] = tiny
recipe = dataclasses.replace(find_recipe(name), head=Head(hidden=16, dropout=0.5)).with_epochs(1)
train_bundle(Path(data), Path(out), recipe, backbone_weights="none", seed=0)
