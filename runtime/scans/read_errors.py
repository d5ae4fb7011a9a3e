"""Errors of reading that concern the system and not the scan: they may be gone at the next attempt."""

from __future__ import annotations

import errno

from mri_edge.errors import InputError


def out_of_memory(name: str) -> InputError:
    """Report that there is no memory to prepare a scan. Raise it from the MemoryError, for ``is_transient``."""
    hint = "Free some memory and try again, or make the picture smaller"
    return InputError(f"{name}: cannot read (out of memory)", hint, code="out_of_memory")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error is about memory or disks at this moment and says nothing about the scan itself.

    Pillow's own OSErrors have no number. A damaged picture may point beyond the end of the file, which gives EINVAL.
    For a file that is gone (ENOENT) there is nothing to wait for.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL, errno.ENOENT)
    return isinstance(error, MemoryError)
