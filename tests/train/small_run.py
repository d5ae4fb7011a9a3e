"""Train a small reference recipe in a process of its own. Arguments: data, out, weights, epochs."""

import dataclasses
import sys
from pathlib import Path

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.reference import REFERENCE

SEED = 3
RECIPE = dataclasses.replace(
    REFERENCE,
    preprocessing=Preprocessing(height=32, width=32, channel_order="BGR"),
    head=Head(hidden=16, dropout=0.5),
    schedule=dataclasses.replace(REFERENCE.schedule, batch=4),
)

if __name__ == "__main__":
    data, out, weights, epochs = sys.argv[1:]
    train_bundle(Path(data), Path(out), RECIPE.with_epochs(int(epochs)), backbone_weights=weights, seed=SEED)
