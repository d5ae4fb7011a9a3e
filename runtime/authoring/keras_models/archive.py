"""Unpack a ``.keras`` file: its description and its weights. The unpacked size is limited."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

from .bounds import UnsafeModelError, check_unpacked, unpacked_limit

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
# The files that Keras writes for a model without lookup tables.
_MEMBERS = {_CONFIG, _WEIGHTS, "metadata.json"}
_LARGEST_CONFIG = 16 << 20  # bytes; EfficientNetB7 has 1 MB
_PIECE = 1 << 20


def unpack(path: Path, folder: Path) -> tuple[bytes, Path]:
    """Unpack into ``folder``. Returns the bytes of ``config.json`` and the path of the weights.

    Raises
    ------
    UnsafeModelError
        It contains other files, or unpacks to more than ``bounds`` allows.
    OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error
        It is not such an archive, or is damaged.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or not set(names) <= _MEMBERS:
            others = sorted(set(names) - _MEMBERS) or ["one name twice"]
            raise UnsafeModelError(f"the archive holds other things than a model: {others[0]!r}")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
            raise UnsafeModelError("the archive is not compressed with deflate")
        if archive.getinfo(_CONFIG).file_size > _LARGEST_CONFIG:
            raise UnsafeModelError(f"{_CONFIG} has more than {_LARGEST_CONFIG:,} bytes")
        check_unpacked(sum(member.file_size for member in archive.infolist()), size, "archive")
        with archive.open(_CONFIG) as file:
            config = file.read(_LARGEST_CONFIG)
        weights = folder / _WEIGHTS
        with archive.open(_WEIGHTS) as source, open(weights, "xb") as target:
            _copy(source, target, size)
    return config, weights


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy in pieces and check the size, because the archive's directory may declare a wrong one."""
    done = 0
    while piece := source.read(_PIECE):
        done += len(piece)
        if done > unpacked_limit(size):
            check_unpacked(done, size, "archive")
        target.write(piece)
