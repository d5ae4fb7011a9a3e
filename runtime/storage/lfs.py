"""Detect Git LFS pointers: the small text files that replace models and scans until ``git lfs pull`` is run."""

from __future__ import annotations

HINT = "Run 'git lfs pull' in the clone from which it was copied"

# "version https://git-lfs.github.com/spec/v1"; the first releases used the host hawser.github.com.
_BEGINNINGS = (b"version https://git-lfs.", b"version https://hawser.")


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file is a Git LFS pointer, from ``head``, its first 32 bytes or more."""
    return head.startswith(_BEGINNINGS)
