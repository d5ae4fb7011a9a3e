"""The parts of `archive` that need no cluster: sources, columns, the record of a run, and the isolation of crashes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra archive")
jsonschema = pytest.importorskip("jsonschema")

import pyarrow as pa
import pyarrow.parquet as pq

from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import BundleError, EngineError, InputError, OutputError, UsageError
from mri_edge.inference import prediction
from mri_edge.inference.selection import RunOptions
from mri_edge.scans.options import DEFAULT
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import readers
from mri_edge.services.archive import (
    cluster,
    failures,
    inputs,
    job,
    joining,
    packing,
    progress,
    reading,
    record,
    schema,
    sink,
    sources,
    stages,
    units,
)
from mri_edge.services.archive.cluster import SHORT_CPUS, Resources
from mri_edge.services.archive.guard import MOST_CRASHES, Attempt, Isolation
from mri_edge.services.archive.schema import ANSWERED, FAILED, INPUT, OUTCOME, columns, table
from mri_edge.services.archive.units import Member, Unit, local_files, remote_filesystem

EXAMPLES = Path(__file__).parents[2] / "examples"
PHANTOM = EXAMPLES / "phantom-1.jpg"
NONE = np.zeros(0, np.int64)


def units_of(*named: object, by: str = "slice") -> list[Unit]:
    return list(sources.find_units(map(str, named), by=by, notify=lambda message: None))


def slices_of(units: list[Unit], preprocessing: Preprocessing) -> list[tuple[int, reading.Result]]:
    return [found for piece in reading.read_units(units, preprocessing, DEFAULT) for found in piece]


def names_of(*named: object) -> list[str]:
    return [unit.error["error"] if unit.error else unit.name for unit in units_of(*named)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two demo scans, one with a unique identifier as its name, in a folder, a zip and a tar."""
    folder = tmp_path / "study"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "phantom.jpg").write_bytes(PHANTOM.read_bytes())
    (folder / "a" / "1.2.840.1").write_bytes((EXAMPLES / "dicom" / "mni152-slice-2.dcm").read_bytes())
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in sorted((folder / "a").iterdir()):
            archive.write(path, f"a/{path.name}")
        archive.writestr("a/report.txt", "text")
        archive.writestr("DICOMDIR", "text")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(folder / "a", "a")
    return folder


# --- sources


def test_members_of_zip_and_tar_are_read_as_the_files_themselves(study, tmp_path):
    expected = {path.name: path.read_bytes() for path in (study / "a").iterdir()}
    for name in ("s.zip", "s.tar"):
        found = units_of(tmp_path / name)
        assert [unit.name for unit in found] == [f"{tmp_path / name}/a/1.2.840.1", f"{tmp_path / name}/a/phantom.jpg"]
        for unit in found:
            with local_files(unit) as files:
                ((path, shown),) = files.items()
                assert Path(path).read_bytes() == expected[Path(unit.members[0].path).name]
                assert shown == unit.name
            assert not os.path.exists(path)


SCANS = ("a.jpg", "IM0001", "1.2.840.113619.2.1", "MR.1.2.840.113619.2.1")  # the last as storescp of DCMTK names it
NO_SCANS = ("report.txt", "notes.1", "DICOMDIR", "._a.jpg")


def in_a_container(kind: str, folder: Path, names: tuple[str, ...]) -> str:
    """Make empty files, and return a source that contains them: a zip or tar file, or an address."""
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    if kind == "address":
        return f"local://{folder}"
    return shutil.make_archive(str(folder), kind, folder)


@pytest.mark.parametrize("kind", ["zip", "tar", "address"])
def test_files_elsewhere_that_are_no_scans_are_counted(kind, tmp_path):
    source = in_a_container(kind, tmp_path / "study", (*SCANS, *NO_SCANS))
    messages: list[str] = []
    found = list(sources.find_units([source], by="slice", notify=messages.append))
    assert {unit.name.rpartition("/")[2] for unit in found} == set(SCANS)
    (message,) = messages
    assert ": 4 files skipped: " in message
    assert "1 .txt (report.txt)" in message
    assert "1 hidden (._a.jpg)" in message
    (failure,) = units_of(in_a_container(kind, tmp_path / "none", NO_SCANS))
    assert failure.error["code"] == "missing"
    assert "4 files skipped: " in failure.error["hint"]


def test_a_folder_stands_for_its_scans_and_archives(study, tmp_path):
    (tmp_path / "more.tgz").write_bytes(b"")
    found = names_of(tmp_path)
    assert len(found) == 7
    assert found[0] == f"{tmp_path / 'more.tgz'}: a compressed tar cannot be read from the middle"


def test_sources_that_name_nothing_keep_a_place(study, tmp_path, monkeypatch):
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{study}\n\n{tmp_path / 'gone.jpg'}\n")
    found = names_of(f"@{listing}", tmp_path / "bad.zip", tmp_path / "nothing" / "*.jpg")
    assert found[:3] == [str(study / "a" / "1.2.840.1"), str(study / "a" / "phantom.jpg"), str(tmp_path / "gone.jpg")]
    assert "damaged archive" in found[3]
    assert "no file matches this pattern" in found[4]

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "cannot list the folder" in names_of(study)[0]


@pytest.mark.parametrize(
    "address",
    [
        "s3://name:hidden@bucket/a",
        "s3://hidden@bucket/a",
        "s3://bucket/a?access_key=hidden",
        "s3://bucket/a?session_token=hidden",
        "abfs://scans:hidden@account.dfs.core.windows.net/a",
        "abfs://account.dfs.core.windows.net/scans/a?tenant_id=1&client_id=2&client_secret=hidden",
        "abfs://account.dfs.core.windows.net/scans/a?sv=2024&sig=hidden",
        "ftp://host/a?Password=hidden",
    ],
)
def test_an_address_with_credentials_is_refused(address):
    with pytest.raises(UsageError, match="must not hold credentials") as raised:
        remote_filesystem(address)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_an_address_of_azure_may_name_its_container_before_the_account(scheme):
    pytest.importorskip("pyarrow._azurefs")
    _, path = remote_filesystem(f"{scheme}://scans@account.dfs.core.windows.net/mr")
    assert path == "scans/mr"


def test_an_address_of_hdfs_may_name_a_user():
    with pytest.raises(UsageError) as raised:  # nothing of this name answers
        remote_filesystem("hdfs://user@nowhere.invalid:8020/mr")
    assert "credentials" not in str(raised.value)


def test_an_address_of_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="cannot open"):
        remote_filesystem("nonsense://bucket/a")


@pytest.mark.parametrize("address", ["s3://[::1", "s3://[x]/a"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match="not valid"):
        remote_filesystem(address)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_a_failure_and_not_the_end_of_the_run(compression, tmp_path):
    content = bytes(number * number % 41 for number in range(4000))
    packed = tmp_path / "s.zip"
    with zipfile.ZipFile(packed, "w", compression) as archive:
        archive.writestr("a.jpg", content)
    whole = packed.read_bytes()
    start = 30 + len("a.jpg") + 4  # behind the headers of the member and of LZMA
    for position in range(start, min(start + 300, len(whole) - 100), 3):
        damaged = tmp_path / f"{position}.zip"
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF, 0xFF]) + whole[position + 2 :])
        (unit,) = units_of(damaged)
        with local_files(unit) as files:
            ((path, found),) = files.items()
            if isinstance(found, InputError):
                assert found.hint == "Export it again"
            else:  # some bytes of a header mean nothing
                assert Path(path).read_bytes() == content


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_member_without_a_name_is_no_scan(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for filename in ("a.jpg", name):
            info = zipfile.ZipInfo("x")
            info.filename = filename
            archive.writestr(info, b"x")
    assert names_of(tmp_path / "s.zip") == [f"{tmp_path / 's.zip'}/a.jpg"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_a_later_one_replaces_is_a_failure(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for content in (b"first", PHANTOM.read_bytes()):
            archive.writestr("a.jpg", content)
    replaced, read = units_of(path)
    assert replaced.error["error"] == f"{path}/a.jpg: a later member has the same name"
    with local_files(read) as files:
        assert [Path(file).read_bytes() for file in files] == [PHANTOM.read_bytes()]


def test_a_missing_reader_is_named_before_the_run(monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(job, "find_spec", lambda name: None if name == "pydicom" else name)
    job._warn_of_missing_readers(messages.append)
    (message,) = messages
    assert "pydicom is not installed" in message
    assert "pip install 'mri-edge[dicom]'" in message


def test_a_missing_list_is_refused():
    with pytest.raises(UsageError, match=r"@gone\.txt: cannot read the list"):
        units_of("@gone.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_list_may_begin_with_the_mark_of_utf_8(tmp_path, encoding):
    (tmp_path / "list.txt").write_text("/a/b.jpg\n/a/c.jpg\n", encoding=encoding)
    assert names_of(f"@{tmp_path / 'list.txt'}") == ["/a/b.jpg", "/a/c.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_that_is_not_utf_8_is_refused_and_not_taken_for_empty(tmp_path, encoding):
    (tmp_path / "list.txt").write_text("/a/b.jpg\n/a/c.jpg\n", encoding=encoding)
    with pytest.raises(UsageError, match="holds binary data or UTF-16, not paths"):
        units_of(f"@{tmp_path / 'list.txt'}")


def test_scans_of_a_folder_are_one_input_by_series_with_subfolders_between_them(tmp_path):
    for name in ("s/a.jpg", "s/b/1.jpg", "s/b/2.jpg", "s/c.jpg", "s2/a.jpg", "t/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = units_of(tmp_path, by="series")
    assert [
        sorted(Path(member.path).relative_to(tmp_path).as_posix() for member in unit.members) for unit in found
    ] == [
        ["s/b/1.jpg", "s/b/2.jpg"],
        ["s/a.jpg", "s/c.jpg"],
        ["s2/a.jpg"],
        ["t/a.jpg"],
    ]
    remaining = iter([Unit(None, None, (Member(name),)) for name in ("s/a.jpg", "s2/a.jpg")] + [None])
    assert next(sources._by_folder(remaining)).name == "s/a.jpg"  # s2 is not within s


def test_a_folder_with_too_many_scans_for_one_worker_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_MOST_FILES", 1)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    (unit,) = units_of(tmp_path, by="series")
    assert unit.error["code"] == "too_large"
    assert unit.error["limit"] == 1


def test_inputs_that_share_a_series_belong_to_the_first_of_them():
    found = [(4, {b"b"}), (0, {b"a"}), (1, {b"b", b"c"}), (2, set()), (3, {b"c", b"d"}), (5, {b"d"}), (6, {b"e"})]
    assert joining.leaders(found) == {3: 1, 4: 1, 5: 1}
    assert joining.leaders(reversed(found)) == {3: 1, 4: 1, 5: 1}
    assert joining.leaders([(0, {b"a"}), (1, {b"b"}), (2, {b"a", b"b"})]) == {1: 0, 2: 0}


def test_the_files_of_inputs_that_share_a_series_are_in_one_unit(tmp_path, monkeypatch):
    units = [Unit(None, None, (Member(f"{number}/a.dcm"),)) for number in range(4)]
    inputs.write_inputs(units, tmp_path / "inputs", 3)
    listed = list(joining.read_all(tmp_path / "inputs", 4, 3))
    assert listed == list(enumerate(units))
    found = list(joining.join(listed, listed, {2: 0, 3: 0}))
    assert [[member.path for member in unit.members] for unit in found] == [
        ["0/a.dcm", "2/a.dcm", "3/a.dcm"],
        ["1/a.dcm"],
    ]
    monkeypatch.setattr(sources, "_MOST_FILES", 2)
    first, second = joining.join(listed, listed, {2: 0, 3: 0})
    assert first.error["code"] == "too_large"
    assert second == units[1]


def test_the_series_of_an_input_are_those_of_its_files(tmp_path):
    pytest.importorskip("pydicom")
    slices = [Unit(None, None, (Member(str(path)),)) for path in sorted((EXAMPLES / "dicom").iterdir())]
    elsewhere = [Unit(None, "gone.zip", (Member("a.dcm"),)), Unit.failed(InputError("x"))]
    picture = Unit(None, None, (Member(str(PHANTOM)), Member(str(tmp_path / "gone.dcm"))))
    inputs.write_inputs([*slices, *elsewhere, picture], tmp_path / "inputs", 99)
    found = dict(joining._series_of_part(tmp_path / "inputs", 0, 99, tmp_path, DEFAULT))
    assert [len(series) for series in found.values()] == [1] * len(slices) + [0, 0]
    assert found[0] == found[len(slices) - 1]


def test_the_series_of_members_are_read_from_their_first_bytes_and_stay_in_their_archive(tmp_path, monkeypatch):
    pytest.importorskip("pydicom")
    path = EXAMPLES / "dicom" / "mni152-slice-2.dcm"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed, tarfile.open(tmp_path / "b.tar", "w") as plain:
        for folder in "12":
            packed.write(path, f"{folder}/slice.dcm")
            plain.add(path, f"{folder}/slice.dcm")
        packed.write(PHANTOM, "3/phantom.jpg")
    shutil.copy(path, tmp_path)
    read: list[int | None] = []

    def remember(source: object, target: Path, first: int | None) -> None:
        read.append(first)
        write(source, target, first)

    write = units._write
    monkeypatch.setattr(units, "_write", remember)
    monkeypatch.setattr(joining, "_HEADER_BYTES", 4096)
    listed = units_of(tmp_path, by="series")
    inputs.write_inputs(listed, tmp_path / "inputs", 99)
    found = dict(joining._series_of_part(tmp_path / "inputs", 0, 99, tmp_path, DEFAULT))
    assert read == [4096] * 4  # the picture has no header
    names = [unit.archive and Path(unit.archive).name for unit in listed]
    assert names == ["a.zip", "a.zip", "a.zip", "b.tar", "b.tar", None]
    assert [len(found[number]) for number in range(6)] == [1, 1, 0, 1, 1, 1]
    assert joining.leaders(found.items()) == {1: 0, 4: 3}


def test_only_the_folders_that_end_their_process_each_time_are_not_joined(tmp_path, monkeypatch):
    import ray

    units = [Unit(None, None, (Member(f"{number}/a.dcm"),)) for number in range(7)]
    inputs.write_inputs(units, tmp_path / "inputs", 3)

    def crash_or_read(unit: Unit, reading: object) -> set[bytes]:
        if unit.name == "4/a.dcm":
            raise ray.exceptions.WorkerCrashedError
        return {b"series"}

    class Task:
        def __init__(self, function):
            self.remote = lambda *arguments: lambda: function(*arguments)

    monkeypatch.setattr(joining, "_series_of", crash_or_read)
    monkeypatch.setattr(ray, "remote", lambda **_: Task)
    monkeypatch.setattr(ray, "wait", lambda tasks: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(ray, "get", lambda task: task())
    messages: list[str] = []
    found = joining.series_of_inputs(tmp_path / "inputs", 7, 3, tmp_path, DEFAULT, 1, messages.append)
    assert joining.leaders(found) == dict.fromkeys((1, 2, 3, 5, 6), 0)
    assert messages == ["1 folder is not joined with others: reading its headers ended the process"]


def test_the_progress_never_falls_if_the_node_that_counts_is_lost(monkeypatch):
    pytest.importorskip("ray")
    counts = iter([(0, 0), (100, 1), (160, 1), (20, 0), (95, 2), (900, 2)])
    ended, lines = threading.Event(), []

    def next_counts(*_: object, **__: object) -> tuple[int, int]:
        found = next(counts)
        if found[0] == 900:
            ended.set()
        return found

    monkeypatch.setattr("ray.get", next_counts)
    monkeypatch.setattr(progress, "_SECONDS", 0.01)
    progress._report(mock.Mock(), 1000, 50, lines.append, ended)
    assert lines[0] == "starting the workers"
    assert [int(line.split(" ")[0].replace(",", "")) for line in lines[1:]] == [210, 230, 305, 1000]
    assert lines[3].startswith("305 results of 1,000 inputs, 3 not read, ")
    assert "-" not in "".join(lines)


def test_one_part_is_read_ahead():
    read: list[int] = []

    def remembered() -> Iterator[list[int]]:
        for number in range(6):
            read.append(number)
            yield [number]

    for number, part in enumerate(reading.read_ahead(remembered())):
        assert part == [number]
        assert len(read) <= number + 2
    assert read == list(range(6))


def test_a_unit_survives_as_text_whatever_its_names():
    unit = Unit("s3://bucket/a", "x.tar", (Member("caf\udce9/\u202e.jpg", 512, 9),))
    text = unit.to_json()
    assert text.isascii()
    assert Unit.from_json(text) == unit
    assert unit.name == "s3://x.tar/caf\udce9/\u202e.jpg"


@pytest.mark.parametrize("damage", ["a flipped bit in a header", "cut in a header", "cut before a header"])
def test_a_tar_without_its_end_gives_a_failure_after_the_members_before_the_damage(tmp_path, damage):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", dereference=True) as archive:
        for number in range(4):
            archive.add(PHANTOM, f"{number}.jpg")
    header = units_of(path)[2].members[0].offset - tarfile.BLOCKSIZE
    content = bytearray(path.read_bytes())
    if damage == "a flipped bit in a header":
        content[header + 20] ^= 1
    else:
        del content[header + (100 if damage == "cut in a header" else 0) :]
    path.write_bytes(content)
    first, second, failure = names_of(path)
    assert (first, second) == (f"{path}/0.jpg", f"{path}/1.jpg")
    assert failure.startswith(f"{path}: damaged archive (")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize(("size", "count"), [(64 << 20, 1), (600 << 10, 3), (512, 3000)])
def test_a_tar_with_huge_headers_is_damaged_and_takes_no_memory(tmp_path, kind, size, count):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(PHANTOM, "a.jpg")
        end = archive.offset
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    with open(path, "r+b") as file:
        for number in range(count):
            file.seek(end + number * (tarfile.BLOCKSIZE + size))
            file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(end + count * (tarfile.BLOCKSIZE + size))
    tracemalloc.start()
    try:
        first, failure = names_of(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert first == f"{path}/a.jpg"
    assert failure.startswith(f"{path}: damaged archive (")


def test_long_names_in_a_tar_are_read(tmp_path):
    name = "folder/" * 500 + "a.jpg"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=kind) as archive:
            for _ in range(500):
                archive.add(PHANTOM, name)
        assert names_of(tmp_path / "t.tar") == [f"{tmp_path}/t.tar/{name}"] * 500


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("link_type", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_whole_tar_has_no_failure_and_a_link_in_it_has_one(tmp_path, kind, link_type):
    with tarfile.open(tmp_path / "t.tar", "w", format=kind) as archive:
        archive.add(PHANTOM, "a.jpg")
    with tarfile.open(tmp_path / "t.tar", "a", format=kind, dereference=True) as archive:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = link_type, "a.jpg"
        archive.addfile(link)
        archive.add(PHANTOM, "c.jpg")
    first, second, third = names_of(tmp_path / "t.tar")
    assert (first, third) == (f"{tmp_path}/t.tar/a.jpg", f"{tmp_path}/t.tar/c.jpg")
    assert second == f"{tmp_path}/t.tar/b.jpg: a link or a sparse file, which is not read"


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU tar and a file system with sparse files")
@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_a_sparse_member_of_a_tar_is_a_failure_and_not_the_bytes_of_the_next_one(tmp_path, kind):
    with open(tmp_path / "a.bmp", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    (tmp_path / "b.bmp").write_bytes(bytes(range(256)) * 64)
    subprocess.run(
        ["tar", "-S", f"--format={kind}", "-C", tmp_path, "-cf", tmp_path / "t.tar", "a.bmp", "b.bmp"], check=True
    )
    sparse, read = units_of(tmp_path / "t.tar")
    assert sparse.error["error"] == f"{tmp_path}/t.tar/a.bmp: a link or a sparse file, which is not read"
    with local_files(read) as files:
        assert [Path(file).read_bytes() for file in files] == [(tmp_path / "b.bmp").read_bytes()]


class Broken:
    """A file of which the disk reports an error at the second read."""

    def __init__(self):
        self.reads = 0

    def read(self, size=-1, /):
        self.reads += 1
        if self.reads == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return b"x"

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_source_that_cannot_be_read_is_a_failure_and_not_the_disk_of_the_results(monkeypatch):
    monkeypatch.setattr(units, "open_file", lambda root, path: Broken())
    with local_files(Unit("s3://bucket", None, (Member("a.jpg"), Member("b.jpg")))) as found:
        assert [error.problem for error in found.values()] == [
            f"s3://{name}.jpg: cannot read (Input/output error)" for name in "ab"
        ]


def test_a_full_disk_for_copies_is_named(study, tmp_path, monkeypatch):
    [scan, *_] = units_of(tmp_path / "s.zip")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(units.shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match=r"mri-edge-scans-.*: cannot write a copy of a scan"), local_files(scan):
        pass


@pytest.mark.parametrize("of_user", [None, "/home"])
def test_copies_that_killed_workers_leave_are_removed(monkeypatch, of_user):
    monkeypatch.setenv("TMPDIR", of_user) if of_user else monkeypatch.delenv("TMPDIR", raising=False)
    of_killed_run = Path(tempfile.gettempdir(), "mri-edge-scans-0123abcd")
    of_killed_run.mkdir(exist_ok=True)
    made: list[Path] = []

    def start_and_fail(**options):
        made.extend([Path(options["_temp_dir"]), Path(os.environ["TMPDIR"], "copy.dcm")])
        made[1].touch()
        raise RuntimeError("no Ray")

    monkeypatch.setattr("ray.init", start_and_fail)
    with pytest.raises(RuntimeError), cluster.cluster(None):
        pass
    assert len(made) == 2
    assert not made[0].exists()
    assert made[1].parent.name.startswith("mri-edge-scans-")
    assert not made[1].parent.exists()
    assert not of_killed_run.exists()
    assert os.environ.get("TMPDIR") == of_user


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES])
def test_a_missing_place_for_temporary_files_is_named_and_not_the_folder_of_the_results(monkeypatch, reason):
    def fail(path, *_, **__):
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(Path, "mkdir", fail)
    with (
        pytest.raises(OutputError, match=rf"no temporary folder can be made \({os.strerror(reason)}\)") as raised,
        failures.output_errors(Path("/shared/results")),
        cluster.cluster(None),
    ):
        pass
    assert "TMPDIR" in raised.value.hint


def test_a_full_disk_is_named_by_the_file_that_cannot_be_written():
    for file, named in ((None, "/shared/results"), ("/tmp/copy.dcm", "/tmp/copy.dcm")):  # noqa: S108
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)
        with pytest.raises(OutputError) as raised, failures.output_errors(Path("/shared/results")):
            raise RuntimeError("of Ray") from full
        assert raised.value.problem == f"{named}: cannot write (No space left on device)"


def test_a_worker_with_another_threshold_is_refused(tmp_path):
    bundle = Bundle.open("small")
    run = RunOptions(artifact="model.int8.onnx", engine="onnxruntime")
    facts = {"model": "small", "signed_by": None, "run": run, "by": "slice", "plane": "axial", "batch": None}
    sha256 = bundle.artifact("model.int8.onnx").sha256
    work = stages.Work(**facts, title=bundle.manifest.title, sha256=sha256, folder=tmp_path, out=None)
    stages._open(work).close()
    for change in ({"title": "small 0.1.0 (00000000)"}, {"sha256": "0" * 64}):
        with pytest.raises(BundleError, match="Install the same bundle on every node"):
            stages._open(dataclasses.replace(work, **change))


def test_a_member_that_is_too_large_or_cut_short_is_a_failure(study, tmp_path, monkeypatch):
    _, cut = units_of(tmp_path / "s.tar")
    os.truncate(tmp_path / "s.tar", cut.members[0].offset + 10)
    with local_files(cut) as files:
        (error,) = files.values()
    assert isinstance(error, InputError)
    assert error.code == "damaged"
    monkeypatch.setattr("mri_edge.services.archive.units._MOST_BYTES", 100)
    for unit in units_of(tmp_path / "s.zip"):
        with local_files(unit) as files:
            (error,) = files.values()
        assert error.code == "too_large"


def test_the_copies_of_a_folder_have_a_limit_together(study, tmp_path, monkeypatch):
    (unit,) = units_of(tmp_path / "s.zip", by="series")
    size = sum(path.stat().st_size for path in (study / "a").iterdir())
    monkeypatch.setattr(units, "_MOST_TOGETHER", size)
    with local_files(unit) as files:
        assert list(files.values()) == [unit.name_of(member) for member in unit.members]
    monkeypatch.setattr(units, "_MOST_TOGETHER", size - 1)
    with local_files(unit) as files:
        (error,) = files.values()
    assert isinstance(error, InputError)
    assert (error.code, error.source) == ("too_large", f"{tmp_path / 's.zip'}/a")


def test_a_part_of_a_copy_is_not_kept(study, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "_MOST_BYTES", 100)
    (unit,) = units_of(tmp_path / "s.zip", by="series")
    unit = dataclasses.replace(unit, members=tuple(dataclasses.replace(m, size=None) for m in unit.members))
    with local_files(unit) as files:
        assert all(isinstance(error, InputError) for error in files.values())
        assert not any(os.path.exists(path) for path in files)


# --- the list of inputs


def test_each_task_reads_its_own_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_PARTS_PER_FILE", 2)
    folder = tmp_path / "inputs"
    count = inputs.write_inputs((Unit(None, None, (Member(f"{number}.jpg"),)) for number in range(11)), folder, 2)
    assert count == 11
    assert len(list(folder.iterdir())) == 3
    for parts, expected in ((1, 6), (3, 2), (9, 1)):
        source = inputs.Inputs(folder, count, 2, parts, NONE)
        tasks = source.get_read_tasks(1)
        assert len(tasks) == source.tasks == expected
        blocks = [part.to_pylist() for task in tasks for part in task()]
        assert len(blocks) == expected
        found = [row for block in blocks for row in block]
        assert [row[INPUT] for row in found] == list(range(11))
        assert [Unit.from_json(row["unit"]).name for row in found] == [f"{number}.jpg" for number in range(11)]


@pytest.mark.parametrize("finished", [[], [0, 1], [1], [10], [0, 1, 2, 3, 4, 5], [2, 7, 8, 9], list(range(10))])
@pytest.mark.parametrize(("parts", "all_tasks"), [(1, 6), (3, 2), (9, 1)])
def test_inputs_with_results_are_left_out(parts, all_tasks, finished, tmp_path):
    folder = tmp_path / "inputs"
    count = inputs.write_inputs((Unit(None, None, (Member(f"{number}.jpg"),)) for number in range(11)), folder, 2)
    source = inputs.Inputs(folder, count, 2, parts, np.array(finished, np.int64))
    tasks = source.get_read_tasks(1)
    blocks = [part[INPUT].to_pylist() for task in tasks for part in task()]
    assert [number for block in blocks for number in block] == sorted(set(range(11)) - set(finished))
    assert [task.metadata.num_rows for task in tasks] == list(map(len, blocks))
    assert all(blocks)  # no task for inputs that all have results
    assert len(tasks) == source.tasks <= all_tasks


def test_finished_inputs_are_those_of_committed_files(tmp_path):
    assert sink.finished_inputs(tmp_path).tolist() == []
    (tmp_path / sink.CHECKPOINT).mkdir()
    for name, numbers in {"b": [7, 7, 3], "a": [9, 0], "c.pending": [5]}.items():
        pq.write_table(pa.table({INPUT: numbers}), tmp_path / sink.CHECKPOINT / f"{name}.parquet")
    assert sink.finished_inputs(tmp_path).tolist() == [0, 3, 7, 9]


@pytest.mark.parametrize("damage", ["empty", "cut", "without the column"])
def test_a_damaged_file_of_the_checkpoint_is_named(tmp_path, damage):
    (tmp_path / sink.CHECKPOINT).mkdir()
    path = tmp_path / sink.CHECKPOINT / "a.parquet"
    pq.write_table(pa.table({"other" if damage == "without the column" else INPUT: [1, 2]}), path)
    if damage != "without the column":
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
    with pytest.raises(OutputError, match=r"a\.parquet: cannot read the checkpoint"):
        sink.finished_inputs(tmp_path)


# --- reading


def test_every_scan_has_its_own_slices_even_without_a_frame(monkeypatch):
    with Classifier.load("small") as classifier:
        preprocessing = classifier.bundle.manifest.preprocessing
        paths = [str(PHANTOM), str(EXAMPLES / "gone.jpg"), str(EXAMPLES / "phantom-2.jpg")]
        units = [Unit(None, None, (Member(path),)) for path in paths]
        found = slices_of(units, preprocessing)
        assert [place for place, _ in found] == [0, 1, 2]
        expected = list(classifier.predict_batches(paths))
        results = list(classifier.predict_prepared(packing.unpacked(packing.packed([result for _, result in found]))))
        assert [result.source for result in results] == paths
        assert [r.probabilities for r in results if hasattr(r, "label")] == [
            r.probabilities for r in expected if hasattr(r, "label")
        ]
        picture = next(iter(readers()))
        real = picture.read
        monkeypatch.setattr(
            picture,
            "read",
            lambda source, options: iter(()) if source.endswith("phantom-1.jpg") else real(source, options),
        )
        found = slices_of(units, preprocessing)
        assert [(place, result.error.code if hasattr(result, "error") else "") for place, result in found] == [
            (0, "damaged"),
            (1, "missing"),
            (2, ""),
        ]


_READ_LONG_VOLUMES = """
import sys, tracemalloc
import numpy as np
from mri_edge.bundles.bundle import Bundle
from mri_edge.scans.frame import Frame
from mri_edge.scans.options import DEFAULT
from mri_edge.scans.readers import readers
from mri_edge.services.archive import reading, sources

def volume(source, options):
    for index in range(frames):
        yield Frame(pixels.copy(), str(source), index, frames)

preprocessing = Bundle.open("lite").manifest.preprocessing
frames, scans = 200, 4
pixels = np.full((256, 256, 3), 90, np.uint8)
next(iter(readers())).read = volume
found_units = sources.find_units(sys.argv[1:], by="slice", notify=lambda message: None)
(unit,) = [unit for unit in found_units if "phantom" in unit.name]
found = []
tracemalloc.start()
for piece in reading.read_units([unit] * scans, preprocessing, DEFAULT):
    found += [(place, result.frame.index) for place, result in piece]
assert found == [(place, index) for place in range(scans) for index in range(frames)]
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_scans_of_many_slices_take_no_more_memory(elsewhere, study, tmp_path):
    """Neither many volumes nor a long one: some MiB are read at a time, and every slice knows its scan."""
    folder = tmp_path / "s.zip" if elsewhere else study
    command = [sys.executable, "-c", _READ_LONG_VOLUMES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 << 20, "a scan takes 30 MB, all of them 120"


def test_blocks_of_scans_with_many_slices_hold_fewer_scans(study, monkeypatch):
    """Each row is a whole scan, because an input counts as finished with its first row."""
    work = stages.Work("lite", None, RunOptions(), "", "", "slice", "axial", None, Path.cwd(), None)
    paths = [str(EXAMPLES / f"phantom-{number}.jpg") for number in (1, 2, 3)]
    inputs = pa.table(
        [[7, 8, 9], [Unit(None, None, (Member(path),)).to_json() for path in paths]], [INPUT, stages.UNIT]
    )
    preprocessing = Bundle.open("lite").manifest.preprocessing
    ledger = mock.Mock()
    monkeypatch.setattr("ray.get", lambda reference: 0)
    assert [block[INPUT].to_pylist() for block in stages.read_scans(inputs, work, preprocessing, ledger)] == [[7, 8, 9]]
    monkeypatch.setattr(stages, "_BLOCK_BYTES", 1)
    blocks = list(stages.read_scans(inputs, work, preprocessing, ledger))
    assert [block[INPUT].to_pylist() for block in blocks] == [[7], [8], [9]]
    assert [len(packing.unpacked(block["prepared"][0].as_buffer())) for block in blocks] == [1, 1, 1]


def test_rows_in_several_parts_are_one_table(monkeypatch):
    rows = [(number, {"file": f"{number}.jpg", "error": "damaged"}) for number in range(5)]
    whole = table(rows, columns("slice"))
    monkeypatch.setattr(schema, "_TOGETHER", 2)
    assert table(iter(rows), columns("slice")).equals(whole)
    assert table([], columns("slice")).num_rows == 0


def test_a_function_that_ends_its_process_is_tried_three_times(tmp_path):
    attempts, flags = tmp_path / "attempts", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    program = f"import os; os.write(os.open({str(attempts)!r}, {flags}, 0o600), b'x'); os.kill(os.getpid(), 9)"
    with Isolation() as isolation:
        assert isolation.call(exec, program) is None
        assert attempts.read_text() == "x" * MOST_CRASHES
        assert isolation.call(abs, -8) == 8
        with pytest.raises(TypeError):
            isolation.call(abs, None)


def test_a_model_that_ends_its_process_each_time_ends_the_run():
    attempt = Attempt(None, "classify", 0)
    attempt.earlier = 2
    stages._refuse_broken(attempt, 3)
    attempt.earlier = 3
    with pytest.raises(EngineError, match="ended 3 times with the same scans"):
        stages._refuse_broken(attempt, 3)


# --- columns


def test_the_columns_hold_every_key_of_a_result_but_those_of_watch():
    document = json.loads(Path(prediction.__file__).with_name("result.schema.json").read_text())
    keys = {*document["$defs"]["prediction"]["properties"], *document["$defs"]["failure"]["properties"]}
    assert set(columns("slice").names) == {INPUT, OUTCOME, *keys} - {
        "sha256",
        "moved_to",
        "time",
        "identifiers",
        "window_option",
    }


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("by", ["slice", "series"])
def test_a_row_is_the_json_of_the_result(by, tmp_path):
    pytest.importorskip("pydicom")
    paths = [str(PHANTOM), str(EXAMPLES / "dicom" / "mni152-slice-2.dcm"), str(tmp_path / "gone\udce9.jpg")]
    with Classifier.load("small") as classifier:
        if by == "slice":
            records = [result.to_dict() for result in classifier.predict_batches(paths)]
        else:
            records = [result.to_dict() for result in classifier.predict_series(paths)]
    rows = table(list(enumerate(records)), columns(by)).to_pylist(maps_as_pydicts="strict")
    assert sorted(row.pop(OUTCOME) for row in rows) == [ANSWERED, ANSWERED, FAILED]
    for number, (row, expected) in enumerate(zip(rows, records, strict=True)):
        assert row.pop(INPUT) == number
        shown = json.loads(json.dumps(without_nulls(expected)).replace("\\udce9", "\\\\udce9"))
        assert without_nulls(row) == shown


# --- the record


@pytest.mark.parametrize(
    ("names", "depends"),
    [(("/a", "s3://b/c"), False), (("/a", "b"), True), (("@/list.txt",), True), (("a.zip",), True)],
)
def test_only_relative_sources_depend_on_the_working_folder(names, depends):
    bundle = Bundle.open("small")
    run = RunOptions(artifact="model.int8.onnx", engine="onnxruntime")
    archive = job.Archive(names, Path("/out"), "small", run, folder=Path("/home/a"))
    assert job._record(archive, bundle).folder == ("/home/a" if depends else "")


RUN = record.RunRecord(
    sources=("a",),
    by="slice",
    model="lite 0.1.0",
    sha256="0" * 64,
    artifact="model.int8.onnx",
    engine="onnxruntime",
    provider="auto",
    allow_fallback=False,
    window="file",
    any_modality=False,
    plane="axial",
    heatmap=False,
    version="0.1.0",
    folder="/home/a",
    per_part=256,
    inputs=3,
)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"sources": ("b",)}, "other sources"),
        ({"by": "series"}, "--by"),
        ({"model": "lite 0.2.0"}, "--model"),
        ({"sha256": "1" * 64}, "--model"),
        ({"artifact": "model.onnx"}, "--artifact"),
        ({"engine": "openvino"}, "--engine"),
        ({"provider": "cuda"}, "--provider"),
        ({"allow_fallback": True}, "--allow-fallback"),
        ({"window": "auto"}, "--window"),
        ({"any_modality": True}, "--any-modality"),
        ({"plane": "any"}, "--plane"),
        ({"heatmap": True}, "--heatmap"),
        ({"version": "0.2.0"}, "version"),
        ({"folder": "/home/b"}, "the working folder /home/a, and this run has /home/b"),
    ],
)
def test_a_run_is_not_continued_with_anything_else(change, option, tmp_path):
    RUN.write(tmp_path)
    with pytest.raises(UsageError, match=option):
        record.begun_run(tmp_path, dataclasses.replace(RUN, **change))


def test_a_run_is_continued_with_its_own_division_of_the_inputs(tmp_path):
    assert record.begun_run(tmp_path / "new", RUN) is None
    (tmp_path / record.UNFINISHED).mkdir()
    (tmp_path / record.INPUTS).mkdir()
    assert record.begun_run(tmp_path, RUN) is None  # a run that was killed while it listed its inputs
    RUN.write(tmp_path)
    assert record.begun_run(tmp_path, dataclasses.replace(RUN, per_part=64, inputs=None)) == RUN
    every_option = {field.name for field in dataclasses.fields(RUN)} - {"per_part", "inputs", "sha256"}
    assert set(record._OPTIONS) == every_option


@pytest.mark.parametrize(("names", "per_part"), [(["a.jpg", "b.png"], 512), (["a.jpg", "b.NII.gz"], 4), (["v.nii"], 4)])
def test_volumes_are_divided_into_smaller_parts(names, per_part, tmp_path):
    """Parts of 512 volumes would take hours each, on a few cores."""
    for name in names:
        (tmp_path / name).touch()
    options = RunOptions(artifact="model.int8.onnx", engine="onnxruntime")
    archive = job.Archive((str(tmp_path),), tmp_path / "out", "small", options)
    (tmp_path / "out").mkdir()
    found = job._listed(archive, job._record(archive, Bundle.open("small")), lambda message: None)
    assert (found.per_part, found.inputs) == (per_part, len(names))


@pytest.mark.parametrize("by", ["slice", "series"])
def test_a_run_without_inputs_can_be_run_again(by, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "import_ray", lambda address: None)  # it changes the environment of this process
    (tmp_path / "none.txt").touch()
    archive = job.Archive((f"@{tmp_path / 'none.txt'}",), tmp_path / "out", "small", RunOptions(), by=by)
    for _ in range(2):
        assert job.run_archive(archive, lambda message: None)["inputs"] == 0


def test_a_run_that_was_killed_while_it_wrote_its_record_can_be_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "import_ray", lambda address: None)
    (tmp_path / "none.txt").touch()
    out = tmp_path / "out"
    (out / record.INPUTS).mkdir(parents=True)
    (out / f".{record.RECORD}.new-0123abcd").write_text("{")
    archive = job.Archive((f"@{tmp_path / 'none.txt'}",), out, "small", RunOptions())
    assert job.run_archive(archive, lambda message: None)["inputs"] == 0


def test_a_folder_without_locks_is_named(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(job, "import_ray", lambda address: None)
    (tmp_path / "none.txt").touch()
    archive = job.Archive((f"@{tmp_path / 'none.txt'}",), tmp_path / "out", "small", RunOptions())
    messages: list[str] = []
    job.run_archive(archive, messages.append)
    assert any("this file system has no locks" in message for message in messages)


def test_a_folder_of_other_files_and_a_broken_record_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files, but no run"):
        record.begun_run(tmp_path, RUN)
    for content in (b"{}", b"[]", b"\xff\xfe", b"{"):
        (tmp_path / record.RECORD).write_bytes(content)
        with pytest.raises(UsageError, match="is no record of a run"):
            record.begun_run(tmp_path, RUN)


# --- the processes


def test_there_is_a_classifier_for_each_gpu_or_each_core():
    work = job.Archive(("a",), Path("out"), "small", RunOptions())
    found = job._processes(work, Resources(cpus=8, gpus=2), on_gpu=True)
    assert (found.classify, found.classify_resources, found.threads, found.read) == (2, {"num_gpus": 1}, None, 8)
    found = job._processes(work, Resources(cpus=8, gpus=2), on_gpu=False)
    assert (found.classify, found.threads, found.read) == (8, 1, None)
    # A core has room for a process that classifies, and two short tasks.
    assert found.classify_resources["num_cpus"] + 2 * SHORT_CPUS <= 1
    with_threads = dataclasses.replace(work, run=RunOptions(threads=3))
    assert job._processes(with_threads, Resources(cpus=8, gpus=0), on_gpu=False).threads == 3


def test_the_artifact_and_the_engine_are_chosen_before_the_run():
    bundle = Bundle.open("small")
    run, on_gpu = job._settled(bundle, job.Archive(("a",), Path("out"), "small", RunOptions()))
    assert run.artifact in {artifact.file for artifact in bundle.manifest.artifacts}
    assert run.engine
    assert not on_gpu
    elsewhere = job.Archive(("a",), Path("out"), "small", RunOptions(provider="cuda"), address="ray://head:10001")
    assert job._settled(bundle, elsewhere)[1]  # this machine need not have the GPU


# --- the results


def test_an_input_without_a_row_is_noticed(tmp_path):
    import pyarrow.parquet as pq

    folder = tmp_path / "results" / f"{OUTCOME}={FAILED}"
    folder.mkdir(parents=True)
    failure = {"error": "x", "hint": "", "code": "missing", "file": "x"}
    rows = table([(0, failure), (2, failure)], columns("slice")).drop_columns([OUTCOME])
    pq.write_table(rows, folder / "a.parquet")
    with pytest.raises(OutputError, match="1 of 3 inputs have no result"):
        sink.read_facts(tmp_path, 3)


@pytest.mark.parametrize("by", ["slice", "series"])
def test_every_row_is_counted(by, tmp_path):
    import pyarrow.dataset as pads

    with Classifier.load("small") as classifier:
        if by == "slice":
            records = [
                result.to_dict() for result in classifier.predict_batches([str(PHANTOM), str(EXAMPLES / "gone")])
            ]
        else:
            pytest.importorskip("pydicom")
            records = [result.to_dict() for result in classifier.predict_series([str(PHANTOM), str(EXAMPLES / "gone")])]
    (answer,) = (record for record in records if "label" in record)
    warned = {"code": "aspect", "message": "", "value": 1.0, "limit": 2.0}
    records += [answer | {"warnings": [warned, warned]}, answer | {"warnings": [warned]}]
    if by == "series":
        records.append(answer | {"skipped": {"code": "plane", "message": "x"}, "label": None, "score": None})
        records.append(answer | {"label": None, "score": None})
    found = table(enumerate(records), columns(by))
    pads.write_dataset(
        found, tmp_path / "results", format="parquet", partitioning=[OUTCOME], partitioning_flavor="hive"
    )
    facts = sink.read_facts(tmp_path, len(records))
    answered = [record for record in records if "error" not in record and not record.get("skipped")]
    assert (facts.rows, facts.answered, facts.positive) == (len(records), len(answered), answer["positive"])
    assert facts.failures == {"missing": 1}
    assert facts.skipped == ({"plane": 1} if by == "series" else {})
    assert facts.labels == {answer["label"]: 3} | ({"no answer": 1} if by == "series" else {})
    assert facts.warnings["aspect"] == 2
    value = answer["score"] if by == "series" else answer["probabilities"][answer["positive"]]
    assert facts.histogram == [3 * (number == min(19, int(value * 20))) for number in range(20)]
    if by == "slice":
        assert facts.milliseconds["total"] == pytest.approx(3 * answer["latency_ms"]["total"])


def test_a_missing_extra_is_named(tmp_path):
    program = (
        "import sys; sys.modules['ray'] = None\n"
        f"from mri_edge.cli import run; sys.exit(run(['archive', {str(PHANTOM)!r}, '--out', {str(tmp_path / 'o')!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 4
    assert 'pip install "mri-edge[archive]"' in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_sigterm_ends_a_run_as_ctrl_c_does():
    code = (
        "import os, signal, sys\n"
        "from mri_edge.cli import run\n"
        "from mri_edge.services.archive import cluster, job\n"
        "def end(*_):\n"
        "    with cluster._same_sigterm():\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "job.run_archive = end\n"
        "sys.exit(run(['archive', 'a', '--out', 'out']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 130
    assert done.stderr == "mri-edge: interrupted. Run the same command again to continue\n"
