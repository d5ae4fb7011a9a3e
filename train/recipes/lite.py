"""``--recipe lite``: a network for devices, fine-tuned from EfficientNet-Lite0 on the square around the head.

Balance of classes and sources, averaging and calibration are those of the robust recipe. It differs in its backbone,
which has a seventh of the weights and a twentieth of the multiplications, and in that the device frames the head and
resizes with antialiasing. The first stages are frozen, because they did not improve with training and take most of its
time. Two parts rank scans of an unseen source better: random filters in some of the views, and averaging the weights
with those from before the fine-tuning.
"""

from __future__ import annotations

from mri_edge.scans.preprocessing import Preprocessing

from .base import Calibration, FineTuning, Head, RecipeSpec, ScanViews, SplitPolicy

LITE = RecipeSpec(
    name="lite",
    summary="for devices",
    run_name="lite",
    backbone="efficientnet_lite0",
    preprocessing=Preprocessing(
        height=192,
        width=192,
        framing="head",
        resize="antialiased",
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
    ),
    head=Head(hidden=0, dropout=0.3, pooled=True),
    transforms=ScanViews(
        head_crop_probability=0.85, head_margin=(-0.04, 0.12), picture_margin=(-0.1, 0.05), filter_probability=0.5
    ),
    schedule=FineTuning(
        epochs=8,
        batch=32,
        learning_rate=3e-4,
        epoch_images=2048,
        frozen_stages=4,
        warmup_steps=60,
        warmup_rate=3e-3,
        rise=50,
        weight_decay=1e-2,
        largest_gradient=1.0,
        averaging=0.99,
        label_smoothing=0.1,
        initial_share=0.2,
    ),
    split=SplitPolicy(("reference", "grouped"), keep_apart=True, validation_folds=8),
    calibration=Calibration(),
    stress_tests=True,
)
