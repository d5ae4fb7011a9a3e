"""Import and run Keras, TensorFlow and tf2onnx without their log lines on the user's terminal."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from mri_edge.device import machine
from mri_edge.device.native import silence_stderr
from mri_edge.errors import UsageError


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Python warnings and whatever native code writes to stderr; errors still arrive as exceptions.

    Progress that is shown meanwhile must be written to ``terminal()``.
    """
    with silence_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def terminal() -> TextIO:
    """Open a text stream on stderr as it is now; it still works inside ``quiet``."""
    return os.fdopen(os.dup(2), "w", encoding="utf-8")


def load_keras(extra: Literal["train", "export"]) -> Any:
    """Import Keras and its backend without their log lines, and let TensorFlow compute with oneDNN.

    By default, TensorFlow uses oneDNN on x86-64 only if the CPU has AVX512 with VNNI. On two cores with AVX2, a
    training step of the recipe `lite` takes 0.39 s with it, and 0.65 s without (measured).

    The backend is the one in KERAS_BACKEND or in Keras' own settings; export accepts TensorFlow only and
    therefore does not read those settings.

    Parameters
    ----------
    extra
        The extra of this package that contains Keras; the error message names it.

    Raises
    ------
    UsageError
        Keras or its backend is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if machine.cpu().architecture == "x86_64":
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if extra == "export":
        os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in ("tensorflow", "tf2onnx", "absl", "h5py"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with silence_stderr():
        try:
            import keras
        except ImportError as error:
            purpose = "training" if extra == "train" else "export"
            raise UsageError(
                f"{purpose} needs Keras and its backend: {error}", f"pip install 'mri-edge[{extra}]'"
            ) from error
        return keras
