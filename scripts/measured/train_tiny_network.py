"""Train one epoch of RECIPE on DATA into OUT, with a backbone of three small convolutions to save time."""

import dataclasses
import sys
from pathlib import Path

from mri_edge.train import pipeline, robust_run
from mri_edge.train.loops.keras import load_keras
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes import robust
from mri_edge.train.recipes.base import RECIPES

keras = load_keras()
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


for module in (pipeline, robust):
    module.build_backbone = build_backbone
for module in (pipeline, robust_run):
    module.load_weights = lambda source: BackboneWeights((), "none", "none", "0" * 64)
recipe = dataclasses.replace(RECIPES[name], hidden=16, epochs=1)
train = robust_run.train_robust_bundle if name == "robust" else pipeline.train_bundle
train(Path(data), Path(out), recipe, backbone_weights="none", seed=0)
