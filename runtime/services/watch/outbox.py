"""Manage the output folder of a watch: ``results/``, ``heatmaps/``, ``done/`` and ``failed/``.

Nothing in it is overwritten by another scan: if a scan's name is taken by a file with other content, the scan and its
result are kept under a name that contains its hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mri_edge.errors import InputError, OutputError
from mri_edge.inference.prediction import as_json, hashed_name, is_too_long
from mri_edge.storage.atomic import atomic_move, atomic_write, clear_leftovers, make_folder, sha256_of, sync_folder

Record = dict[str, Any]

MAX_BYTES = 10_000_000_000
"""Size of the largest file that is a scan: of a DICOM object, readers take at most 8 GiB of pixels."""

_FOLDERS = ("results", "heatmaps", "done", "failed")


class Outbox:
    """The output folder of a watch. Only one program at a time may use it (see ``storage.lock``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results, self.heatmaps, self.done, self.failed = (folder / name for name in _FOLDERS)

    def make(self) -> None:
        """Create the folders. Raises OutputError."""
        for name in _FOLDERS:
            make_folder(self.folder / name)
        real = Path(os.path.realpath(self.folder))
        self._mount_point = next(path for path in (real, *real.parents) if os.path.ismount(path))

    def was_emptied(self) -> bool:
        """Whether folders that were made are missing although their disk, or another in its place, is mounted.

        While no disk is mounted there, they must not be made again: that would be on the disk below.
        """
        is_missing = not all(os.path.lexists(self.folder / name) for name in _FOLDERS)
        return is_missing and os.path.ismount(self._mount_point)

    def clear(self) -> None:
        """Remove files that a kill left half-written. Call it only while no other program uses the folder."""
        for name in _FOLDERS:
            clear_leftovers(self.folder / name)

    def place(self, name: str, sha256: str, beat: Callable[[], None] = lambda: None) -> tuple[str, Record | None]:
        """Return the name under which a scan and its result are kept, and the result if there is one already.

        ``beat`` is called often while files are read.

        Raises
        ------
        InputError
            Both possible names are taken by other files.
        OutputError
            A file in the folder cannot be read now, so it is unknown whether the scan has its result.
        """
        for kept in _names(name, sha256):
            record = self._read(kept)
            ours = record is None or record.get("sha256") == sha256
            if ours and all(_same_or_absent(folder / kept, sha256, beat) for folder in (self.done, self.failed)):
                return kept, record
        raise self._blocked(name, sha256)

    def place_result(self, name: str, sha256: str) -> str:
        """Return the name under which the result of one frame is kept. Errors as for ``place``."""
        for kept in _names(name, sha256):
            record = self._read(kept)
            if record is None or record.get("sha256") == sha256:
                return kept
        raise self._blocked(name, sha256)

    def write(self, kept: str, record: Record) -> None:
        """Write a result atomically; it is on disk when this returns. Raises OutputError."""
        atomic_write(self.results / f"{kept}.json", as_json(record, indent=2) + "\n")
        sync_folder(self.results)

    def write_heatmap(self, kept: str, picture: bytes) -> None:
        """Write a heatmap. Raises OutputError."""
        atomic_write(self.heatmaps / f"{kept}.png", picture)

    def move(
        self,
        scan: Path,
        kept: str,
        *,
        failed: bool,
        name: Path | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Move a scan that has its result to ``done/`` or ``failed/``. For the rest see ``atomic_move``."""
        atomic_move(scan, (self.failed if failed else self.done) / kept, name=name, beat=beat)

    def _read(self, kept: str) -> Record | None:
        """Return the result of that name; None if there is none, empty if the file is not a result of watch."""
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

    def _blocked(self, name: str, sha256: str) -> InputError:
        return InputError(
            f"{name}: {self.results / hashed_name(name, sha256)}.json or its scan is in the way",
            "Move that file away; the scan waits until then",
        )


def _names(name: str, sha256: str) -> tuple[str, ...]:
    hashed = hashed_name(name, sha256)
    return (hashed,) if is_too_long(name) else (name, hashed)


def _same_or_absent(path: Path, sha256: str, beat: Callable[[], None]) -> bool:
    if not os.path.lexists(path):
        return True
    try:
        return path.is_file() and path.stat().st_size <= MAX_BYTES and sha256_of(path, beat) == sha256
    except OSError as error:
        raise OutputError(f"{path}: cannot read ({error.strerror})") from error
