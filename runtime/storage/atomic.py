"""Files written whole or not at all: a temporary neighbour, then one rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import DISK_ERRORS, OutputError

from .staging import locked_temp_folder

_CHUNK = 4 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(lines: Iterable[str]) -> str:
    """SHA-256 over lines of text, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _neighbour(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{os.urandom(4).hex()}")


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Write ``content`` (text as UTF-8) so that ``path`` holds all of it or stays as it was.

    A link is followed. A device or pipe (``/dev/stdout``) is written as it is.

    Raises
    ------
    OutputError
        The folder is missing, read-only or full.
    """
    data = content.encode() if isinstance(content, str) else content
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file beside ``path`` that takes its place, on disk, when the block ends well.

    If the block raises, ``path`` stays as it was. A link is followed.

    Raises
    ------
    OutputError
        The folder is missing, read-only or full. An OSError of the block counts as that.
    """
    path = Path(os.path.realpath(path))
    temporary = _neighbour(path, "new")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """See that names made or renamed in a folder outlast a power cut, where the system can."""
    with suppress(OSError):  # Windows opens no folders, and some network shares do not sync them
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_move(source: Path, target: Path) -> None:
    """Move a file, to another file system as well: ``target`` is all of it or not there. It replaces a file.

    Between two file systems the copy is complete and on disk before the source is removed.

    Raises
    ------
    OutputError
        The target's folder is missing, read-only or full, or the source's folder lets nothing go.
    """
    temporary = _neighbour(target, "new")
    try:
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            before = source.stat()
            shutil.copyfile(source, temporary)
            with suppress(OSError):  # some network shares keep no times
                shutil.copystat(source, temporary)
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            after = source.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise OSError(errno.EBUSY, "it changed while it was copied") from error
            os.replace(temporary, target)
            sync_folder(target.parent)
            source.unlink()
    except OSError as error:
        raise OutputError(
            f"{source}: cannot be moved to {target} ({error.strerror})", "Both folders must be writable, with space"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the half-written files that a kill left in a folder which nobody else is writing to."""
    for path in folder.glob(".*.new-????????"):
        with suppress(OSError):
            path.unlink()


def discard_stdout() -> None:
    """Let go of what standard output, on a full disk, still holds: Python would try again on its way out, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def make_folder(path: Path) -> None:
    """Make a folder for results, and those above it; call it before long work. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot make the folder ({error.strerror})", "Name another output folder") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` that takes its place when the block ends well.

    If the block raises (Ctrl-C included) the new folder is removed and what stood at
    ``path`` is untouched. What a killed program left of an earlier attempt is removed first. The new one
    is on disk before it takes the place. An existing folder is exchanged in one step where the system can
    (Linux ``renameat2``), so that a reader sees the old one or the new one. A link is followed.

    Raises
    ------
    OutputError
        The folder beside ``path`` cannot be created or written, or ``path`` is a file. Errors of
        the block that are about other things than writing here pass through.
    """
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isdir(path):
        raise OutputError(f"{path}: is a file, not a folder", "Name another output folder")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What it removes at the end is the half-made folder, or the old one after an exchange.
            staging = stack.enter_context(locked_temp_folder(path.parent, f".{path.name}.new-"))
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            yield staging
        except OSError as error:
            if _is_about(error, staging):
                raise _cannot_write(path, error) from error
            raise
        try:
            _sync_all(staging)
            _put_in_place(staging, path)
        except OSError as error:
            raise _cannot_write(path, error) from error


def _sync_all(folder: Path) -> None:
    """See that a folder's files and their names outlast a power cut."""
    for here, _, names in os.walk(folder):
        for path in (Path(here, name) for name in names):
            if path.is_symlink():
                continue
            with open(path, "rb" if os.name == "posix" else "r+b") as file:  # Windows syncs what may be written
                os.fsync(file.fileno())
        sync_folder(Path(here))


def _put_in_place(staging: Path, path: Path) -> None:
    """Swap two folders: the old one, if there is any, stands at ``staging`` afterwards."""
    if not os.path.exists(path):
        os.rename(staging, path)
    elif not _exchange(staging, path):
        old = _neighbour(path, "old")
        os.rename(path, old)
        try:
            os.rename(staging, path)
        except BaseException:
            os.rename(old, path)
            raise
        os.rename(old, staging)
    sync_folder(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    done: int = renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), ctypes.c_uint(rename_exchange))
    return done == 0


def _is_about(error: OSError, folder: Path) -> bool:
    """True if writing in ``folder`` failed: its files are named, or the disk is full or failing (no name then)."""
    named = {str(name) for name in (error.filename, error.filename2) if name is not None}
    return any(name.startswith(str(folder)) for name in named) or error.errno in DISK_ERRORS


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(f"{path}: cannot write ({reason})", "Name a folder that you may write to, on a disk with space")
