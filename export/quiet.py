"""TensorFlow, Keras and tf2onnx, imported and run without their log lines on the user's screen.

The only module of this room that imports them first: the environment must be set before.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mri_edge.device.native import silence_stderr


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what native libraries write to stderr off the screen; errors still arrive as exceptions.

    Progress drawn meanwhile must go to ``screen()``.
    """
    with silence_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def screen() -> IO[str]:
    """A text stream on the terminal's stderr that stays connected while ``quiet`` is in force."""
    return os.fdopen(os.dup(2), "w", encoding="utf-8")


def import_tensorflow() -> None:
    """Import TensorFlow and Keras with their logs silenced. Call inside ``quiet``."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for name in ("tensorflow", "tf2onnx", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import keras  # noqa: F401
    import tensorflow  # noqa: F401
