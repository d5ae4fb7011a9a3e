"""Keras, imported in one place and without its log lines: every module of this room gets it by ``load_keras``.

The backend is what KERAS_BACKEND says, else TensorFlow.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

from mri_edge.device.native import silence_stderr
from mri_edge.errors import UsageError


def load_keras() -> ModuleType:
    """Import Keras and its backend quietly.

    Raises
    ------
    UsageError
        Keras or its backend is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with silence_stderr():
        try:
            import keras
        except ImportError as error:
            raise UsageError(
                f"training needs Keras and its backend: {error}", "pip install 'mri-edge[train]'"
            ) from error
        return keras


def accelerated() -> bool:
    """Whether Keras computes on a GPU or another accelerator."""
    keras = load_keras()
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())
