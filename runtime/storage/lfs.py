"""Detect Git LFS pointers: small text files in place of models and scans in a clone without ``git lfs pull``."""

from __future__ import annotations

HINT = "Run 'git lfs pull' in the clone that it comes from"

# "version https://git-lfs.github.com/spec/v1"; the first releases used the host hawser.github.com.
_BEGINNINGS = (b"version https://git-lfs.", b"version https://hawser.")


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file is a Git LFS pointer, from ``head``, its first 32 bytes or more."""
    return head.startswith(_BEGINNINGS)
