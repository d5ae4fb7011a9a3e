"""Folders of one running program: locked while it lives, so that the next run can tell and clear what a kill left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mri_edge.errors import OutputError


@contextmanager
def locked_temp_folder(parent: Path, prefix: str, *, mode: int = 0o777) -> Iterator[Path]:
    """Make the folder ``prefix`` and 8 random digits in ``parent``; it is locked, and removed when the block ends.

    Folders of the same prefix whose program was killed are removed first. A folder that a living program holds
    stays, and on systems that cannot lock folders nothing is removed.

    Raises
    ------
    OSError
        The folder cannot be made.
    """
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
    # Names are compared as text, not as a pattern: a bundle may be called "model[1]".
    pattern = re.compile(re.escape(prefix) + "[0-9a-f]{8}")
    try:
        names = [name for name in os.listdir(parent) if pattern.fullmatch(name)]  # noqa: PTH208 (names alone)
    except OSError:
        return
    for folder in (parent / name for name in names):
        try:
            if folder.lstat().st_uid != os.geteuid():  # the folder for temporary files is everybody's
                continue
            handle = lock_folder(folder)
        except (OSError, AttributeError):  # a living program holds it, it is a link or gone; or this is Windows
            continue
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned handle is closed or the program ends; ``None`` where folders have no locks.

    Raises
    ------
    BlockingIOError
        A living program holds it.
    OSError
        It is not there, no longer there, or no folder.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network shares
        os.close(handle)
        return None
    try:
        if os.path.samestat(os.fstat(handle), folder.lstat()):
            return handle
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    raise FileNotFoundError(errno.ENOENT, "removed while it was locked", str(folder))


@contextmanager
def use_temporary_folder(purpose: str) -> Iterator[None]:
    """Send the temporary files of this program, and of the libraries it uses, to a folder that goes when it ends.

    What a killed program of the same purpose left among the temporary files is removed.

    Raises
    ------
    OutputError
        No temporary folder can be made.
    """
    import tempfile

    with ExitStack() as stack:
        try:
            parent = Path(tempfile.gettempdir())
            folder = stack.enter_context(locked_temp_folder(parent, f"mri-edge-{purpose}-", mode=0o700))
        except OSError as error:
            raise OutputError(
                f"no temporary folder can be made ({error.strerror})", "Set TMPDIR to a folder that you may write to"
            ) from error
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
            # Between the two steps another program took it for abandoned and removed it.
            continue
