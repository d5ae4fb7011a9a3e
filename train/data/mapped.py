"""Arrays in files, for what does not fit in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mri_edge.errors import OutputError

Number = TypeVar("Number", bound=np.generic)


def cannot_store(path: Path, error: OSError) -> OutputError:
    """Return the error of a file or folder that cannot be written, with ``path`` in it: NumPy's names none."""
    return OutputError(f"{path}: cannot write ({error.strerror})", "Free disk space, or name another folder")


def mapped_array(path: Path, dtype: type[Number], shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Number]]:
    """Make a .npy file of zeros and return it memory-mapped, with this shape. Raises OutputError."""
    try:
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    except OSError as error:
        raise cannot_store(path, error) from error
