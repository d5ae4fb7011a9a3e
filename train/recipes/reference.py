"""``--recipe reference``: the notebook's own recipe, a head trained on a frozen VGG16.

The figures that it published are in ``published.py``.
"""

from __future__ import annotations

from mri_edge.scans.preprocessing import Preprocessing

from .base import Augmentation, Head, HeadTraining, RecipeSpec

REFERENCE = RecipeSpec(
    name="reference",
    summary="the notebook's",
    run_name="vgg16",
    backbone="vgg16",
    preprocessing=Preprocessing(channel_order="BGR", scale=1 / 255),
    head=Head(hidden=256, dropout=0.5),
    transforms=Augmentation(rotation=30, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True),
    schedule=HeadTraining(epochs=25, batch=32, learning_rate=0.001),  # Keras' default for Adam
)
