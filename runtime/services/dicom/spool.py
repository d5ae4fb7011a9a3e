"""Keep received instances on disk: durable before they are acknowledged, then sorted into series.

An instance is in one of these folders of the spool, and moves from one to the next by a rename::

    incoming/          received and acknowledged
    series/SERIES/     sorted by series, waiting for the rest of the series or for an answer
    done/SERIES/       the series has its answer
    conflicts/SERIES/  has the identifier of another instance, but other bytes
    failed/            its header cannot be read

Names are hashes of identifiers, because identifiers could be traced to a patient: ``INSTANCE-CONTENT.dcm``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mri_edge.errors import InputError, OutputError
from mri_edge.scans.files import is_transient
from mri_edge.scans.readers import dicom
from mri_edge.storage.atomic import make_folder, sync_folder

RESERVE = 256 << 20
"""Bytes of the disk that stay free for results: a new instance is refused when less would be left."""
PART = ".part"
_DIGITS = 32  # of the hashes in names: 128 bits
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_FOLDERS = ("incoming", "series", "done", "conflicts", "failed", "outbox", "sent")

Stored = Literal["stored", "duplicate"]


def short_hash(*texts: str) -> str:
    """Return a hash of some texts for a name: 32 hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


@dataclass
class OpenSeries:
    """A series that waits.

    Attributes
    ----------
    seen
        When its last instance came.
    names
        The names of its files by the hash of the instance.
    retry_at
        When to move it away again; 0 unless that failed.
    """

    seen: float
    names: dict[str, str] = field(default_factory=dict)
    retry_at: float = 0.0


class Spool:
    """The folder of a node.

    Parameters
    ----------
    report
        Called with a message about each instance that is not used.
    count
        Called with the outcome for each instance that is sorted: "new", "duplicate", "conflict" or "failed".
    """

    def __init__(
        self,
        folder: Path,
        *,
        report: Callable[[str], None] = lambda message: None,
        count: Callable[[str], None] = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.incoming, self.series, self.done, self.conflicts, self.failed, self.outbox, self.sent = (
            folder / name for name in _FOLDERS
        )
        self.open: dict[str, OpenSeries] = {}
        self._report = report
        self._count = count
        self._clock = clock

    def make(self) -> None:
        """Create the folders. Raises OutputError."""
        for name in _FOLDERS:
            make_folder(self.folder / name)

    def recover(self) -> None:
        """Remove what a kill left half-written, and find the series that wait. Call it while nobody else writes.

        Raises OutputError if a folder cannot be read, because the series in it would never be answered.
        """
        for path in self.incoming.glob(f".*{PART}"):  # never acknowledged
            with suppress(OSError):
                path.unlink()
        try:
            for folder in sorted(self.series.iterdir()):
                if folder.is_dir():
                    self.open[folder.name] = OpenSeries(self._clock(), _names_in(folder))
        except OSError as error:
            raise OutputError(
                f"{error.filename}: cannot be read ({error.strerror})", "Give it to the user that runs the node"
            ) from error

    def store(self, instance: str, syntax: str, meta: bytes, dataset: bytes) -> Stored:
        """Write an encoded data set; it is on disk when this returns. Any number of threads may call it.

        Parameters
        ----------
        instance, syntax
            Identifiers of the instance and of its transfer syntax.
        meta
            What comes before the data set in a file: preamble, prefix and file meta information.

        Raises
        ------
        OSError
            The disk is full or fails. Nothing is left of the instance.
        """
        content = hashlib.sha256(dataset)
        content.update(syntax.encode())
        path = self.incoming / f"{short_hash(instance)}-{content.hexdigest()[:_DIGITS]}.dcm"
        if path.exists():
            sync_folder(self.incoming)  # another thread may have renamed it just now
            return "duplicate"
        if shutil.disk_usage(self.folder).free < RESERVE + len(dataset):
            raise OSError(28, "the disk is nearly full")
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PART}")
        try:
            with open(temporary, "xb", buffering=0) as file:
                _write(file.fileno(), (meta, dataset))
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(self.incoming)
        return "stored"

    def sort(self, beat: Callable[[], None] = lambda: None) -> int:
        """Move received instances to their series, calling ``beat`` after each. Returns how many were moved.

        Raises
        ------
        OutputError
            Some could not be read or moved at this moment, and stay. All others were moved.
        """
        number = 0
        failure: OutputError | None = None
        try:
            names = list(_listed(self.incoming))
        except OSError as error:
            raise OutputError(f"{self.incoming}: cannot be read ({error.strerror})") from error
        for name in names:
            try:
                self._sort(name)
                number += 1
            except OSError as error:
                failure = failure or OutputError(
                    f"{self.incoming / name}: cannot be read or moved ({error.strerror})", "Free some space"
                )
            beat()
        if failure is not None:
            raise failure
        return number

    def close(self, key: str) -> None:
        """Move a series that has its answer away, together with what its folder in ``done/`` holds already.

        Raises
        ------
        OutputError
            The folder cannot be moved.
        """
        source, target = self.series / key, self.done / key
        try:
            if target.is_dir():  # moved this way round, the series stays whole if a kill comes in between
                for path in target.iterdir():
                    os.replace(path, source / path.name)
            os.rename(source, target)
        except OSError as error:
            raise OutputError(
                f"{source}: cannot be moved to {self.done} ({error.strerror})", f"Free some space, or remove {target}"
            ) from error
        sync_folder(self.done)
        self.open.pop(key, None)

    def forget_if_removed(self, key: str) -> bool:
        """Whether somebody removed the folder of a waiting series, which is then forgotten as if it had never come."""
        if (self.series / key).is_dir() or not self.series.is_dir():  # without the parent, the disk is not mounted
            return False
        self.open.pop(key, None)
        self._report(f"series {key}: its folder was removed. Send the series again if it is needed")
        return True

    def files(self, key: str) -> list[Path]:
        """Return the files of a waiting series in a fixed order."""
        return [self.series / key / name for name in sorted(self.open[key].names.values())]

    def _sort(self, name: str) -> None:
        path = self.incoming / name
        try:
            found = dicom.texts(str(path), {_STUDY, _SERIES})
        except Exception as error:
            if isinstance(error.__cause__, OSError) and is_transient(error.__cause__):
                raise error.__cause__ from error
            problem = error.problem.removeprefix(f"{path}: ") if isinstance(error, InputError) else fault(error)
            os.replace(path, self.failed / name)
            self._report(f"{self.failed / name}: {problem}")
            self._count("failed")
            return
        # Without the identifier of a series, an instance is a series of its own.
        key = short_hash(found.get(_STUDY, ""), found.get(_SERIES) or name)
        instance = name.partition("-")[0]
        series = self.open.get(key)
        if series is not None and self.forget_if_removed(key):
            series = None
        closed = self.done / key
        names = series.names if series is not None else _names_in(closed)
        other = names.get(instance)
        if other == name or (self.conflicts / key / name).exists():
            path.unlink()
            self._count("duplicate")
            return
        if other is not None:
            (self.conflicts / key).mkdir(exist_ok=True)
            os.replace(path, self.conflicts / key / name)
            self._report(
                f"series {key}: an instance was sent again with other content. The first one counts; the other is "
                f"{self.conflicts / key / name}"
            )
            self._count("conflict")
            return
        folder = self.series / key
        if series is None:
            if names:  # it has an answer already, which this instance changes
                os.rename(closed, folder)
            else:
                folder.mkdir(exist_ok=True)
            series = self.open[key] = OpenSeries(self._clock(), names)
        os.replace(path, folder / name)
        series.names[instance] = name
        series.seen = self._clock()
        self._count("new")


def digest_of(files: Sequence[Path]) -> str:
    """Return a hash over the files of a series. Their names contain the hashes of their contents."""
    return short_hash(*(path.name for path in files))


def fault(error: Exception) -> str:
    """Return a message about an error that is a fault of this program. Its text may quote an identifier."""
    *_, place = traceback.extract_tb(error.__traceback__)
    return (
        f"a fault of mri-edge ({type(error).__name__} in {Path(place.filename).name}:{place.lineno}). Please report it"
    )


def _names_in(folder: Path) -> dict[str, str]:
    """Return the names of the files of a series by the hash of the instance; empty if there is no such folder."""
    try:
        return {name.partition("-")[0]: name for name in _listed(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _listed(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".dcm") and not entry.name.startswith("."):
                yield entry.name


def _write(file: int, pieces: Sequence[bytes]) -> None:
    """Write all bytes; ``os.write`` may write fewer."""
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(file, view) :]
