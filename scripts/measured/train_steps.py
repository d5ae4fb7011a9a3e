"""Fine-tune as RECIPE does for STEPS steps, by our loop or by Keras' fit, on views of PICTURES; print seconds a step.

    python train_steps.py (mri-edge|keras) RECIPE STEPS PICTURE...

Both train the same network with the same optimizer on the same views, whose making counts. Weights are random.
"""

import dataclasses
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from mri_edge.authoring.quiet import load_keras
from mri_edge.scans import readers
from mri_edge.train.loops.finetune import fast_precision, fine_tuning_optimizer, finetune, unfreeze
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.recipes.base import FineTuning
from mri_edge.train.recipes.registry import find_recipe
from mri_edge.train.training import build_in_precision
from mri_edge.train.transforms.mri import Slice, augment

_START = 3  # steps that are not counted: TensorFlow builds its graph and allocates memory in the first

way, name, count, *pictures = sys.argv[1:]
keras = import_module("keras") if way == "keras" else load_keras("train")  # Keras as any script gets it
steps = int(count)
recipe, slices = find_recipe(name), [Slice.from_pixels(readers.load(Path(picture))) for picture in pictures]
assert isinstance(recipe.schedule, FineTuning)  # noqa: S101 (for the type checker)
backbone = find_backbone(recipe.backbone)
schedule = dataclasses.replace(
    recipe.schedule, epochs=1, epoch_images=steps * recipe.schedule.batch, warmup_steps=0, rise=1
)
ended: list[float] = []


def make_batch(step):
    """Return normalized views (N, H, W, 3) and their targets (N, 2), as a fine-tuning gets them."""
    rng = np.random.default_rng([0, step])
    chosen, references = rng.integers(len(slices), size=(2, schedule.batch))
    views = [
        augment(rng, slices[own], slices[other].gray, recipe.preprocessing, transforms=recipe.scan_views)
        for own, other in zip(chosen, references, strict=True)
    ]
    pixels = np.stack(views)[..., None].repeat(3, axis=-1)
    return recipe.preprocessing.normalize(pixels), np.eye(2, dtype=np.float32)[chosen % 2]


class Batches(keras.utils.PyDataset):
    """The same batches for ``fit``."""

    def __len__(self):
        """Return the number of steps."""
        return steps

    def __getitem__(self, index):
        """Return the batch of one step."""
        return make_batch(index)


def note(*_, **__):
    """Note the time at the end of a step."""
    ended.append(time.perf_counter())


if way == "keras":
    network = build_in_precision(None, recipe, 2, 0, "float32")
    unfreeze(network.backbone, backbone.stages[: schedule.frozen_stages])
    network.whole.compile(optimizer=fine_tuning_optimizer(schedule), loss="categorical_crossentropy")
    network.whole.fit(Batches(), verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note)])
else:
    network = build_in_precision(None, recipe, 2, 0, fast_precision(backbone))
    finetune(network.whole, network.backbone, schedule, make_batch, note, stages=backbone.stages)
print((ended[-1] - ended[_START - 1]) / (len(ended) - _START))
