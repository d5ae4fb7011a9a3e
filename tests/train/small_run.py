"""Train a small reference recipe in a process of its own.

Arguments: data, out, weights, epochs, and optionally ``resume``.
"""

import dataclasses
import sys
from pathlib import Path

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.pipeline import train_bundle
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.reference import REFERENCE

data, out, weights, epochs = sys.argv[1:5]
recipe = dataclasses.replace(
    REFERENCE,
    preprocessing=Preprocessing(height=32, width=32, channel_order="BGR"),
    head=Head(hidden=16, dropout=0.5),
    schedule=dataclasses.replace(REFERENCE.schedule, batch=4, epochs=int(epochs)),
)
train_bundle(Path(data), Path(out), recipe, backbone_weights=weights, seed=3, resume="resume" in sys.argv)
