"""``--recipe robust``: the reference's network, fine-tuned so that it works on slices from other sources.

It differs from the reference in these points: it normalizes as the ImageNet weights were trained, its first layer sees
gray only, stages 3 to 5 are fine-tuned, classes and sources are balanced, framing, gray levels and image quality are
random, weights are averaged over the last steps, and probabilities are calibrated, with a threshold chosen on slices
that were held out by group.
"""

from __future__ import annotations

from mri_edge.scans.preprocessing import Preprocessing

from .base import Calibration, FineTuning, Head, RecipeSpec, ScanViews, SplitPolicy

ROBUST = RecipeSpec(
    name="robust",
    summary="for scans from elsewhere",
    run_name="vgg16",
    backbone="vgg16",
    # Mean and standard deviation of the images that torchvision's ImageNet weights were trained on; torchvision docs.
    preprocessing=Preprocessing(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
    head=Head(hidden=256, dropout=0.5),
    transforms=ScanViews(),
    schedule=FineTuning(
        epochs=8,
        batch=32,
        learning_rate=1e-4,
        epoch_images=2048,
        frozen_stages=2,
        warmup_steps=60,
        warmup_rate=1e-3,
        rise=50,
        weight_decay=1e-4,
        largest_gradient=1.0,
        averaging=0.99,
        label_smoothing=0.05,
    ),
    split=SplitPolicy(("reference", "grouped"), keep_apart=True, validation_folds=8),
    calibration=Calibration(),
    stress_tests=True,
)
