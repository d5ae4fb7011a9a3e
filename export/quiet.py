"""TensorFlow, Keras and tf2onnx, imported and run without their log lines on the user's screen.

The only module of this room that imports them first: the environment must be set before.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what native libraries write to stderr off the screen; errors still arrive as exceptions.

    TensorFlow's C++ part and XNNPACK write to file descriptor 2, past ``sys.stderr``. Progress drawn
    meanwhile must go to ``screen()``.
    """
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


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


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line; the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
