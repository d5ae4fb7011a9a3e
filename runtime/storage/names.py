"""File names for results: short enough for a file system, and distinct for scans of the same name."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 200  # bytes of a name; file systems take 255, and a temporary file adds 20 to the name of its scan


def is_too_long(name: str) -> bool:
    """Whether a scan's name leaves no room for what is added to it."""
    return len(os.fsencode(name)) > _LONGEST


def hashed_name(name: str, sha256: str) -> str:
    """A scan's name with the beginning of a hash in it, cut to a length that leaves room: ``a.0123456789ab.png``."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return f"{_cut(stem, _LONGEST - 13 - len(os.fsencode(suffix)))}.{sha256[:12]}{suffix}"


def _cut(text: str, size: int) -> str:
    """The beginning of a name, of at most ``size`` bytes as the file system counts them."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text
