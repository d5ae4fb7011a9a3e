"""Count the files of a folder that are not scans, by kind, so that none is skipped silently."""

from __future__ import annotations

import stat
from pathlib import Path

from mri_edge.errors import printable

_NAMED = 3  # files of each kind that are named; the others are only counted
_KINDS = {
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".ima": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
}


def special(path: str) -> str | None:
    """Return "pipe", "socket" or "device" for what may be opened but is neither a file nor a folder, else None."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


class SkippedFiles:
    """The files and subfolders of one folder that were skipped."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._folders = 0

    def add(self, path: str, kind: str | None = None) -> None:
        """Count a file. Without ``kind`` its name and first bytes decide which kind it is."""
        kind = kind or _kind(path)
        names = self._names.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(names) < _NAMED:
            names.append(Path(path).name)

    def add_folder(self) -> None:
        """Count a subfolder that was not listed."""
        self._folders += 1

    def __str__(self) -> str:
        """``"3 files skipped: 2 DICOM (a.dcm, b.dcm), 1 .txt (notes.txt)"``; empty if nothing was skipped."""
        total = sum(self._counts.values())
        parts = []
        if total:
            only_kind = len(self._counts) == 1
            kinds = [
                f"{kind if only_kind else f'{count} {kind}'} ({self._names_of(kind)})"
                for kind, count in self._counts.items()
            ]
            parts.append(f"{total} {'file' if total == 1 else 'files'} skipped: {', '.join(kinds)}")
        if self._folders:
            parts.append(
                f"{self._folders} {'subfolder' if self._folders == 1 else 'subfolders'} skipped (see --recursive)"
            )
        return "; ".join(parts)

    def _names_of(self, kind: str) -> str:
        names = ", ".join(map(printable, self._names[kind]))
        return f"{names}, …" if self._counts[kind] > _NAMED else names


def _kind(path: str) -> str:
    name = Path(path).name
    if kind := special(path):
        return kind
    for suffix, kind in _KINDS.items():
        if name.lower().endswith(suffix):
            return kind
    if _is_dicom(path):
        return "DICOM"
    if name.startswith("."):
        return "hidden"
    return printable(Path(name).suffix) or "no suffix"


def _is_dicom(path: str) -> bool:
    """Whether the file begins as DICOM does (part 10, section 7.1); scanners write names without a suffix."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
