"""Names of result files: short enough for file systems, and different for scans of the same name."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_BYTES = 200  # file systems allow 255, and a temporary file adds 20 to the name of its scan


def is_too_long(name: str) -> bool:
    """Whether a scan's name is too long to add a suffix."""
    return len(os.fsencode(name)) > _MAX_BYTES


def hashed_name(name: str, sha256: str) -> str:
    """Insert the first 12 digits of a hash into a scan's name, shortened if needed: ``a.0123456789ab.png``."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return f"{_cut(stem, _MAX_BYTES - 13 - len(os.fsencode(suffix)))}.{sha256[:12]}{suffix}"


def _cut(text: str, size: int) -> str:
    """The start of a name, at most ``size`` bytes in the file system's encoding."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text
