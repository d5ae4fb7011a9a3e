"""The results journal and atomic writes, judged by what is on disk afterwards, on both sides of each limit."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier
from mri_edge.errors import InputError, MriEdgeError, OutputError
from mri_edge.inference.journal import Journal
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.storage.atomic import (
    atomic_folder,
    atomic_move,
    atomic_write,
    clear_leftovers,
    fingerprint,
    make_folder,
    sha256_of,
)

TITLE = "tiny 1"


Answer = Callable[..., Prediction]


@pytest.fixture
def answer(tiny_bundle: Path) -> Answer:
    """Return the answer of a model for the scan of this name."""
    with Classifier.load(tiny_bundle) as classifier:
        given = classifier.predict(np.zeros((128, 128), np.uint8))

    def make_prediction(file: str | None, model: str = TITLE) -> Prediction:
        return replace(given, source=file, model=model)

    return make_prediction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


# --- the results file


def test_only_answered_scans_are_skipped_and_each_other_scan_is_yielded_once(path, answer):
    with Journal(path, TITLE) as journal:
        journal.write(answer("a.png"))
        journal.write(Failure("b.png", InputError("b.png: damaged")))
        journal.write(answer(None))
    error = InputError("d.png: is gone", source="d.png")
    with Journal(path, TITLE) as journal:
        assert list(journal.remaining(["a.png", "b.png", "c.png", error, "c.png"])) == [
            "b.png",
            "c.png",
            error,
        ]
        assert journal.skipped == 2


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_truncated_last_line_is_dropped_and_the_lines_before_it_stay(path, answer, cut):
    with Journal(path, TITLE) as journal:
        for name in ("a.png", "b.png", "c.png"):
            journal.write(answer(name))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(content[:-cut])
    with Journal(path, TITLE) as journal:
        assert path.read_bytes() == b"".join(lines[:2])
        assert list(journal.remaining(["a.png", "b.png", "c.png"])) == ["c.png"]
        journal.write(answer("c.png"))
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", ["not json", "[1]", "null", '{"file": "a.png"}', "{}"])
def test_a_file_that_is_not_a_journal_is_refused_and_unchanged(path, answer, line):
    for number, before in ((1, []), (3, ["a.png", "b.png"])):
        path.unlink(missing_ok=True)
        with Journal(path, TITLE) as journal:
            for name in before:
                journal.write(answer(name))
        text = path.read_text() + f"{line}\n"
        path.write_text(text)
        with pytest.raises(MriEdgeError, match=f"line {number} is not a result"):
            Journal(path, TITLE)
        assert path.read_text() == text


def test_a_journal_of_another_model_is_refused_and_unchanged(path, answer):
    with Journal(path, "other 2") as journal:
        journal.write(answer("a.png", model="other 2"))
    text = path.read_text()
    with pytest.raises(MriEdgeError, match="line 1 is an answer of 'other 2', but the model is 'tiny 1'"):
        Journal(path, TITLE)
    assert path.read_text() == text
    with Journal(path, "other 2") as journal:  # the refused one holds no lock
        assert list(journal.remaining(["a.png", "b.png"])) == ["b.png"]


def test_only_one_program_at_a_time_writes_a_journal(path, answer):
    with Journal(path, TITLE) as journal:
        with pytest.raises(MriEdgeError, match="another mri-edge writes it"):
            Journal(path, TITLE)
        journal.write(answer("a.png"))
    with Journal(path, TITLE) as journal:
        assert list(journal.remaining(["a.png"])) == []


def test_a_journal_must_be_a_regular_file(tmp_path):
    with pytest.raises(MriEdgeError, match="not a regular file"):
        Journal(tmp_path, TITLE)
    with pytest.raises(MriEdgeError, match="not a regular file"):
        Journal(Path(os.devnull), TITLE)
    with pytest.raises(OutputError, match="cannot write"):
        Journal(tmp_path / "missing" / "results.jsonl", TITLE)


def test_a_line_that_the_disk_takes_only_in_part_is_an_error_and_is_dropped_next_time(path, answer):
    """A limit on file sizes simulates a full disk: the system writes what fits and returns how much that was."""
    with Journal(path, TITLE) as journal:
        journal.write(answer("a.png"))
        first = path.read_bytes()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + 20, before[1]))
        try:
            with pytest.raises(OutputError, match="the disk is full"):
                journal.write(answer("b.png"))
            with pytest.raises(OutputError, match="cannot write"):
                journal.write(answer("b.png"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(path.read_bytes()) == len(first) + 20
    with Journal(path, TITLE) as journal:
        assert path.read_bytes() == first
        assert list(journal.remaining(["a.png", "b.png"])) == ["b.png"]


# --- files


def test_a_fingerprint_is_that_of_its_lines():
    assert fingerprint(["one", "two"]) == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert fingerprint(["one", "two"]) != fingerprint(["onetwo"]) != fingerprint(["two", "one"])


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_the_hash_of_a_file_is_of_all_of_it(tmp_path, size):
    content = (b"0123456789abcdef" * (1 + size // 16))[:size]
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_leftovers_of_a_kill_are_cleared_and_nothing_else(tmp_path):
    kept = ["a.json", ".a.json", ".a.json.new-123", ".a.json.new-123456789", "a.json.new-12345678", ".a.new"]
    for name in [*kept, ".a.json.new-12345678", ".b.png.new-0a1b2c3d"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".c.new-87654321").mkdir()
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(kept)


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    atomic_write(tmp_path / "text", "größe\n")
    atomic_write(tmp_path / "bytes", b"\xff\r\n")
    atomic_write(tmp_path / "view", memoryview(b"seen"))
    assert [(tmp_path / name).read_bytes() for name in ("text", "bytes", "view")] == [
        "größe\n".encode(),
        b"\xff\r\n",
        b"seen",
    ]
    assert len(list(tmp_path.iterdir())) == 3


def test_parent_folders_are_made_and_a_file_in_their_place_is_an_error(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folder(tmp_path / "file")


def test_a_move_replaces_a_file_and_a_missing_source_changes_nothing(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    atomic_move(source, target)
    assert (source.exists(), target.read_text()) == (False, "new")
    with pytest.raises(OutputError, match="cannot be moved"):
        atomic_move(source, target)
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_errors_that_do_not_concern_the_new_folder_are_raised_unchanged(tmp_path):
    def fail(error: OSError) -> None:
        with atomic_folder(tmp_path / "out") as staging:
            (staging / "half").touch()
            raise error

    with pytest.raises(FileNotFoundError):
        fail(FileNotFoundError(2, "No such file", str(tmp_path / "input")))
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(tmp_path / "out") as staging:
        (staging / "no folder" / "file").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_made_below_folders_that_are_not_there_yet(tmp_path):
    with atomic_folder(tmp_path / "a" / "b" / "out") as staging:
        (staging / "file").write_text("complete")
    assert (tmp_path / "a" / "b" / "out" / "file").read_text() == "complete"
