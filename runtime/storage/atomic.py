"""Write files and folders atomically: into a temporary neighbor, which is then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import DISK_ERRORS, OutputError

from .staging import locked_temp_folder

_CHUNK = 4 << 20
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h


def _nothing() -> None:
    pass


def sha256_of(path: Path, beat: Callable[[], None] = _nothing) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits. ``beat`` is called often, and may raise to end it."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            beat()
    return digest.hexdigest()


def fingerprint(lines: Iterable[str]) -> str:
    """Return the SHA-256 over lines of text as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _temporary_neighbor(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{os.urandom(4).hex()}")


def atomic_write(path: Path, content: str | bytes | memoryview) -> None:
    """Write ``content`` (text as UTF-8) to ``path``, or leave ``path`` unchanged if that fails.

    Links are followed. Devices and pipes (``/dev/stdout``) are written directly.

    Raises
    ------
    OutputError
        The folder does not exist, is read-only or full.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_device_or_pipe(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    with atomic_file(path) as file:
        file.write(data)


def check_can_write(path: Path) -> None:
    """Raise the OutputError of ``atomic_write`` if it could not write ``path`` now. Call it before long work."""
    if _is_device_or_pipe(path):
        return
    temporary = _temporary_neighbor(Path(os.path.realpath(path)), "new")
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _is_device_or_pipe(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new binary file that replaces ``path`` when the block ends without an error.

    The new file is synced to disk first. If the block raises, ``path`` stays unchanged. Links are followed.

    Raises
    ------
    OutputError
        The folder does not exist, is read-only or full, or ``path`` is a device, a pipe or a socket, which a file would
        replace. An OSError in the block is reported in the same way.
    """
    path = Path(os.path.realpath(path))
    if _is_device_or_pipe(path):
        raise OutputError(f"{path}: is not a file", "Name a new file, or one to replace")
    temporary = _temporary_neighbor(path, "new")
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
    """Sync a folder, so that new and renamed entries survive a power cut where the system supports that."""
    with suppress(OSError):  # Windows cannot open folders, and some network shares cannot sync them
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def atomic_move(source: Path, target: Path, *, name: Path | None = None, beat: Callable[[], None] = _nothing) -> None:
    """Move a file, also to another file system. ``target`` is replaced by the complete file or stays unchanged.

    Between file systems, the copy is synced to disk before the source is removed. ``beat`` is called often during the
    copy. Messages call the source ``name``.

    Raises
    ------
    OutputError
        The target's folder does not exist, is read-only or full, or the source's folder is read-only.
    """
    temporary = _temporary_neighbor(target, "new")
    try:
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            import shutil  # with five compression libraries, which ``predict`` does not need

            before = source.stat()
            _copy(source, temporary, beat)
            with suppress(OSError):  # some network shares do not store times
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
            f"{name or source}: cannot be moved to {target} ({error.strerror})",
            "Both folders must be writable, with free space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _copy(source: Path, target: Path, beat: Callable[[], None]) -> None:
    with open(source, "rb", buffering=0) as original, open(target, "xb") as copy:
        while piece := original.read(_CHUNK):
            copy.write(piece)
            beat()


def clear_leftovers(folder: Path) -> None:
    """Remove files that a killed program left half-written. Call it only while no other program writes there."""
    for path in folder.glob(".*.new-????????"):
        with suppress(OSError):
            path.unlink()


def discard_stdout() -> None:
    """Discard buffered standard output, which Python would otherwise write at exit and fail again on a full disk."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def make_folder(path: Path) -> None:
    """Make a folder for results, and its parents. Call it before long work. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot make the folder ({error.strerror})", "Name another output folder") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``path`` when the block ends without an error.

    If the block raises (Ctrl-C included), the new folder is removed and ``path`` stays unchanged. Leftovers of killed
    programs are removed first. The new folder is synced to disk before it replaces the old one. On Linux the two are
    exchanged in one step, so that a reader sees either the old or the new one. Links are followed.

    Raises
    ------
    OutputError
        The new folder cannot be created or written, or ``path`` is a file. Errors in the block that do not concern
        the new folder are raised unchanged.
    """
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isdir(path):
        raise OutputError(f"{path}: is a file, not a folder", "Name another output folder")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # On exit this removes the unfinished folder or, after the exchange, the old one.
            staging = stack.enter_context(locked_temp_folder(path.parent, f".{path.name}.new-"))
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            yield staging
        except OSError as error:
            if _concerns(error, staging):
                raise _cannot_write(path, error) from error
            raise
        try:
            _sync_all(staging)
            _put_in_place(staging, path)
        except OSError as error:
            raise _cannot_write(path, error) from error


def _sync_all(folder: Path) -> None:
    """Sync all files and names in a folder, so that they survive a power cut."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.is_symlink():
                continue
            with open(path, "rb" if os.name == "posix" else "r+b") as file:  # Windows only syncs writable files
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def _put_in_place(staging: Path, path: Path) -> None:
    """Rename ``staging`` to ``path``. A folder that was at ``path`` is at ``staging`` afterwards."""
    if not os.path.exists(path):
        os.rename(staging, path)
    elif not exchange(staging, path):
        old = _temporary_neighbor(path, "old")
        os.rename(path, old)
        try:
            os.rename(staging, path)
        except BaseException:
            os.rename(old, path)
            raise
        os.rename(old, staging)
    sync_folder(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step.

    Two renames are not enough: between them, a reader finds no folder under the name, and a kill or a power cut leaves
    none there. Returns False if the system or the file system cannot do it.
    """
    return _renameat2(first, second, _RENAME_EXCHANGE)


def rename_to_free_name(source: Path, target: Path) -> bool:
    """Rename a file unless ``target`` exists. Returns whether it was renamed. Raises OSError."""
    if _renameat2(source, target, _RENAME_NOREPLACE):
        return True
    if os.path.lexists(target):
        return False
    # This system or file system (macOS, NFS) cannot do it in one step.
    os.rename(source, target)
    return True


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Call ``renameat2`` of Linux, which Python does not offer (tested with glibc 2.36). Returns whether it worked."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_fdcwd = -100  # linux/fcntl.h
    status: int = renameat2(at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), ctypes.c_uint(flags))
    return status == 0


def _concerns(error: OSError, folder: Path) -> bool:
    """Whether an error concerns ``folder``: it names a file there, or the disk is full or failing (names no file)."""
    named = {str(name) for name in (error.filename, error.filename2) if name is not None}
    return any(name.startswith(str(folder)) for name in named) or error.errno in DISK_ERRORS


def _cannot_write(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(f"{path}: cannot write ({reason})", "Name a folder that you may write to, on a disk with space")
