"""Writes reach the disk in an order that survives a power cut: content before its name, new before old is removed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import new_bundle
from mri_edge.bundles.manifest import Artifact, Manifest
from mri_edge.cli import run
from mri_edge.services.watch.outbox import Outbox
from mri_edge.storage.atomic import atomic_file, atomic_move, atomic_write

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows syncs no folders")


@dataclass(frozen=True)
class Event:
    """A step on disk: ``sync`` of a file (with its content then) or folder, ``rename`` to a path, or ``remove``."""

    kind: str
    path: Path
    content: bytes | None = None


class Storage:
    """Record each step below a folder, and carry it out."""

    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self.events: list[Event] = []

    def find(self, number: int) -> Path:
        """Return the path of an open file or folder, found by device and inode."""
        wanted = os.fstat(number)
        for root in self.roots:
            for path in (root, *root.rglob("*")):
                if not path.is_symlink() and os.path.samestat(path.lstat(), wanted):
                    return path
        return Path("?")

    def place(self, kind: str, path: Path) -> int:
        """Return the position of the first such step, or fail if there is none."""
        found = [index for index, event in enumerate(self.events) if (event.kind, event.path) == (kind, path)]
        assert found, f"no {kind} of {path} among {self.events}"
        return found[0]

    def synced_before(self, place: int, content: bytes) -> list[int]:
        """Return the syncs before a step of a file that held all of ``content`` at that time."""
        return [
            index
            for index, event in enumerate(self.events[:place])
            if event.kind == "sync" and event.content == content
        ]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    recorder = Storage(tmp_path)
    fsync, unlink = os.fsync, os.unlink

    def record_sync(number: int) -> None:
        path = recorder.find(number)
        # Read anew from the file system: what Python still holds back in a buffer is not there.
        recorder.events.append(Event("sync", path, path.read_bytes() if path.is_file() else None))
        fsync(number)

    def record_rename(step, source, target, **options):
        step(source, target, **options)
        recorder.events.append(Event("rename", Path(target)))

    def record_unlink(path, **options):
        unlink(path, **options)
        recorder.events.append(Event("remove", Path(path)))

    monkeypatch.setattr(os, "fsync", record_sync)
    for name in ("replace", "rename"):
        step = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, step=step, **options: record_rename(step, *args, **options))
    for name in ("unlink", "remove"):
        monkeypatch.setattr(os, name, record_unlink)
    if accessor := getattr(pathlib, "_NormalAccessor", None):  # Path of Python 3.10 keeps its own reference
        monkeypatch.setattr(accessor, "unlink", staticmethod(record_unlink))
    return recorder


@pytest.fixture
def other_disk(tmp_path: Path, storage: Storage) -> Iterator[Path]:
    """A folder on another file system."""
    import tempfile

    shared = Path("/dev/shm")  # noqa: S108
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev or not os.access(shared, os.W_OK):
        pytest.skip("there is one file system here")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        storage.roots += (Path(folder),)
        yield Path(folder)


@pytest.mark.parametrize("content", [b"short", b"long " * 100_000], ids=["in one buffer", "in many"])
def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path, storage, content):
    atomic_write(tmp_path / "a", content)
    with atomic_file(tmp_path / "b") as file:
        file.write(content[:3])
        file.write(content[3:])
    for name in ("a", "b"):
        renamed = storage.place("rename", tmp_path / name)
        assert storage.synced_before(renamed, content), "renamed before its content was on disk"


def test_a_result_and_its_name_are_on_disk_when_write_returns(tmp_path, storage):
    outbox = Outbox(tmp_path / "out")
    outbox.make()
    outbox.write("a.png", {"label": "no"})
    path = outbox.results / "a.png.json"
    renamed = storage.place("rename", path)
    assert storage.synced_before(renamed, path.read_bytes())
    assert storage.place("sync", outbox.results) > renamed, "a power cut could take the name away again"


def test_a_scan_moved_to_another_disk_is_synced_there_before_it_is_removed_here(tmp_path, storage, other_disk):
    content = bytes(range(256)) * 1000
    source, target = tmp_path / "scan", other_disk / "scan"
    source.write_bytes(content)
    atomic_move(source, target)
    assert target.read_bytes() == content
    renamed, removed = storage.place("rename", target), storage.place("remove", source)
    assert storage.synced_before(renamed, content), "the copy was not on disk when it took its name"
    assert renamed < storage.place("sync", other_disk) < removed, (
        "the scan was removed before its copy had a name on disk"
    )


@pytest.mark.parametrize("disks", [1, 2])
def test_watch_has_the_result_on_disk_before_the_scan_leaves(
    request, tmp_path, storage, tiny_manifest: Manifest, tiny_artifact: Artifact, disks
):
    with new_bundle(tmp_path / "bundle", tiny_manifest) as writer:
        writer.path("model.fake").write_text('{"input": [128, 128, 3], "classes": 2}')
        writer.add_artifact(replace(tiny_artifact, file="model.fake", format="fake"))
    incoming = tmp_path / "in"
    incoming.mkdir()
    out = (request.getfixturevalue("other_disk") if disks == 2 else tmp_path) / "out"
    for name, content in (("a.png", None), ("bad.png", b"no picture")):
        if content is None:
            Image.fromarray(np.full((40, 40), 99, np.uint8)).save(incoming / name)
        else:
            (incoming / name).write_bytes(content)
    storage.events.clear()
    model = str(tmp_path / "bundle")
    assert run(["watch", str(incoming), "--out", str(out), "--once", "--settle", "0", "--model", model]) == 1
    for name, folder in (("a.png", "done"), ("bad.png", "failed")):
        result = out / "results" / f"{name}.json"
        written = storage.place("rename", result)
        moved = storage.place("rename", out / folder / name)
        assert storage.synced_before(written, result.read_bytes())
        syncs = [
            index
            for index, event in enumerate(storage.events)
            if (event.kind, event.path) == ("sync", out / "results") and written < index < moved
        ]
        assert syncs, "the scan left before the name of its result was on disk"
        if disks == 2:
            hidden = [event.path for event in storage.events if event.path.name.startswith(f".{name}.claim-")]
            assert moved < storage.place("remove", hidden[0])
