"""Git LFS pointers are recognized, and the error message names the command that fetches the file."""

from __future__ import annotations

import shutil

import pytest

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import IntegrityError
from mri_edge.storage.lfs import is_lfs_pointer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 59000000\n"


@pytest.mark.parametrize(
    "head", [POINTER, POINTER[:32], b"version https://hawser.github.com/spec/v1\noid sha256:"], ids=repr
)
def test_pointers_are_recognized(head: bytes) -> None:
    assert is_lfs_pointer(head)


@pytest.mark.parametrize(
    "head",
    [b"", b"version 1.0", b"version 2", b" " + POINTER, b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"],
    ids=repr,
)
def test_other_files_are_not_pointers(head: bytes) -> None:
    assert not is_lfs_pointer(head)


def test_opening_a_bundle_with_a_pointer_for_its_model_names_the_command_to_run(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(POINTER)
    with pytest.raises(IntegrityError, match=r"Git LFS pointer, not the file\. Run 'git lfs pull'"):
        Bundle.open(folder)
