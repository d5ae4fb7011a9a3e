"""What Git LFS leaves in the place of a file is recognised, and the command that fetches the file is named."""

from __future__ import annotations

import shutil

import pytest

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import IntegrityError
from mri_edge.storage.lfs import is_lfs_pointer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 59000000\n"


def test_a_pointer_is_told_from_other_files():
    assert is_lfs_pointer(POINTER.encode())
    assert not is_lfs_pointer(b"")
    assert not is_lfs_pointer(b"\x89HDF\r\n\x1a\n")
    assert not is_lfs_pointer(b"version 2")


def test_a_bundle_whose_model_is_a_pointer_says_so(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "model.onnx").write_text(POINTER, encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"Git LFS pointer, not the file\. Run 'git lfs pull'"):
        Bundle.open(folder)
