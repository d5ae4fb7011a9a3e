"""Zip files that are bombs, lead out of their folder, or are damaged."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

pytest.importorskip("uvicorn")

from mri_edge.services.http.errors import RequestRefused
from mri_edge.services.http.limits import Limits
from mri_edge.services.http.scans.archives import entries

LIMITS = Limits(upload_bytes=1 << 20)


def unpacked(packed, limits=LIMITS):
    return {name: b"".join(pieces) for name, pieces in entries(io.BytesIO(packed), limits)}


def refusal(packed, limits=LIMITS):
    with pytest.raises(RequestRefused) as caught:
        unpacked(packed, limits)
    assert "\n" not in caught.value.message
    return caught.value.status, caught.value.reason


def with_attribute(name, attribute, value, content=b"x"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        info = zipfile.ZipInfo(name)
        setattr(info, attribute, value)
        archive.writestr(info, content)
    return packed.getvalue()


def test_files_come_sorted_without_folders_and_hidden_files(zip_of):
    packed = zip_of([("b/2", b"two"), ("a", b"one"), ("b/", b""), ("__MACOSX/b/2", b"?"), ("b/.DS_Store", b"?")])
    assert list(unpacked(packed).items()) == [("a", b"one"), ("b/2", b"two")]


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "C:/a", "\\\\host\\a", "a/.."])
def test_names_that_lead_out_are_refused(name):
    assert refusal(with_attribute("x", "filename", name)) == (400, "zip_path")


@pytest.mark.parametrize("name", ["", ".", "./."])
def test_a_file_without_a_name_is_refused(name):
    assert refusal(with_attribute("x", "filename", name)) == (400, "zip_path")


def test_links_are_refused():
    assert refusal(with_attribute("link", "external_attr", 0o120777 << 16, b"/etc/passwd")) == (400, "zip_path")


def test_a_bomb_is_refused_by_its_declared_size(zip_of):
    assert refusal(zip_of([("zeros", bytes(8 << 20))])) == (413, "zip_bomb")


def test_a_bomb_is_refused_by_its_ratio(zip_of):
    assert refusal(zip_of([("zeros", bytes(3 << 20))])) == (413, "zip_bomb")
    assert unpacked(zip_of([("zeros", bytes(900_000))]))["zeros"] == bytes(900_000)  # a small one harms nobody


def test_many_small_bombs_are_refused_together(zip_of):
    assert refusal(zip_of([(str(number), bytes(60_000)) for number in range(60)])) == (413, "zip_bomb")


def test_a_member_that_lies_about_its_size_is_damaged(zip_of):
    packed = bytearray(zip_of([("zeros", bytes(1000))]))
    directory = packed.rindex(b"PK\x01\x02")
    packed[directory + 24 : directory + 28] = struct.pack("<I", 10)  # uncompressed size
    assert refusal(bytes(packed)) == (400, "bad_zip")


def test_too_many_files_are_refused(monkeypatch, zip_of):
    monkeypatch.setattr("mri_edge.services.http.scans.archives.MAX_FILES", 3)
    assert refusal(zip_of([(str(number), b"") for number in range(4)])) == (413, "too_many_files")


def test_a_huge_directory_is_refused_before_it_is_read(monkeypatch, zip_of):
    packed = bytearray(zip_of([("a", b"")]))
    monkeypatch.setattr("zipfile.ZipFile", None)  # it must not be opened
    packed[-10:-6] = struct.pack("<I", 9 << 20)  # size of the central directory
    assert refusal(bytes(packed)) == (413, "too_many_files")


def test_the_64_bit_format_is_refused(zip_of):
    packed = zip_of([("a", b"")])
    locator = b"PK\x06\x07" + bytes(16)
    assert refusal(packed[:-22] + locator + packed[-22:]) == (413, "too_many_files")


def test_encryption_and_rare_methods_are_refused(zip_of):
    packed = bytearray(zip_of([("a", b"")]))
    packed[packed.rindex(b"PK\x01\x02") + 8] |= 1
    assert refusal(bytes(packed)) == (400, "bad_zip")
    lzma = io.BytesIO()
    with zipfile.ZipFile(lzma, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 100)
    assert refusal(lzma.getvalue()) == (400, "bad_zip")


def test_every_cut_and_every_changed_byte_is_refused_or_read(zip_of):
    packed = zip_of([("a.dcm", bytes(range(256)) * 4), ("b/c", b"text")])
    for position in range(len(packed)):
        changed = bytearray(packed)
        changed[position] ^= 0xFF
        for content in (packed[:position], bytes(changed)):
            try:
                unpacked(content)
            except RequestRefused as error:
                assert error.status in (400, 413)  # noqa: PT017
