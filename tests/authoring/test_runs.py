"""The newest bundle in ``runs/`` and the data folder of its training are found."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from mri_edge.authoring.runs import choose_bundle, last_trained, remember_data, remembered_data
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.errors import UsageError


@pytest.fixture
def make(tmp_path: Path, tiny_manifest: Manifest):
    """Return a function that makes a bundle in ``runs/`` with a given name and training time."""

    def bundle(name: str, created: str) -> Path:
        folder = tmp_path / "runs" / name
        creation = dataclasses.replace(tiny_manifest.creation, created=created)
        with new_bundle(folder, dataclasses.replace(tiny_manifest, creation=creation)):
            pass
        return folder

    return bundle


def test_the_newest_bundle_is_the_one_with_the_latest_training_record(make, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert last_trained(folder=runs) is None
    newest = make("vgg16-2", "2026-03-01T10:00:00+00:00")
    older = make("vgg16-3", "2026-03-01T11:30:00+02:00")  # 9:30 in UTC
    make("vgg16", "2026-02-01T10:00:00+00:00")
    # An export changes the files of the older bundle, but not its training time.
    with rewrite_bundle(Bundle.open(older)) as writer:
        writer.add_document("note.txt", "exported")
    assert last_trained(folder=runs).folder == newest
    assert last_trained(lambda bundle: bundle.folder != newest, runs).folder == older


def test_an_incomplete_bundle_is_skipped(make, tmp_path: Path) -> None:
    complete = make("vgg16", "2026-01-01T00:00:00+00:00")
    shutil.copytree(make("broken", "2026-05-01T00:00:00+00:00"), tmp_path / "runs" / ".vgg16.new-0123abcd")
    (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
    make("timeless", "some day")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "readme.txt").write_text("")
    assert last_trained(folder=tmp_path / "runs").folder == complete


def test_the_data_folder_is_remembered_outside_the_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    bundle, data = Bundle.open(tiny_bundle), tmp_path / os.fsdecode(b"sch\xe4del")  # not UTF-8
    data.mkdir()
    with pytest.raises(UsageError, match=r"no record of the folder.*--data DIR"):
        remembered_data(bundle)
    monkeypatch.chdir(tmp_path)
    remember_data(bundle, Path(data.name))
    monkeypatch.chdir("/")
    assert remembered_data(bundle) == data
    bundle.check_complete()  # nothing was added to the bundle
    data.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"no longer there.*--data DIR"):
        remembered_data(bundle)


@pytest.mark.parametrize("fingerprint", ["/elsewhere/file", "../../file", "\0", "A" * 64, ""])
def test_a_bundle_does_not_choose_where_its_data_is_remembered(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    manifest["training"]["data_fingerprint"] = fingerprint
    (tiny_bundle / "manifest.json").write_text(json.dumps(manifest))
    bundle, before = Bundle.open(tiny_bundle), sorted(tmp_path.rglob("*"))
    remember_data(bundle, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UsageError, match="no record of the folder"):
        remembered_data(bundle)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": 5}', b"\xff", b'{"other": "x"}'])
def test_a_damaged_record_of_the_data_folder_is_ignored(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    bundle = Bundle.open(tiny_bundle)
    remember_data(bundle, tmp_path)
    [note] = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    note.write_bytes(content)
    with pytest.raises(UsageError, match="no record"):
        remembered_data(bundle)


def test_training_continues_if_the_data_folder_cannot_be_recorded(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember_data(Bundle.open(tiny_bundle), tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "~")  # a user without a home
    remember_data(Bundle.open(tiny_bundle), tmp_path)


def test_position_and_option_must_name_the_same_bundle() -> None:
    assert choose_bundle("a", None) == choose_bundle(None, "a") == choose_bundle("a", "a") == "a"
    assert choose_bundle(None, None) is None
    with pytest.raises(UsageError, match="two bundles"):
        choose_bundle("a", "b")
