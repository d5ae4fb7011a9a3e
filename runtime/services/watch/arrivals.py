"""Find the scans of a folder that have arrived completely: those that have not changed for some seconds."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mri_edge.errors import OutputError
from mri_edge.inference.prediction import hashed_name, is_too_long
from mri_edge.scans import readers
from mri_edge.scans.readers import TEMPORARY
from mri_edge.storage.atomic import rename_to_free_name

_CLAIM = re.compile(r"\.(.+)\.claim-[0-9a-f]{8}", re.DOTALL)

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

        Hidden files and those with a temporary name are ignored. Only one program at a time may call it, because it
        gives scans their names back; see ``claimed``.

        Raises
        ------
        OutputError
            The folder cannot be listed: scans cannot be moved out of it.
        """
        paths = self.paths()
        if claims := [(path, match[1]) for path in paths if (match := _CLAIM.fullmatch(path.name))]:
            for path, name in claims:
                _put_back(path, self.folder / name)
            paths = self.paths()
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
                # Path.is_dir raises an error for a link into a folder that may not be entered; this returns False.
                if not os.path.isdir(path) or os.path.islink(path):
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

    def paths(self) -> list[Path]:
        """Return everything in the folder. Raises OutputError if it cannot be listed."""
        try:
            return list(self.folder.iterdir())
        except OSError as error:
            raise OutputError(
                f"{self.folder}: cannot list the folder ({error.strerror})", "Check that the disk or share is mounted"
            ) from error

    def has(self, name: str) -> bool:
        """Whether the last look found a file of that name."""
        return name in self._seen or name in self.unrecognized

    def postpone(self, arrival: Arrival, wait_s: float) -> None:
        """Return a scan again only if it has not changed for ``wait_s`` seconds since it was first seen."""
        self._seen[arrival.path.name].wait_s = wait_s
        self.pending += 1


@contextmanager
def claimed(arrival: Arrival, sha256: str) -> Iterator[Path | None]:
    """Rename a scan to a hidden name and yield that path; None if the scan has changed or is gone.

    A sender may replace a scan at any time. Whoever checks it and then moves it by its name may move or remove a later
    scan, but no sender uses the hidden name. If the file is still there when the block ends, it gets its name back.
    After a kill, or while a later scan has the name, ``Arrivals.look`` does this.

    Raises
    ------
    OutputError
        The scan cannot be renamed.
    """
    scan = arrival.path
    # A name that has no room for a suffix is shortened as for the result, so that after a kill the result is found.
    name = hashed_name(scan.name, sha256) if is_too_long(scan.name) else scan.name
    claim = scan.with_name(f".{name}.claim-{os.urandom(4).hex()}")
    try:
        os.rename(scan, claim)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise OutputError(f"{scan}: cannot be moved ({error.strerror})", "Its folder must be writable") from error
    try:
        yield claim if stamp_of(claim) == arrival.stamp else None
    finally:
        if os.path.lexists(claim):
            _put_back(claim, scan)


def _put_back(claim: Path, scan: Path) -> None:
    with suppress(OSError):  # ``look`` tries it again
        rename_to_free_name(claim, scan)
