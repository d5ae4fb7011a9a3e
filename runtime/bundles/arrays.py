"""Read untrusted NumPy files: without pickles, and with no more memory than the file's size."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import ManifestError


def read_array(content: bytes, origin: str) -> NDArray[Any]:
    """Read the array in a ``.npy`` file. Raises ManifestError, which names ``origin``, for anything else."""
    try:
        return parse_array(content)
    except Exception as error:  # NumPy parses a header as Python, so SyntaxError and many others
        raise ManifestError(
            f"{origin}: no NumPy array ({str(error).strip() or type(error).__name__})", "Make or copy the bundle again"
        ) from error


def parse_array(content: bytes) -> NDArray[Any]:
    """Read the array in a ``.npy`` file. Raises ValueError, or what NumPy raises, for anything else.

    Unlike ``numpy.load`` it refuses pickles and archives, and compares the shape with the length of the content.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"version {version} of the format")
    shape, column_major, dtype = reader(file)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"holds {dtype}")
    count = 1
    for size in shape:
        count *= size
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{dtype} {shape} does not fit its {len(content)} bytes")
    values = np.frombuffer(content, dtype, count, file.tell())
    return values.reshape(shape, order="F" if column_major else "C")
