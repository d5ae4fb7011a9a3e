"""Where a watched folder's scans and results go: ``results/``, ``heatmaps/``, ``done/``, ``failed/``.

Nothing there is ever written over by something else: a scan whose name is taken by another content is
kept, with its result, under a name that holds its hash.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mri_edge.errors import InputError, OutputError
from mri_edge.inference.prediction import as_json
from mri_edge.storage.atomic import atomic_move, atomic_write, clear_leftovers, make_folder, sha256_of, sync_folder
from mri_edge.storage.names import hashed_name, is_too_long

Record = dict[str, Any]

_FOLDERS = ("results", "heatmaps", "done", "failed")


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
        atomic_write(self.results / f"{kept}.json", as_json(record, indent=2) + "\n")
        sync_folder(self.results)

    def write_heatmap(self, kept: str, picture: bytes) -> None:
        """Write a heatmap. Raises OutputError."""
        atomic_write(self.heatmaps / f"{kept}.png", picture)

    def move(self, scan: Path, kept: str, *, failed: bool) -> None:
        """Move a scan whose result is written to ``done/`` or ``failed/``. Raises OutputError."""
        atomic_move(scan, (self.failed if failed else self.done) / kept)

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


def _same_or_absent(path: Path, sha256: str) -> bool:
    if not os.path.lexists(path):
        return True
    try:
        return path.is_file() and sha256_of(path) == sha256
    except OSError as error:
        raise OutputError(f"{path}: cannot read ({error.strerror})") from error
