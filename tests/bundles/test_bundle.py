"""Bundles open only if complete, are written atomically, and never change through a hard link."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.authoring.packing import pack, unpack
from mri_edge.authoring.writer import check_target, new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle, embedded_models
from mri_edge.bundles.manifest import MANIFEST, SIGNATURE, Artifact, Manifest
from mri_edge.errors import BundleError, IntegrityError, ManifestError, OutputError, UsageError
from mri_edge.storage.atomic import sha256_of


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- making


def test_new_bundle_opens_and_verifies(tiny_bundle: Path, tiny_onnx: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    [artifact] = bundle.manifest.artifacts
    assert artifact.size_bytes == tiny_onnx.stat().st_size
    assert artifact.sha256 == sha256_of(tiny_onnx)
    assert bundle.path_of(artifact).read_bytes() == tiny_onnx.read_bytes()
    assert sorted(_contents(tiny_bundle)) == [MANIFEST, "model.onnx"]


def test_documents_are_listed_with_their_hash(tmp_path: Path, tiny_manifest: Manifest) -> None:
    with new_bundle(tmp_path / "b", tiny_manifest) as writer:
        writer.add_document("metrics.json", '{"µ": 1}')
        writer.path("report/roc.png").write_bytes(b"png")
        writer.add_document("report/roc.png")
        writer.add_document("metrics.json", '{"µ": 2}')  # again: takes the place of the first
        writer.update(threshold=0.25)
    bundle = Bundle.open(tmp_path / "b")
    bundle.verify()
    assert [document.file for document in bundle.manifest.documents] == ["report/roc.png", "metrics.json"]
    assert (tmp_path / "b" / "metrics.json").read_text(encoding="utf-8") == '{"µ": 2}'
    assert bundle.manifest.threshold == 0.25


def test_nothing_appears_when_the_block_raises(tmp_path: Path, tiny_manifest: Manifest) -> None:
    with pytest.raises(KeyboardInterrupt), new_bundle(tmp_path / "b", tiny_manifest) as writer:
        writer.add_document("metrics.json", "{}")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_could_not_be_read_again_is_not_written(tmp_path: Path, tiny_manifest: Manifest) -> None:
    with pytest.raises(ManifestError), new_bundle(tmp_path / "b", replace(tiny_manifest, threshold=float("nan"))):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_overwritten_only_on_request(tiny_bundle: Path, tiny_manifest: Manifest) -> None:
    before = _contents(tiny_bundle)
    with pytest.raises(UsageError, match="a bundle is there already"), new_bundle(tiny_bundle, tiny_manifest):
        pytest.fail("the block must not run")
    assert _contents(tiny_bundle) == before
    with new_bundle(tiny_bundle, tiny_manifest, overwrite=True):
        pass
    assert list(_contents(tiny_bundle)) == [MANIFEST]


def test_a_folder_without_a_bundle_is_never_overwritten(
    tmp_path: Path, tiny_bundle: Path, tiny_manifest: Manifest
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="is not a bundle"), new_bundle(home, tiny_manifest, overwrite=True):
        pytest.fail("the block must not run")
    with pytest.raises(UsageError, match="is not a bundle"), rewrite_bundle(Bundle.open(tiny_bundle), home):
        pytest.fail("the block must not run")
    assert (home / "thesis.tex").read_text() == "years"


def test_check_free(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(tmp_path / "new" / "deep")
    check_target(tiny_bundle, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        check_target(tmp_path / "file")
    with pytest.raises(UsageError, match="a bundle is there already"):
        check_target(tiny_bundle)


def test_check_free_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        check_target(tmp_path / "file" / "bundle")


def test_check_free_sees_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(OutputError, match="read-only"):
        check_target(tmp_path / "bundle")


# --- changing


def test_rewriting_adds_and_replaces(tiny_bundle: Path, tiny_artifact: Artifact) -> None:
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.path("model.int8.onnx").write_bytes(b"smaller")
        stamped = writer.add_artifact(replace(tiny_artifact, file="model.int8.onnx", precision="int8"))
        assert stamped.size_bytes == 7
    bundle = Bundle.open(tiny_bundle)
    bundle.verify()
    assert [artifact.file for artifact in bundle.manifest.artifacts] == ["model.onnx", "model.int8.onnx"]


def test_rewriting_a_copy_leaves_the_original(tiny_bundle: Path, tmp_path: Path, tiny_artifact: Artifact) -> None:
    before = _contents(tiny_bundle)
    with rewrite_bundle(Bundle.open(tiny_bundle), tmp_path / "copy") as writer:
        # The copy's files are hard links: writing must not reach the original through them.
        writer.path("model.onnx").write_bytes(b"changed")
        writer.add_artifact(tiny_artifact)
        writer.add_document("metrics.json", "{}")
    assert _contents(tiny_bundle) == before
    Bundle.open(tiny_bundle).verify()
    Bundle.open(tmp_path / "copy").verify()
    assert (tmp_path / "copy" / "model.onnx").read_bytes() == b"changed"


def test_rewriting_that_fails_leaves_the_bundle(tiny_bundle: Path, tiny_artifact: Artifact) -> None:
    before = _contents(tiny_bundle)
    with pytest.raises(ZeroDivisionError), rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.path("model.onnx").write_bytes(b"half")
        writer.add_artifact(tiny_artifact)
        raise ZeroDivisionError
    assert _contents(tiny_bundle) == before
    assert [path.name for path in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_rewriting_keeps_the_named_files(tiny_bundle: Path, tmp_path: Path) -> None:
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.add_document("metrics.json", "{}")
        writer.add_document("report/page.html", "<p>")
    with rewrite_bundle(Bundle.open(tiny_bundle), tmp_path / "slim", keep=["model.onnx"]):
        pass
    slim = Bundle.open(tmp_path / "slim")
    assert [entry.file for entry in slim.entries()] == ["model.onnx"]
    assert sorted(_contents(tmp_path / "slim")) == [MANIFEST, "model.onnx"]


def test_rewriting_keeps_other_files_in_the_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.add_document("metrics.json", "{}")
    (tiny_bundle / "report").mkdir()
    (tiny_bundle / "report" / "page.html").write_text("mine")
    (tiny_bundle / "link").symlink_to("report")
    (tiny_bundle / SIGNATURE).write_text("of what it was")
    with rewrite_bundle(Bundle.open(tiny_bundle), keep=["model.onnx"]):
        pass
    with rewrite_bundle(Bundle.open(tiny_bundle), tmp_path / "copy"):
        pass
    assert sorted(_contents(tiny_bundle)) == [MANIFEST, "model.onnx", "report/page.html"]
    assert (tiny_bundle / "link").readlink() == Path("report")
    assert sorted(_contents(tmp_path / "copy")) == [MANIFEST, "model.onnx"]


def test_rewriting_keeps_files_that_are_added_meanwhile(tiny_bundle: Path) -> None:
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        (tiny_bundle / "NOTES.txt").write_text("mine")
        (tiny_bundle / "metrics.json").write_text("not that of the bundle")
        writer.add_document("metrics.json", "{}")
    assert (tiny_bundle / "NOTES.txt").read_text() == "mine"
    Bundle.open(tiny_bundle).verify()


def test_two_programs_never_change_a_bundle_at_the_same_time(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="folders have no locks on Windows")
    bundle = Bundle.open(tiny_bundle)
    (tmp_path / "link").symlink_to(tiny_bundle)
    with rewrite_bundle(bundle) as writer:
        for name in (tiny_bundle, tmp_path / "link"):
            with pytest.raises(UsageError, match="is changing this bundle"), rewrite_bundle(Bundle.open(name)):
                pytest.fail("the block must not run")
        writer.add_document("metrics.json", "{}")
    with pytest.raises(UsageError, match="changed this bundle meanwhile"), rewrite_bundle(bundle):
        pytest.fail("what the other program added would be lost")
    Bundle.open(tiny_bundle).path_of(Bundle.open(tiny_bundle).manifest.documents[0])


def test_rewriting_refuses_a_bundle_that_was_replaced_meanwhile(tiny_bundle: Path, tiny_manifest: Manifest) -> None:
    with (
        pytest.raises(UsageError, match="changed this bundle meanwhile"),
        rewrite_bundle(Bundle.open(tiny_bundle)),
        new_bundle(tiny_bundle, tiny_manifest, overwrite=True) as writer,  # as ``train --overwrite``
    ):
        writer.update(name="newer")
    assert Bundle.open(tiny_bundle).manifest.name == "newer"


def test_rewriting_copies_where_links_cannot_be_made(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with rewrite_bundle(Bundle.open(tiny_bundle), tmp_path / "copy"):
        pass
    Bundle.open(tmp_path / "copy").verify()


# --- damaged


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_changed_byte_is_found_before_the_file_is_used(tiny_bundle: Path, place: int) -> None:
    path = tiny_bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    bundle = Bundle.open(tiny_bundle)  # sizes are right: opening is cheap and does not hash
    with pytest.raises(IntegrityError, match=r"model\.onnx: SHA-256 is .*, the manifest says"):
        bundle.path_of(bundle.artifact("model.onnx"))
    with pytest.raises(IntegrityError):
        bundle.verify()


@pytest.mark.parametrize("size", [0, 1000, None])
def test_truncated_or_longer_file_is_found_on_opening(tiny_bundle: Path, size: int | None) -> None:
    path = tiny_bundle / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content + b"\0" if size is None else content[:size])
    with pytest.raises(IntegrityError, match="bytes, the manifest says"):
        Bundle.open(tiny_bundle)


def test_missing_file_is_found_on_opening(tiny_bundle: Path) -> None:
    (tiny_bundle / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match="listed in the manifest but cannot be read"):
        Bundle.open(tiny_bundle)


def test_file_that_is_a_folder_is_an_integrity_error(tiny_bundle: Path) -> None:
    path = tiny_bundle / "model.onnx"
    path.unlink()
    path.mkdir()
    with pytest.raises(IntegrityError):
        Bundle.open(tiny_bundle).verify()


def test_missing_manifest(tiny_bundle: Path) -> None:
    (tiny_bundle / MANIFEST).unlink()
    with pytest.raises(ManifestError, match=r"no manifest\.json in it"):
        Bundle.open(tiny_bundle)


def test_a_manifest_that_is_huge_or_a_folder_is_refused(tiny_bundle: Path) -> None:
    path = tiny_bundle / MANIFEST
    path.write_bytes(path.read_bytes() + b" " * (17 << 20))
    with pytest.raises(ManifestError, match="larger than 16 MiB"):
        Bundle.open(tiny_bundle)
    path.unlink()
    path.mkdir()
    with pytest.raises(BundleError, match="cannot read"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "a/../../secret", "C:\\secret", "nul\0", "", "\ud800"])
def test_files_outside_the_bundle_are_never_read(tiny_bundle: Path, file: str) -> None:
    path = tiny_bundle / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["artefacts"][0]["file"] = file
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match=r"files must be inside the bundle|surrogates not allowed"):
        Bundle.open(tiny_bundle)


# --- finding


def test_an_unknown_model_lists_the_embedded_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder") as caught:
        Bundle.open(tmp_path / "none")
    assert str((embedded_models() and ", ".join(embedded_models())) or "none") in caught.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is not a packed bundle"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize("name", ["../models", "..", "nul\0", "/"])
def test_embedded_models_are_found_by_plain_names_only(name: str) -> None:
    with pytest.raises(BundleError):
        Bundle.open(name)


def test_an_empty_name_is_a_usage_error() -> None:
    for opened in (Bundle.open, Bundle.open_to_change):
        with pytest.raises(UsageError, match=r"a model must have a name") as caught:
            opened("")
        assert "lite" in caught.value.hint


def test_names_of_folders_are_not_embedded_models(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle)
    assert Bundle.open(".").manifest.name == "tiny"
    (tiny_bundle / "below").mkdir()
    monkeypatch.chdir(tiny_bundle / "below")
    assert Bundle.open("..").manifest.name == "tiny"


def test_an_embedded_model_takes_precedence_over_a_folder_of_its_name(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    shutil.move(tiny_bundle, "lite")
    assert Bundle.open("small").manifest.name == "small"
    assert caplog.text == ""
    assert Bundle.open().manifest.name == "lite"
    assert "using the embedded model. The bundle in the current folder is ./lite" in caplog.text
    here = Bundle.open("./lite")
    assert here.manifest.name == "tiny"
    assert Bundle.open(here.folder).manifest.name == "tiny"


def test_artifact_by_its_long_and_short_name(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert bundle.artifact("onnx") is bundle.artifact("model.onnx")
    with pytest.raises(UsageError, match=r"no artifact 'tflite'") as caught:
        bundle.artifact("tflite")
    assert "model.onnx" in caught.value.hint


def test_a_bundle_may_be_moved(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.move(tiny_bundle, tmp_path / "elsewhere")
    Bundle.open(tmp_path / "elsewhere").verify()


def test_a_copy_shares_no_file_with_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    """The copy may be of the installed package, and changing the copy must not change the package."""
    with rewrite_bundle(Bundle.open(tiny_bundle), tmp_path / "copy"):
        pass
    assert not (tmp_path / "copy" / "model.onnx").samefile(tiny_bundle / "model.onnx")
    assert (tmp_path / "copy" / "model.onnx").stat().st_nlink == 1


def test_a_file_that_was_changed_is_not_copied(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    content = bytearray((tiny_bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tiny_bundle / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError), rewrite_bundle(bundle, tmp_path / "copy"):
        pass
    assert not (tmp_path / "copy").exists()


def test_keys_of_a_newer_release_are_ignored_at_every_level_and_dropped_when_written(tiny_bundle: Path) -> None:
    path = tiny_bundle / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["newer"] = manifest["training"]["newer"] = manifest["artefacts"][0]["newer"] = {"a": [1]}
    manifest["preprocessing"]["newer"] = manifest["artefacts"][0]["input"]["newer"] = 1
    path.write_text(json.dumps(manifest))
    bundle = Bundle.open(tiny_bundle)
    assert bundle.manifest.name == "tiny"
    with rewrite_bundle(bundle):
        pass
    assert "newer" not in path.read_text()


@pytest.mark.parametrize("version", [0, 4, 99, "1", None, 1.5, [1]])
def test_another_schema_version_is_refused_with_a_message(tiny_bundle: Path, version: object) -> None:
    path = tiny_bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": version}))
    with pytest.raises(
        ManifestError, match=r"schema version must be 1 to 3. Received: .*A newer bundle needs a newer mri-edge"
    ):
        Bundle.open(tiny_bundle)


def test_a_title_distinguishes_two_trainings_and_stays_when_a_bundle_is_copied(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert re.fullmatch(r"tiny 1 \([0-9a-f]{8}\)", manifest.title)
    [artifact] = manifest.artifacts
    for other in (
        replace(manifest, artifacts=(replace(artifact, sha256="0" * 64),)),
        replace(manifest, threshold=0.4),
        replace(manifest, labels=("yes", "no")),
        replace(manifest, positive=0),
    ):
        assert other.title != manifest.title
    assert replace(manifest, limits="words").title == manifest.title
    pack(Bundle.open(tiny_bundle), tmp_path / "packed")
    assert Bundle.open(tmp_path / "packed").manifest.title == manifest.title
    assert unpack(tmp_path / "packed", tmp_path / "unpacked").title == manifest.title
