"""``model.keras``, from which every artifact is made: its manifest entry, and its output as one column per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Artifact, TensorSpec
from mri_edge.scans.preprocessing import Preprocessing

KERAS = "model.keras"


def keras_artifact(preprocessing: Preprocessing, classes: int) -> Artifact:
    """The manifest entry of ``model.keras``, before size and hash are known."""
    return Artifact(
        file=KERAS,
        format="keras",
        precision="float32",
        size_bytes=0,
        sha256="",
        input=TensorSpec("image", "float32", (None, preprocessing.height, preprocessing.width, 3)),
        output=TensorSpec("probabilities", "float32", (None, classes)),
    )


def one_column_a_class(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (N, classes). A model with one sigmoid gives (N, 1), the probability of the second class."""
    return np.hstack([1 - answer, answer]) if answer.shape[1] == 1 else answer
