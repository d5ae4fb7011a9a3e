"""A Git LFS pointer is told from files that merely resemble one."""

from __future__ import annotations

import pytest

from mri_edge.storage.lfs import is_lfs_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 17\n"


@pytest.mark.parametrize(
    "head", [POINTER, POINTER[:32], b"version https://hawser.github.com/spec/v1\noid sha256:"], ids=repr
)
def test_pointers_are_recognised(head: bytes) -> None:
    assert is_lfs_pointer(head)


@pytest.mark.parametrize("head", [b"", b"version 1.0", b" " + POINTER, b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"], ids=repr)
def test_other_files_are_not_pointers(head: bytes) -> None:
    assert not is_lfs_pointer(head)
