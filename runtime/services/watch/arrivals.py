"""Which scans of a folder have arrived whole: those that have not changed between two looks."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mri_edge.errors import OutputError
from mri_edge.scans.readers.picture import SUFFIXES

# What copying programs call a file while they write it: rsync, browsers, Windows, editors.
TEMPORARY = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".swp", "~")

Stamp = tuple[int, int, int]  # bytes, nanoseconds of the last change, inode


def stamp_of(path: Path) -> Stamp | None:
    """What changes when a file does; None if it is gone or is no plain file."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None


@dataclass(frozen=True)
class Arrival:
    """A scan that has been still for ``still_s`` seconds, as of the look that found it."""

    path: Path
    stamp: Stamp
    still_s: float


@dataclass
class _Seen:
    stamp: Stamp
    since: float
    wait_s: float


class Arrivals:
    """Looks into a folder, not into its subfolders. Remembers only what is there, so memory stays bounded.

    Parameters
    ----------
    settle_s
        A scan counts as whole when size, time and inode were the same for this long. 0: at first sight.
    """

    def __init__(self, folder: Path, settle_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.settle_s = settle_s
        self.pending = 0
        self.strangers: set[str] = set()
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def look(self) -> list[Arrival]:
        """The scans that are whole, oldest first; ``pending`` then counts the others, ``strangers`` names no-scans.

        Names that begin with a dot or end like a temporary one are passed over.

        Raises
        ------
        OutputError
            The folder cannot be listed: scans cannot be moved out of it.
        """
        try:
            paths = list(self.folder.iterdir())
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot list the folder ({error.strerror})", "Is the disk or share there?"
            ) from error
        now = self._clock()
        seen: dict[str, _Seen] = {}
        strangers = set()
        whole = []
        for path in paths:
            name = path.name
            if name.startswith(".") or name.lower().endswith(TEMPORARY):
                continue
            stamp = stamp_of(path)
            if not name.lower().endswith(SUFFIXES) or stamp is None:
                if not path.is_dir() or path.is_symlink():
                    strangers.add(name)
                continue
            before = self._seen.get(name)
            seen[name] = one = (
                before if before and before.stamp == stamp else _Seen(stamp, since=now, wait_s=self.settle_s)
            )
            if now - one.since >= one.wait_s:
                whole.append(Arrival(path, stamp, now - one.since))
        self._seen = seen
        self.strangers = strangers
        self.pending = len(seen) - len(whole)
        return sorted(whole, key=lambda one: (one.stamp[1], one.path.name))

    def has(self, name: str) -> bool:
        """Whether the last look found a file of that name."""
        return name in self._seen or name in self.strangers

    def postpone(self, arrival: Arrival, wait_s: float) -> None:
        """Offer a scan again when it has been still for ``wait_s`` seconds, counted from its first sight."""
        self._seen[arrival.path.name].wait_s = wait_s
        self.pending += 1
