"""``--recipe reference``: the notebook's own recipe, a head trained on a frozen VGG16, and the figures it published.

The figures are from the README of the reference repository (classification report, summary) and its pictures (accuracy
curve, confusion matrix, ROC curve), on the 51 test images of its own split. Reports show them for comparison.
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

# Identifies its data set: ``fingerprint`` of the SHA-256 of the 253 pictures, in the order of ``find_scans``.
DATA = "bcb30697d1d72ab02e16e7d32620ab34339f2932a42d14907cfdad9fc19649e5"

ACCURACY = 0.88
AUC = 0.97

# Rows of scikit-learn's classification report (precision, recall, F1, support), and of another run of the notebook.
REPORT = {"0": (0.82, 0.90, 0.86, 20), "1": (0.93, 0.87, 0.90, 31)}
OTHER_RUN = {"0": (0.94, 0.75, 0.83, 20), "1": (0.86, 0.97, 0.91, 31)}

# Follows from recall and support: 18 of 20 and 27 of 31.
CONFUSION = [[18, 2], [4, 27]]

# Validation accuracy after each epoch, read off the published curve.
VALIDATION_ACCURACY = (
    *(0.51, 0.61, 0.53, 0.84, 0.88, 0.88, 0.84, 0.90, 0.84, 0.86, 0.86, 0.92, 0.90),
    *(0.92, 0.90, 0.90, 0.90, 0.92, 0.88, 0.82, 0.88, 0.88, 0.90, 0.88, 0.88),
)

# Parameters in the published summary: frozen, trainable, of the optimizer.
PARAMETERS = (14_714_688, 2_097_922, 4_195_846)
