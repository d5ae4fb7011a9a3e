"""What lies in a folder and is no picture, counted by kind, so that nothing is passed over without a word."""

from __future__ import annotations

import stat
from pathlib import Path

from mri_edge.errors import printable

_NAMED = 3  # files of a kind that are named; the others are counted
_SUFFIXES = {
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".ima": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
}


def special(path: str) -> str | None:
    """What is no file and no folder but may be opened as one: a pipe, a socket, a device. None for all else."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


class Skipped:
    """The files below one folder that are passed over."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._folders = 0

    def add(self, path: str, kind: str | None = None) -> None:
        """Count a file, of the kind that its name and its first bytes say."""
        kind = kind or _kind(path)
        names = self._names.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(names) < _NAMED:
            names.append(Path(path).name)

    def add_folder(self) -> None:
        """Count a subfolder that is not looked into."""
        self._folders += 1

    def __str__(self) -> str:
        """``"3 files skipped: 2 DICOM (a.dcm, b.dcm), 1 .txt (notes.txt)"``; empty if nothing was passed over."""
        total = sum(self._counts.values())
        parts = []
        if total:
            alone = len(self._counts) == 1
            kinds = [
                f"{kind if alone else f'{self._counts[kind]} {kind}'} ({self._named(kind)})" for kind in self._counts
            ]
            parts.append(f"{total} {'file' if total == 1 else 'files'} skipped: {', '.join(kinds)}")
        if self._folders:
            parts.append(
                f"{self._folders} {'subfolder' if self._folders == 1 else 'subfolders'} skipped (see --recursive)"
            )
        return "; ".join(parts)

    def _named(self, kind: str) -> str:
        names = ", ".join(map(printable, self._names[kind]))
        return f"{names}, …" if self._counts[kind] > _NAMED else names


def _kind(path: str) -> str:
    name = Path(path).name
    if found := special(path):
        return found
    for suffix, kind in _SUFFIXES.items():
        if name.lower().endswith(suffix):
            return kind
    if _is_dicom(path):
        return "DICOM"
    if name.startswith("."):
        return "hidden"
    return printable(Path(name).suffix) or "no suffix"


def _is_dicom(path: str) -> bool:
    """Whether a file says so: scanners write names without a suffix (DICOM part 10, section 7.1)."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
