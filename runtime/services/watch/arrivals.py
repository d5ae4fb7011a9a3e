"""Find the scans of a folder that have arrived completely: those that have not changed for some seconds."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mri_edge.errors import OutputError
from mri_edge.scans import readers
from mri_edge.scans.readers import TEMPORARY

Stamp = tuple[int, int, int]  # bytes, nanoseconds of the last change, inode


def stamp_of(path: Path) -> Stamp | None:
    """Return a value that changes when the file does; None if it is gone or is not a plain file."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None


@dataclass(frozen=True)
class Arrival:
    """A scan that had not changed for ``unchanged_s`` seconds when it was found."""

    path: Path
    stamp: Stamp
    unchanged_s: float


@dataclass
class _Seen:
    """A file, the time when its present state was first seen, and whether a reader recognizes it."""

    stamp: Stamp
    is_scan: bool
    since: float
    wait_s: float


class Arrivals:
    """Looks for scans in a folder, but not in its subfolders. It only remembers existing files, to limit its memory.

    Parameters
    ----------
    settle_s
        A scan is complete if its size, time and inode have not changed for this long. 0: as soon as it is seen.

    Attributes
    ----------
    pending
        Number of scans that the last look found incomplete.
    unrecognized
        Names of the files that the last look found and that are not scans.
    """

    def __init__(self, folder: Path, settle_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.settle_s = settle_s
        self.pending = 0
        self.unrecognized: set[str] = set()
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def look(self) -> list[Arrival]:
        """Return the scans that are complete, oldest first, and update ``pending`` and ``unrecognized``.

        Hidden files and those with a temporary name are ignored.

        Raises
        ------
        OutputError
            The folder cannot be listed: scans cannot be moved out of it.
        """
        try:
            paths = list(self.folder.iterdir())
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot list the folder ({error.strerror})", "Check that the disk or share is mounted"
            ) from error
        now = self._clock()
        seen: dict[str, _Seen] = {}
        unrecognized = set()
        complete = []
        for path in paths:
            name = path.name
            if name.startswith(".") or name.lower().endswith(TEMPORARY):
                continue
            stamp = stamp_of(path)
            if stamp is None:
                if not path.is_dir() or path.is_symlink():
                    unrecognized.add(name)
                continue
            file = self._seen.get(name)
            if file is None or file.stamp != stamp:
                file = _Seen(stamp, readers.recognizes(path), since=now, wait_s=self.settle_s)
            seen[name] = file
            if not file.is_scan:
                unrecognized.add(name)
            elif now - file.since >= file.wait_s:
                complete.append(Arrival(path, stamp, now - file.since))
        self._seen = seen
        self.unrecognized = unrecognized
        self.pending = sum(file.is_scan for file in seen.values()) - len(complete)
        return sorted(complete, key=lambda arrival: (arrival.stamp[1], arrival.path.name))

    def has(self, name: str) -> bool:
        """Whether the last look found a file of that name."""
        return name in self._seen or name in self.unrecognized

    def postpone(self, arrival: Arrival, wait_s: float) -> None:
        """Return a scan again only if it has not changed for ``wait_s`` seconds since it was first seen."""
        self._seen[arrival.path.name].wait_s = wait_s
        self.pending += 1
