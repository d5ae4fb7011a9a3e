"""Where a watched folder's scans and results go: ``results/``, ``heatmaps/``, ``done/``, ``failed/``.

Nothing there is ever written over by something else: a scan whose name is taken by another content is
kept, with its result, under a name that holds its hash.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..files import clear_leftovers, make_folder, move_whole, sha256_of, sync_folder, write_whole
from ..prediction import as_json

Record = dict[str, Any]

_FOLDERS = ("results", "heatmaps", "done", "failed")
_LONGEST = 200  # bytes of a name; file systems take 255, and a file in the making has 20 more than its scan


class Outbox:
    """The output folder of a watch; for one program at a time (see ``lock``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.heatmaps, self.done, self.failed = (folder / name for name in _FOLDERS)

    def make(self) -> None:
        """Make the folders. Raises OutputError."""
        for name in _FOLDERS:
            make_folder(self.folder / name)

    def clear(self) -> None:
        """Remove what a kill left half-written; only while nobody else works here."""
        for name in _FOLDERS:
            clear_leftovers(self.folder / name)

    def place(self, name: str, sha256: str) -> tuple[str, Record | None]:
        """The name that a scan and its result are kept under, and the result if it is there already.

        Raises
        ------
        InputError
            Both names that it could have are taken by other things.
        OutputError
            What is there cannot be read now, so that nobody knows whether the scan has its result.
        """
        hashed = hashed_name(name, sha256)
        for kept in (hashed,) if is_too_long(name) else (name, hashed):
            record = self._read(kept)
            ours = record is None or record.get("sha256") == sha256
            if ours and all(_same_or_absent(folder / kept, sha256) for folder in (self.done, self.failed)):
                return kept, record
        raise InputError(
            f"{name}: {self.results / hashed}.json or its scan is in the way", "Put that file elsewhere; this one waits"
        )

    def write(self, kept: str, record: Record) -> None:
        """Write a result, whole and on disk when this returns. Raises OutputError."""
        write_whole(self.results / f"{kept}.json", as_json(record, indent=2) + "\n")
        sync_folder(self.results)

    def write_heatmap(self, kept: str, picture: bytes) -> None:
        """Write a heatmap. Raises OutputError."""
        write_whole(self.heatmaps / f"{kept}.png", picture)

    def move(self, scan: Path, kept: str, *, failed: bool) -> None:
        """Move a scan whose result is written to ``done/`` or ``failed/``. Raises OutputError."""
        move_whole(scan, (self.failed if failed else self.done) / kept)

    def _read(self, kept: str) -> Record | None:
        """The result of that name; None if there is none, empty if it is none of ours."""
        path = self.results / f"{kept}.json"
        if os.path.isdir(path):
            return {}
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path}: cannot read ({error.strerror})") from error
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}


def is_too_long(name: str) -> bool:
    """Whether a scan's name leaves no room for what is added to it."""
    return len(os.fsencode(name)) > _LONGEST


def hashed_name(name: str, sha256: str) -> str:
    """A scan's name with the beginning of a hash in it, cut to a length that leaves room: ``a.0123456789ab.png``."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return f"{_cut(stem, _LONGEST - 13 - len(os.fsencode(suffix)))}.{sha256[:12]}{suffix}"


def _same_or_absent(path: Path, sha256: str) -> bool:
    if not os.path.lexists(path):
        return True
    try:
        return path.is_file() and sha256_of(path) == sha256
    except OSError as error:
        raise OutputError(f"{path}: cannot read ({error.strerror})") from error


def _cut(text: str, size: int) -> str:
    """The beginning of a name, of at most ``size`` bytes as the file system counts them."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text
