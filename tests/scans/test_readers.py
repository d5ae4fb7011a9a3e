"""Files of a folder are recognized as scans by suffix, without opening them, or else by their first bytes."""

from __future__ import annotations

import glob
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.readers import dicom, picture
from mri_edge.scans.sources import expand

JPEG = (Path(__file__).parents[2] / "examples" / "phantom-1.jpg").read_bytes()


def _expand(folder: Path) -> tuple[list[str], list[str]]:
    messages: list[str] = []
    found = list(expand([str(folder)], notify=messages.append))
    assert not any(isinstance(scan, InputError) for scan in found)
    return [Path(str(scan)).name for scan in found], messages


def test_a_folder_takes_scans_by_content_and_reports_the_rest(tmp_path: Path) -> None:
    contents = {
        "IM0001": JPEG,  # no suffix, and begins like a JPEG
        "scan.xyz": JPEG,  # an unknown suffix
        "a.jpg": b"not looked into",
        "notes.txt": b"some text",
        "unknown.bin": bytes(range(256)),
        "raw": b"\x00\x01\x02",
        "empty": b"",
        ".hidden": JPEG,
        "b.jpg.part": JPEG,  # still being copied
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names, [message] = _expand(tmp_path)
    assert names == ["IM0001", "a.jpg", "scan.xyz"]
    assert message.startswith(f"{tmp_path}: 6 files skipped: ")
    for kind in ("1 .txt (notes.txt)", "1 .bin (unknown.bin)", "2 no suffix (empty, raw)", "1 hidden (.hidden)"):
        assert kind in message


@pytest.mark.parametrize("name", ["._a.jpg", "._a.dcm", ".a.nii.gz", "._a", "._a.zip"])
def test_hidden_files_of_a_folder_are_no_scans_whatever_their_suffix(tmp_path: Path, name: str) -> None:
    """macOS writes ``._NAME`` beside each file on a disk that is not its own."""
    (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    messages: list[str] = []
    found = list(expand([str(tmp_path)], recursive=True, notify=messages.append, also=(".zip",)))
    assert found == [str(tmp_path / "a.jpg")]
    assert messages == [f"{tmp_path}: 1 file skipped: hidden ({name})"]
    assert not readers.recognizes(tmp_path / name)
    assert list(expand([str(tmp_path / name)])) == [str(tmp_path / name)]  # whoever names it means it


def test_folders_may_be_nested_deeper_than_calls(tmp_path: Path) -> None:
    """Folders and files are in the order of their names, whatever their depth."""
    names = ["a.jpg", "b/a.jpg", "b/c/d.jpg", "b/d.jpg", "c.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    folders = [tmp_path / "x"]
    for _ in range(sys.getrecursionlimit() + 100):
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    deep = folders[-1] / "z.jpg"
    deep.write_bytes(JPEG)
    try:
        assert list(expand([str(tmp_path)], recursive=True)) == [*(str(tmp_path / name) for name in names), str(deep)]
    finally:
        deep.unlink()  # pytest cannot remove a folder of this depth
        for folder in reversed(folders):
            folder.rmdir()


TREE = ["a.jpg", "b.png", "s/a.jpg", "s/t/a.jpg", "s/t/u/a.jpg", "s.jpg/a.jpg", ".h/a.jpg", "s/.h.jpg", "[x]/s/a.jpg"]
PATTERNS = [
    "**", "**/", "**/*", "**/*.jpg", "**/a.jpg", "*/**/*.jpg", "s/**", "s/**/*.jpg", "s/**/t/*.jpg", "**/t/**/*.jpg",
    "**/**/a.jpg", "s*/**/a*", "[[]x]/**/*.jpg", "**/[[]x]/**/*.jpg", "s**/a.jpg", "**.jpg", "x/**/*.jpg",
    "**/.h/*.jpg", "./**/*.jpg", "**/s/*", "s/**//a.jpg",
]  # fmt: skip


def _as_glob_finds(pattern: str) -> list[str]:
    return sorted(path for path in set(glob.glob(pattern, recursive=True)) if not os.path.isdir(path))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_match_what_glob_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, absolute: bool
) -> None:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    monkeypatch.chdir(tmp_path)
    pattern = f"{tmp_path}/{pattern}" if absolute else pattern
    found = [path for path in expand([pattern]) if not isinstance(path, InputError)]
    assert found == _as_glob_finds(pattern)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links need POSIX")
def test_any_depth_in_a_pattern_follows_no_links_to_folders(tmp_path: Path) -> None:
    """With glob, one link to a parent repeats each scan 41 times, and two keep it busy for ever."""
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    for folder in (study / "a", elsewhere):
        folder.mkdir(parents=True)
        (folder / "scan.jpg").write_bytes(JPEG)
    for link, target in {"up": "..", "root": "../..", "other": elsewhere}.items():
        (study / "a" / link).symlink_to(target)
    (tmp_path / "link").symlink_to(study)
    messages: list[str] = []
    for named in ("study", "link"):
        pattern = f"{tmp_path}/{named}/**/*.jpg"
        assert list(expand([pattern], notify=messages.append)) == [f"{tmp_path}/{named}/a/scan.jpg"]
        assert messages.pop() == f"{pattern}: 3 files skipped: link to a folder (up, root, other)"


def test_a_dash_on_standard_input_is_an_error_and_the_other_lines_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a.jpg\n-\n\nb.jpg\n")))
    first, error, last = expand(["-"])
    assert (first, last) == ("a.jpg", "b.jpg")
    assert isinstance(error, InputError)
    assert (error.source, error.hint) == ("-", "Pass a file of this name as ./-")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_every_kind_of_picture_is_recognized_by_its_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "IM0001"
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(path, kind)
    assert readers.recognizes(path)
    assert readers.load(path).shape == (9, 7, 3)


@pytest.mark.parametrize("head", [b"BM is short for something", b"P5\n", b"II", b"RIFF    WAVE", b"\xff\xd8", b"GIF"])
def test_other_contents_are_not_taken_for_pictures(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "IM0001").write_bytes(head)
    assert not readers.recognizes(tmp_path / "IM0001")


def test_a_dicom_file_with_a_tiff_preamble_is_not_a_picture() -> None:
    head = b"II*\0".ljust(128, b"\0") + b"DICM"
    assert not picture.recognizes(head, "IM0001")
    assert dicom.recognizes(head, "IM0001")


def test_a_known_suffix_is_enough_and_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "first_bytes", lambda path: pytest.fail("the file was looked into"))
    for index in range(100):
        (tmp_path / f"{index}.PNG").touch()
    names, messages = _expand(tmp_path)
    assert (len(names), messages) == (100, [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")
def test_a_pipe_without_a_suffix_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "IM0001")
    assert not readers.recognizes(tmp_path / "IM0001")


def test_only_a_bounded_head_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    assert len(readers.first_bytes(str(tmp_path / "large"))) == readers.HEAD_BYTES
