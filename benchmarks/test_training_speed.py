"""Training the head from features beside Keras' own ``fit``: the same augmented images, epoch by epoch in turn."""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs mri-edge[train]")

from mri_edge.train.loops import head
from mri_edge.train.loops.keras import load_keras
from mri_edge.train.models.network import build_network
from mri_edge.train.models.vgg16 import build_backbone
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.transforms import affine

keras = load_keras()
EPOCHS = 4
BATCH = REFERENCE.schedule.batch
TRAIN, TEST = 202, 51


class KerasImages(keras.utils.PyDataset):
    """An epoch's batches as a notebook makes them: Keras' own affine transform, one image at a time."""

    def __init__(self, pixels, targets, epoch):
        super().__init__()
        self.pixels, self.targets, self.epoch = pixels, targets, epoch
        self.order = head.epoch_order(TRAIN, 0, epoch)

    def __len__(self):
        return math.ceil(TRAIN / BATCH)

    def __getitem__(self, step):
        from keras.src.legacy.preprocessing.image import apply_affine_transform

        chosen = self.order[BATCH * step : BATCH * (step + 1)]
        views = []
        for index in chosen:
            drawn = affine.draw(np.random.default_rng([0, self.epoch, index]), REFERENCE.transforms, 128, 128)
            view = apply_affine_transform(
                REFERENCE.preprocessing.normalise(self.pixels[index]),
                theta=drawn.rotation,
                tx=drawn.down,
                ty=drawn.right,
                shear=drawn.shear,
                zx=drawn.zoom_rows,
                zy=drawn.zoom_columns,
                row_axis=0,
                col_axis=1,
                channel_axis=2,
            )
            views.append(view[:, ::-1] if drawn.flip else view)
        return np.stack(views), self.targets[chosen]


def test_training_from_features_is_faster_than_keras_fit(record_property):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (TRAIN + TEST, 128, 128, 3), np.uint8)
    labels = rng.integers(0, 2, TRAIN + TEST)
    targets = keras.utils.to_categorical(labels, 2)
    ours, theirs = (build_network(build_backbone(None, 128, 128), REFERENCE.head, 0.001, 2, 0) for _ in range(2))
    theirs.whole.set_weights(ours.whole.get_weights())
    held_out = (REFERENCE.preprocessing.normalise(pixels[TRAIN:]), targets[TRAIN:])
    pairs: list[tuple[float, float]] = []
    mark = time.perf_counter()

    def after_our_epoch(epoch):
        nonlocal mark
        spent = time.perf_counter() - mark
        start = time.perf_counter()
        batches = KerasImages(pixels, targets, epoch.number)
        theirs.whole.fit(batches, validation_data=held_out, epochs=1, shuffle=False, verbose=0)
        mark = time.perf_counter()
        pairs.append((mark - start, spent))

    head.fit(
        ours,
        head.Images(pixels, np.arange(TRAIN), labels[:TRAIN]),
        head.Images(pixels, np.arange(TRAIN, TRAIN + TEST), labels[TRAIN:]),
        REFERENCE.with_epochs(EPOCHS),
        seed=0,
        epoch_ended=after_our_epoch,
    )
    # The first epoch of either holds its compilation.
    ratios = [keras_seconds / our_seconds for keras_seconds, our_seconds in pairs[1:]]
    ratio = statistics.median(ratios)
    record_property("an epoch of Keras' fit / of ours", round(ratio, 2))
    print(f"an epoch of Keras' fit takes {ratio:.2f} times ours ({min(ratios):.2f} to {max(ratios):.2f})")
    assert ratio > 1.2
