"""Import Keras for training without log lines, with the backend that KERAS_BACKEND names, else TensorFlow."""

from __future__ import annotations

from types import ModuleType

from mri_edge.authoring import quiet


def load_keras() -> ModuleType:
    """Import Keras and its backend quietly. Raises UsageError if one of them is not installed."""
    keras: ModuleType = quiet.load_keras("train")
    return keras
