"""Train a tiny robust recipe in a process of its own. Arguments: data, out, weights."""

import dataclasses
import sys
from pathlib import Path

from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.robust import ROBUST

SEED = 3
RECIPE = dataclasses.replace(
    ROBUST,
    preprocessing=dataclasses.replace(ROBUST.preprocessing, height=32, width=32),
    head=Head(hidden=8, dropout=0.5),
    # An epoch, and so a checkpoint, every two steps.
    schedule=dataclasses.replace(ROBUST.schedule, batch=4, epochs=4, epoch_images=8, warmup_steps=4, rise=1),
)

if __name__ == "__main__":
    data, out, weights = sys.argv[1:]
    train_bundle(Path(data), Path(out), RECIPE, backbone_weights=weights, seed=SEED)
