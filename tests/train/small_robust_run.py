"""Trains the robust recipe, tiny, in a process of its own: data, out, weights, and ``resume`` or nothing."""

import dataclasses
import sys
from pathlib import Path

from mri_edge.train import robust_run
from mri_edge.train.recipes import robust
from mri_edge.train.recipes.base import ROBUST

data, out, weights = sys.argv[1:4]
recipe = dataclasses.replace(
    ROBUST, preprocessing=dataclasses.replace(ROBUST.preprocessing, height=32, width=32), hidden=8, batch=4
)
robust.EPOCH_IMAGES = 8  # a checkpoint after every second step
plan = dataclasses.replace(robust.plan_of(recipe), warm_steps=3, steps=9, rise=1)
robust_run.plan_of = lambda recipe: plan
robust_run.train_robust_bundle(
    Path(data), Path(out), recipe, backbone_weights=weights, seed=3, resume="resume" in sys.argv
)
