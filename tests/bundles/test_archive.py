"""Packing a bundle always gives the same bytes, and unpacking accepts nothing else, hostile archives included."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest

from mri_edge.authoring.packing import pack, unpack
from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles import archive
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, Document, Manifest
from mri_edge.errors import BundleError, IntegrityError, OutputError, UsageError


@pytest.fixture
def folder(tmp_path: Path, tiny_manifest: Manifest) -> Path:
    """A bundle of documents: empty, one block long, longer, in a folder, and with a non-ASCII name."""
    folder = tmp_path / "source" / "bundle"
    with new_bundle(folder, tiny_manifest) as writer:
        writer.add_document("z.txt", "")
        writer.add_document("block.bin", b"b" * 512)
        writer.add_document("report/größe.txt", "x" * 700)
    return folder


@pytest.fixture
def good(folder: Path, tmp_path: Path) -> Path:
    pack(Bundle.open(folder), tmp_path / "good.mribundle")
    return tmp_path / "good.mribundle"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- packing


def test_round_trip(folder: Path, good: Path, tmp_path: Path) -> None:
    manifest = unpack(good, tmp_path / "out")
    assert manifest == Bundle.open(folder).manifest
    assert contents(tmp_path / "out") == contents(folder)
    Bundle.open(tmp_path / "out").verify()
    pack(Bundle.open(tmp_path / "out"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == good.read_bytes()


def test_the_bytes_depend_on_nothing_but_the_contents(folder: Path, good: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    for file in sorted(contents(folder), reverse=True):  # made in another order, at another time, for another reader
        (other / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, other / file)
        (other / file).chmod(0o600)
        os.utime(other / file, (1e9, 1e9))
    (other / "notes.txt").write_text("not listed, so it stays at home")
    pack(Bundle.open(other), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == good.read_bytes()


def test_the_header_is_pinned() -> None:
    """If this changes, the format changes: devices would refuse every existing packed bundle."""
    digest = hashlib.sha256(archive.header("report/größe.txt", 123456789)).hexdigest()
    assert digest == "a6571f3724db00c037dfebbe7f1245b4948d5ddb7bab22c22fa916895e1274f2"


def test_tar_reads_a_packed_bundle(folder: Path, good: Path, tmp_path: Path) -> None:
    with tarfile.open(good, "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [MANIFEST, "block.bin", "report/größe.txt", "z.txt"]
        assert {(member.mode, member.uid, member.mtime, member.type) for member in members} == {
            (0o644, 0, 0, tarfile.REGTYPE)
        }
        assert {member.name: archive.extractfile(member).read() for member in members} == contents(folder)  # type: ignore[union-attr]
    if shutil.which("tar"):
        subprocess.run(["tar", "-xf", good, "-C", tmp_path / "source"], check=True)
        assert (tmp_path / "source" / "block.bin").read_bytes() == b"b" * 512


def test_a_damaged_bundle_is_not_packed(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / "block.bin").write_bytes(b"c" * 512)
    with pytest.raises(IntegrityError):
        pack(bundle, tmp_path / "out")
    (folder / "block.bin").unlink()
    with pytest.raises(IntegrityError):
        pack(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_can_be_packed_can_be_unpacked(
    folder: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "LARGEST", good.stat().st_size)
    pack(Bundle.open(folder), tmp_path / "largest")
    unpack(tmp_path / "largest", tmp_path / "out")
    monkeypatch.setattr(archive, "LARGEST", good.stat().st_size - 1)
    with pytest.raises(BundleError, match="packed it would have more than"):
        pack(Bundle.open(folder), tmp_path / "larger")
    assert not (tmp_path / "larger").exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.txt", "A.txt"], "ignore case"),
        (["stra\u00dfe", "STRASSE"], "ignore case"),
        (["\u00e9", "e\u0301"], "ignore case"),  # one letter, and a letter with its accent apart
        (["Manifest.JSON"], "ignore case"),
        (["manifest.json.sig"], "ignore case"),
        (["A/b", "a"], "a file and a folder"),
        (["a", "a/b"], "a file and a folder"),
        (["aux"], "not a valid name on Windows"),
        (["x/Com1.txt"], "not a valid name on Windows"),
        (["dot."], "not a valid name on Windows"),
        (["space "], "not a valid name on Windows"),
        (["what?"], "not a valid name on Windows"),
        (["n" * 101], "longer than 100 bytes"),
    ],
)
def test_names_that_not_every_system_can_hold(
    tiny_manifest: Manifest, tmp_path: Path, files: list[str], words: str
) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    manifest = replace(tiny_manifest, documents=tuple(Document(file, 0, empty) for file in files))
    with pytest.raises(BundleError, match=words):
        archive.sorted_entries(manifest, "a bundle")


def test_a_name_of_many_folders_is_refused_without_memory_for_each(tiny_manifest: Manifest) -> None:
    manifest = replace(tiny_manifest, documents=(Document("a/" * 5_000 + "a", 0, "0" * 64),))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="longer than 100 bytes") as raised:
            archive.sorted_entries(manifest, "a bundle")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 300


def test_many_names_take_time_by_their_number(tiny_manifest: Manifest) -> None:
    documents = tuple(Document(f"{number}/file", 0, "0" * 64) for number in range(20_000))
    start = perf_counter()
    assert len(archive.sorted_entries(replace(tiny_manifest, documents=documents), "a bundle")) >= len(documents)
    assert perf_counter() - start < 2  # a tenth of it; a comparison of all with all takes several times as long


# --- unpacking is atomic


def test_an_older_bundle_is_replaced_only_on_request(good: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unpack(good, out)
    with pytest.raises(UsageError, match="a bundle is there already"):
        unpack(good, out)
    unpack(good, out, overwrite=True)
    assert contents(out) == contents(folder)


def test_too_little_disk_space_is_found_before_anything_is_written(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="the disk has 1000 free"):
        unpack(good, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refused(path: Path, out: Path) -> BundleError:
    """Check that unpacking is refused, leaves no file behind, and changes no existing file."""
    before = contents(out.parent)
    with pytest.raises(BundleError) as caught:
        unpack(path, out)
    with pytest.raises(BundleError):
        Bundle.open_packed(path)
    assert contents(out.parent) == before
    assert not out.exists()
    assert caught.value.exit_code == 3
    return caught.value


Members = list[tuple[tarfile.TarInfo, bytes]]


def plain(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def with_extra(name: str, **fields: object) -> Callable[[Members], Members]:
    return lambda members: [*members, plain(name, b"evil", **fields)]


def instead(name: str, **fields: object) -> Callable[[Members], Members]:
    """Replace ``block.bin`` by another member of the same name."""
    return lambda members: [
        plain(name, b"", **fields) if member.name == name else (member, data) for member, data in members
    ]


def renamed(name: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[1][0].name = name
        return members

    return change


HOSTILE: dict[str, Callable[[Members], Members]] = {
    "climbs out": with_extra("../evil"),
    "climbs out from within": with_extra("report/../../evil"),
    "absolute": with_extra("/etc/evil"),
    "drive letter": with_extra("C:/evil"),
    "back-slashes": with_extra("..\\evil"),
    "unlisted": with_extra("evil.txt"),
    "twice": with_extra("block.bin"),
    "manifest twice": with_extra(MANIFEST),
    "renamed to climb": renamed("../evil"),
    "renamed": renamed("block.bim"),
    "symbolic link": instead("block.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": instead("block.bin", type=tarfile.LNKTYPE, linkname="../../secret"),
    "device": instead("block.bin", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": instead("block.bin", type=tarfile.FIFOTYPE),
    "folder": instead("block.bin", type=tarfile.DIRTYPE),
    "sparse": instead("block.bin", type=tarfile.GNUTYPE_SPARSE),
    "set-uid": lambda members: [(setattr(member, "mode", 0o4755), (member, data))[1] for member, data in members],
    "a link before the file": lambda members: [
        members[0],
        plain("report", type=tarfile.SYMTYPE, linkname="/etc"),
        *members[1:],
    ],
    "missing": lambda members: members[:-1],
    "out of order": lambda members: [members[0], *reversed(members[1:])],
    "manifest last": lambda members: [*members[1:], members[0]],
    "empty": lambda members: [],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hostile_members(good: Path, tmp_path: Path, name: str, form: int) -> None:
    with tarfile.open(good, "r:") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive.getmembers()]  # type: ignore[union-attr]
    path = tmp_path / "hostile.mribundle"
    with tarfile.open(path, "w", format=form) as archive:
        for member, content in HOSTILE[name](members):
            archive.addfile(member, io.BytesIO(content))
    content = path.read_bytes().rstrip(b"\0")  # without tarfile's own padding, which alone would be refused
    path.write_bytes(content + bytes(-len(content) % 512 + 1024))
    refused(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "change"),
    [
        *((156, kind) for kind in (b"\0", *(b"%c" % kind for kind in b"1234567DKLMNSVXgx"))),  # tar's kinds of members
        (0, b"../ck.bin"),
        (0, b"/lock.bin"),
        (0, b"C:ock.bin"),
        (0, b"block.bim"),
        (345, b".."),  # the field that stands before the name
        (157, b"/etc/passwd"),  # where a link leads
        (100, b"0004755"),
        (108, b"0000001"),
        (124, b"00000000777"),
        (124, b"-0000001000"),
        (124, b"\x80" + bytes(9) + b"\1"),  # GNU tar's sizes above 8 GiB
        (136, b"00000000001"),
        (257, b"ustar  "),
        (500, b"\1"),
    ],
)
def test_a_header_that_differs_by_anything(good: Path, tmp_path: Path, place: int, change: bytes) -> None:
    """Change one header of a valid file and correct its checksum; the size in blocks stays the same."""
    content = bytearray(good.read_bytes())
    start = content.index(b"block.bin\0")
    content[start + place : start + place + len(change)] = change
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path = tmp_path / "hostile.mribundle"
    path.write_bytes(content)
    assert "does not hold block.bin where the manifest puts it" in str(refused(path, tmp_path / "out"))


def relisted(good: Path, **changes: object) -> bytes:
    """Return the packed bundle with changes to the manifest's entry for ``block.bin``."""
    content = good.read_bytes()
    size = int(content[124:135], 8)
    manifest = json.loads(content[512 : 512 + size])
    next(document for document in manifest["documents"] if document["file"] == "block.bin").update(changes)
    text = json.dumps(manifest).encode()
    rest = content[512 + archive.padded(size) :]
    return archive.header(MANIFEST, len(text)) + text + bytes(-len(text) % 512) + rest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),  # the tool of this test works: such a file is good
        ({"file": "../block.bin"}, "inside the bundle"),
        ({"file": "/block.bin"}, "inside the bundle"),
        ({"file": "C:block.bin"}, "inside the bundle"),
        ({"file": "..\\block.bin"}, "inside the bundle"),
        ({"file": "z.txt"}, "twice"),
        ({"file": "Z.TXT"}, "twice"),
        ({"size_bytes": 511}, "does not hold block.bin"),  # the archive has the same number of blocks
        ({"size_bytes": 513}, "the files in its manifest make"),
        ({"size_bytes": 1 << 50}, "the files in its manifest make"),
        ({"size_bytes": -512}, "negative"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_a_manifest_that_contradicts_the_archive_is_refused(
    good: Path, tmp_path: Path, changes: dict[str, object], words: str | None
) -> None:
    path = tmp_path / "hostile.mribundle"
    path.write_bytes(relisted(good, **changes))
    if words is None:
        unpack(path, tmp_path / "out")
    else:
        assert words in str(refused(path, tmp_path / "out"))


def test_a_file_that_is_not_a_packed_bundle_is_refused(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr(MANIFEST, "{}")
    for other in (b"", b"text", bytes(2048), gzip.compress(content), zipped.getvalue()):
        path = tmp_path / "hostile.mribundle"
        path.write_bytes(other)
        assert "is not a packed bundle" in str(refused(path, tmp_path / "out"))
    assert "no such file" in str(refused(tmp_path / "none", tmp_path / "out"))
    assert "no such file" in str(refused(tmp_path, tmp_path / "out"))
    path.write_bytes(archive.header(MANIFEST, 17 << 20))
    assert "is not a packed bundle" in str(refused(path, tmp_path / "out"))


def test_a_file_of_terabytes_is_refused_by_its_size(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.mribundle"
    shutil.copy(good, path)
    try:
        os.truncate(path, 1 << 42)
    except OSError as error:
        pytest.skip(f"no file with holes can be made here: {error}")
    (tmp_path / "sub").mkdir()
    assert "at most" in str(refused(path, tmp_path / "sub" / "out"))


def test_cut_or_continued_at_any_place(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    path = tmp_path / "hostile.mribundle"
    for size in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:size])
        refused(path, tmp_path / "out")
    for more in (b"\0", bytes(512), content):
        path.write_bytes(content + more)
        refused(path, tmp_path / "out")
