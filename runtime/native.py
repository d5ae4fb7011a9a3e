"""What native libraries write to the terminal past Python, kept off it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2; failures arrive as exceptions all the same.

    TensorFlow's C++ part and XNNPACK write there, past ``sys.stderr`` and before any log level is heard.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
