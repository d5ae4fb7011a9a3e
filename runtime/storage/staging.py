"""Temporary folders, locked while their program runs, so that a later run can remove those of killed programs."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mri_edge.errors import OutputError, UsageError

from .lock import lock


@contextmanager
def locked_temp_folder(parent: Path, prefix: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Make and lock the folder ``prefix`` plus 8 random digits in ``parent``; remove it when the block ends.

    Folders with the same prefix that killed programs left behind are removed first, except on systems that cannot lock
    folders.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
    import shutil  # as in ``atomic``

    remove_abandoned(parent, prefix)
    folder, handle = _make(parent, prefix, mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove folders of ``locked_temp_folder`` with ``prefix`` in ``parent`` that no running program has locked."""
    # Compare names as text, because a bundle may be called "model[1]".
    pattern = re.compile(re.escape(prefix) + "[0-9a-f]{8}")
    try:
        names = [name for name in os.listdir(parent) if pattern.fullmatch(name)]  # noqa: PTH208 (names alone)
    except OSError:
        return
    for folder in (parent / name for name in names):
        try:
            if folder.lstat().st_uid != os.geteuid():  # all users share the folder for temporary files
                continue
            handle = lock_folder(folder)
        except (OSError, AttributeError):  # locked, a link, or gone; or Windows
            continue
        if handle is not None:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed or the program ends; None if folders have no locks.

    Raises
    ------
    BlockingIOError
        A running program has locked it.
    OSError
        It does not exist, was removed meanwhile, or is not a folder.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not lock(handle):
            os.close(handle)
            return None
        if not os.path.samestat(os.fstat(handle), folder.lstat()):
            raise FileNotFoundError(errno.ENOENT, "removed while it was locked", str(folder))
    except OSError:
        os.close(handle)
        raise
    return handle


@contextmanager
def locked_folder(folder: Path, taken: UsageError) -> Iterator[None]:
    """Lock a folder while the block runs, if folders have locks here.

    Raises
    ------
    UsageError
        ``taken``: a running program has locked the folder, or it is gone.
    OutputError
        The folder cannot be opened.
    """
    try:
        handle = lock_folder(folder)
    except (BlockingIOError, FileNotFoundError) as error:
        raise taken from error
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot lock the folder ({error.strerror})", "Use a folder that you may read and write"
        ) from error
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def temporary_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder for this user only, by default among temporary files, and remove it when the block ends.

    Folders that killed programs with the same purpose left behind are removed first.

    Raises
    ------
    OutputError
        No temporary folder can be made.
    """
    import tempfile

    with ExitStack() as stack:
        try:
            parent = parent or Path(tempfile.gettempdir())
            folder = stack.enter_context(locked_temp_folder(parent, f"mri-edge-{purpose}-", mode=0o700))
        except OSError as error:
            raise OutputError(
                f"no temporary folder can be made ({error.strerror})",
                "Set TMPDIR to a folder that you may write to, on a disk with space",
            ) from error
        yield folder


@contextmanager
def use_temporary_folder(purpose: str) -> Iterator[None]:
    """Put the temporary files of this program and its libraries into one folder, and remove it at the end.

    Folders that killed programs with the same purpose left behind are removed first.

    Raises
    ------
    OutputError
        No temporary folder can be made.
    """
    import tempfile

    with temporary_folder(purpose) as folder:
        before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before[0]
            if before[1] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[1]


def _make(parent: Path, prefix: str, mode: int) -> tuple[Path, int | None]:
    while True:
        folder = parent / f"{prefix}{os.urandom(4).hex()}"
        folder.mkdir(mode)
        try:
            return folder, lock_folder(folder)
        except (BlockingIOError, FileNotFoundError):
            # Another program took it for abandoned, and locked or removed it first.
            continue
