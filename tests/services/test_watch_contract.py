"""The rules of watch for arrivals, scans in progress and results, each tested alone with a clock that the test sets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mri_edge.errors import InputError, MriEdgeError, OutputError, UsageError
from mri_edge.inference.prediction import hashed_name
from mri_edge.services.in_progress import IN_PROGRESS, InProgress
from mri_edge.services.watch.arrivals import TEMPORARY, Arrivals, claimed, stamp_of
from mri_edge.services.watch.outbox import Outbox
from mri_edge.storage import atomic
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.lock import LOCK, locked


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(path: Path, content: str = "x", modified_s: int = 1) -> Path:
    path.write_text(content)
    os.utime(path, (modified_s, modified_s))
    return path


def names(arrivals: Arrivals) -> list[str]:
    return [arrival.path.name for arrival in arrivals.look()]


# --- arrivals


def test_a_scan_is_complete_once_it_was_unchanged_for_the_settling_time(incoming, clock):
    arrivals = Arrivals(incoming, 2.0, clock=clock)
    write(incoming / "a.png")
    assert names(arrivals) == []
    assert arrivals.pending == 1
    clock.now += 1.75
    assert names(arrivals) == []
    clock.now += 0.25
    [found] = arrivals.look()
    assert (found.path, found.unchanged_s, found.stamp) == (incoming / "a.png", 2.0, stamp_of(incoming / "a.png"))
    assert arrivals.pending == 0
    assert names(arrivals) == ["a.png"]  # until it is moved


def test_without_a_settling_time_a_scan_is_complete_at_once(incoming, clock):
    write(incoming / "a.png")
    arrivals = Arrivals(incoming, 0, clock=clock)
    assert [(arrival.path.name, arrival.unchanged_s) for arrival in arrivals.look()] == [("a.png", 0)]


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_any_change_restarts_the_settling_time(incoming, clock, change):
    arrivals = Arrivals(incoming, 2.0, clock=clock)
    path = write(incoming / "a.png")
    other = write(incoming / "b.png")
    arrivals.look()
    clock.now += 1.5
    if change == "size":
        write(path, "xx")
    elif change == "time":
        os.utime(path, (2, 2))
    else:
        os.replace(write(incoming / ".copy"), path)
    arrivals.look()
    clock.now += 1.5
    assert names(arrivals) == [other.name]
    assert arrivals.pending == 1
    clock.now += 0.5
    assert sorted(names(arrivals)) == ["a.png", "b.png"]


def test_scans_are_ordered_by_time_and_then_by_name(incoming, clock):
    for name, modified_s in (("c.png", 5), ("a.png", 7), ("d.png", 3), ("b.png", 5)):
        write(incoming / name, modified_s=modified_s)
    assert names(Arrivals(incoming, 0, clock=clock)) == ["d.png", "b.png", "c.png", "a.png"]


def test_temporary_files_are_skipped_and_other_files_are_reported(incoming, clock):
    hidden = [".a.png", *(f"b.png{ending}" for ending in TEMPORARY), "C.PNG.PART"]
    for name in [*hidden, "notes.txt", "D.PNG", "e.jpeg"]:
        write(incoming / name)
    (incoming / "folder.png").mkdir()
    (incoming / "f.png").symlink_to(incoming / "D.PNG")
    os.mkfifo(incoming / "g.png")
    arrivals = Arrivals(incoming, 0, clock=clock)
    assert sorted(names(arrivals)) == ["D.PNG", "e.jpeg"]
    assert arrivals.unrecognized >= {"notes.txt", "f.png"}
    assert not arrivals.unrecognized & {*hidden, "folder.png", "D.PNG", "e.jpeg"}
    assert arrivals.pending == 0
    assert all(arrivals.has(name) for name in ("D.PNG", "e.jpeg", "notes.txt", "f.png"))
    assert not arrivals.has(".a.png")


def test_a_file_that_disappeared_is_forgotten(incoming, clock):
    arrivals = Arrivals(incoming, 2.0, clock=clock)
    path, stranger = write(incoming / "a.png"), write(incoming / "a.txt")
    arrivals.look()
    path.unlink()
    stranger.unlink()
    clock.now += 2
    assert names(arrivals) == []
    assert (arrivals.pending, arrivals.has("a.png"), arrivals.has("a.txt")) == (0, False, False)
    write(path)
    assert names(arrivals) == []  # a new one of that name waits anew
    assert arrivals.pending == 1


def test_a_postponed_scan_waits_from_the_time_it_was_first_seen(incoming, clock):
    arrivals = Arrivals(incoming, 2.0, clock=clock)
    write(incoming / "a.png")
    arrivals.look()
    clock.now += 2
    [found] = arrivals.look()
    arrivals.postpone(found, 10)
    assert arrivals.pending == 1
    clock.now += 7.5
    assert names(arrivals) == []
    assert arrivals.pending == 1
    clock.now += 0.5
    assert names(arrivals) == ["a.png"]


def test_a_folder_that_cannot_be_listed_raises(tmp_path, clock):
    with pytest.raises(MriEdgeError, match="cannot list"):
        Arrivals(tmp_path / "none", 0, clock=clock).look()


def test_a_stamp_is_of_plain_files_alone(tmp_path):
    path = write(tmp_path / "a", "four", modified_s=3)
    assert stamp_of(path) == (4, 3_000_000_000, path.stat().st_ino)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    assert [stamp_of(tmp_path / name) for name in ("none", ".", "link", "pipe")] == [None] * 4


# --- claims


SHA256 = "0123456789abcdef" * 4


@pytest.fixture(params=["renameat2", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to give a scan its name back: the one step of Linux, and what other systems do."""
    if request.param == "rename":
        monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)


def test_a_claimed_scan_that_was_not_moved_gets_its_name_back(incoming, clock, way):
    path = write(incoming / "a.png", "old")
    [found] = Arrivals(incoming, 0, clock=clock).look()
    with claimed(found, SHA256) as claim:
        assert claim is not None
        assert claim.read_text() == "old"
        assert names(Arrivals(incoming.parent, 0, clock=clock)) == []
        assert [other.name for other in incoming.iterdir()] == [claim.name]
    assert path.read_text() == "old"
    with claimed(found, SHA256) as claim:
        assert claim is not None
        claim.unlink()
    assert list(incoming.iterdir()) == []


def test_a_scan_that_changed_or_is_gone_is_not_claimed(incoming, clock, way):
    path = write(incoming / "a.png", "old")
    [found] = Arrivals(incoming, 0, clock=clock).look()
    os.replace(write(incoming / ".new", "new"), path)
    with claimed(found, SHA256) as claim:
        assert claim is None
    assert [other.name for other in incoming.iterdir()] == ["a.png"]
    assert path.read_text() == "new"
    path.unlink()
    with claimed(found, SHA256) as claim:
        assert claim is None
    assert list(incoming.iterdir()) == []


def test_a_scan_that_cannot_be_claimed_raises(incoming, clock, monkeypatch):
    write(incoming / "a.png")
    [found] = Arrivals(incoming, 0, clock=clock).look()
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(OutputError, match=r"a\.png: cannot be moved \(Read-only"), claimed(found, SHA256):
        pytest.fail("the block must not run")


def test_a_later_scan_of_the_name_is_not_overwritten_and_the_claimed_one_comes_after_it(incoming, clock, way):
    path = write(incoming / "a.png", "old")
    arrivals = Arrivals(incoming, 0, clock=clock)
    [found] = arrivals.look()
    with claimed(found, SHA256):
        write(path, "new")
    for _ in range(2):
        assert names(arrivals) == ["a.png"]
        assert path.read_text() == "new"
    path.unlink()
    assert names(arrivals) == ["a.png"]
    assert path.read_text() == "old"
    assert list(incoming.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a\nb.claim-01234567.png", "x" * 196 + ".png", "ü" * 125 + ".png"])
def test_a_scan_that_a_kill_left_under_its_hidden_name_is_found(incoming, clock, name):
    write(incoming / name)
    [found] = Arrivals(incoming, 0, clock=clock).look()
    killed = claimed(found, SHA256)
    claim = killed.__enter__()
    assert claim is not None
    assert claim.name.startswith(".")
    [again] = Arrivals(incoming, 0, clock=clock).look()
    assert again.stamp == found.stamp
    # Of a long name as much is left as the name of the result needs.
    outbox = Outbox(incoming.parent / "out")
    outbox.make()
    kept, _ = outbox.place(name, SHA256)
    outbox.write(kept, {"sha256": SHA256})
    assert outbox.place(again.path.name, SHA256) == (kept, {"sha256": SHA256})


# --- scans in progress


def test_each_scan_in_progress_has_its_own_count(tmp_path):
    """Each new object simulates a restart after the program died on the scan it began last."""
    assert InProgress(tmp_path).begin("a.png", "aa") == 0
    assert InProgress(tmp_path).begin("b.png", "bb") == 0
    third = InProgress(tmp_path)
    assert third.begin("a.png", "aa") == 1
    third.end("aa")
    assert third.begin("b.png", "bb") == 1
    fourth = InProgress(tmp_path)
    assert fourth.begin("b.png", "bb") == 2
    fourth.end("bb")
    assert InProgress(tmp_path).begin("b.png", "bb") == 0


def test_a_suspect_is_known_by_its_name_until_it_ends_in_order(tmp_path):
    InProgress(tmp_path).begin("a.png", "aa")
    later = InProgress(tmp_path)
    assert [later.is_suspect(name) for name in ("a.png", "aa", "b.png")] == [True, False, False]
    later.end("aa")
    assert not later.is_suspect("a.png")
    assert not (tmp_path / IN_PROGRESS).exists()
    later.end("never begun")


def test_the_other_of_two_suspects_stays_recorded(tmp_path):
    first = InProgress(tmp_path)
    first.begin("a.png", "aa")
    InProgress(tmp_path).begin("b.png", "bb")
    last = InProgress(tmp_path)
    last.end("bb")
    assert InProgress(tmp_path).is_suspect("a.png")
    assert not InProgress(tmp_path).is_suspect("b.png")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"aa": 1}', '{"aa": ["a.png"]}', '{"aa": ["a.png", "x"]}'])
def test_an_invalid_record_is_ignored(tmp_path, text):
    (tmp_path / IN_PROGRESS).write_text(text)
    assert InProgress(tmp_path).begin("a.png", "aa") == 0


def test_a_record_that_cannot_be_written_raises(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        InProgress(tmp_path / "none").begin("a.png", "aa")


# --- where results go


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    made = Outbox(tmp_path / "out")
    made.make()
    return made


def scan(folder: Path, name: str, content: str = "x") -> tuple[Path, str]:
    path = write(folder / name, content)
    return path, sha256_of(path)


def test_a_result_is_found_again_by_the_hash_of_its_scan(outbox, incoming):
    path, sha256 = scan(incoming, "a.png")
    assert outbox.place("a.png", sha256) == ("a.png", None)
    outbox.write("a.png", {"file": "a.png", "sha256": sha256})
    assert outbox.place("a.png", sha256) == ("a.png", {"file": "a.png", "sha256": sha256})
    outbox.move(path, "a.png", failed=False)
    assert (outbox.done / "a.png").read_text() == "x"
    assert outbox.place("a.png", sha256)[0] == "a.png"


@pytest.mark.parametrize("taken", ["results/a.png.json", "done/a.png", "failed/a.png"])
def test_a_name_with_the_hash_is_used_if_the_plain_one_is_taken(outbox, incoming, taken):
    _, sha256 = scan(incoming, "a.png")
    (outbox.folder / taken).write_text('{"sha256": "another"}')
    assert outbox.place("a.png", sha256) == (f"a.{sha256[:12]}.png", None)
    (outbox.results / f"a.{sha256[:12]}.png.json").write_text("not ours")
    with pytest.raises(InputError, match="is in the way"):
        outbox.place("a.png", sha256)


@pytest.mark.parametrize("content", ["[]", "null", "{", "{}", '{"sha256": null}', "[" * 100_000])
def test_a_file_of_another_program_is_not_taken_for_a_result(outbox, incoming, content):
    _, sha256 = scan(incoming, "a.png")
    (outbox.results / "a.png.json").write_text(content)
    assert outbox.place("a.png", sha256) == (f"a.{sha256[:12]}.png", None)


def test_a_folder_in_the_place_of_a_result_is_in_the_way(outbox, incoming):
    _, sha256 = scan(incoming, "a.png")
    (outbox.results / "a.png.json").mkdir()
    assert outbox.place("a.png", sha256)[0] == f"a.{sha256[:12]}.png"


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_a_long_name_is_cut_so_that_suffixes_can_be_added(outbox, incoming, letter):
    width = len(letter.encode())
    longest = letter * (196 // width) + ".png"
    path, sha256 = scan(incoming, longest)
    assert outbox.place(longest, sha256)[0] == longest
    longer = letter * (196 // width) + "x.png"
    path, sha256 = scan(incoming, longer, "y")
    kept, _ = outbox.place(longer, sha256)
    assert kept.endswith(f".{sha256[:12]}.png")
    assert kept.startswith(letter * (183 // width) + ".")
    assert 200 - width < len(kept.encode()) <= 200
    outbox.write(kept, {"sha256": sha256})
    outbox.write_heatmap(kept, b"picture")
    outbox.move(path, kept, failed=True)
    assert (outbox.failed / kept).read_text() == "y"
    assert (outbox.heatmaps / f"{kept}.png").read_bytes() == b"picture"


@pytest.mark.parametrize("suffix", ["s" * 100, "s" * 186, "s" * 187, "s" * 250, "ü" * 125])
def test_a_suffix_may_be_as_long_as_a_name(outbox, incoming, suffix):
    name = f"n.{suffix}"
    path, sha256 = scan(incoming, name)
    kept = hashed_name(name, sha256)
    assert len(kept.encode()) <= 200
    assert kept.startswith("n.")
    assert sha256[:12] in kept
    outbox.write(kept, {"sha256": sha256})
    outbox.move(path, kept, failed=True)


def test_a_result_is_readable_json_that_ends_a_line(outbox):
    outbox.write("ä.png", {"file": "ä.png", "sha256": "aa"})
    text = (outbox.results / "ä.png.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"file": "ä.png", "sha256": "aa"}
    assert text.endswith("}\n")
    assert "ä" in text


def test_only_leftovers_are_cleared(outbox):
    for folder in (outbox.results, outbox.heatmaps, outbox.done, outbox.failed):
        (folder / ".a.new-12345678").touch()
        (folder / "a").touch()
    outbox.clear()
    for folder in (outbox.results, outbox.heatmaps, outbox.done, outbox.failed):
        assert [path.name for path in folder.iterdir()] == ["a"]


# --- one program at a time


def test_a_second_program_cannot_lock_a_folder_and_names_the_first(tmp_path):
    with locked(tmp_path) as first:
        assert first is True
        taken = rf"another mri-edge uses this folder \(process {os.getpid()}\)"
        with pytest.raises(UsageError, match=taken), locked(tmp_path):
            pass
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    (tmp_path / LOCK).write_text("1234567890\n")  # of a program with a longer number
    with locked(tmp_path) as again:
        assert again is True
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_made_raises(tmp_path):
    with pytest.raises(OutputError, match="cannot write"), locked(tmp_path / "none"):
        pass
