"""Files and folders are written atomically, whatever interrupts the writing."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mri_edge.errors import OutputError
from mri_edge.storage import atomic
from mri_edge.storage.atomic import (
    atomic_file,
    atomic_folder,
    atomic_write,
    check_can_write,
    exchange,
    rename_to_free_name,
    sha256_of,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "model").write_text(text)
    return path


@pytest.fixture
def read_only(tmp_path: Path):
    """A folder in which this user, root included, can make nothing."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    immutable = False
    if os.access(folder, os.W_OK):  # root: only the file system's own flag holds it back
        immutable = subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode == 0
        if not immutable:
            pytest.skip("this user may write everywhere, and the file system has no immutable flag")
    yield folder
    if immutable:
        subprocess.run(["chattr", "-i", folder], check=True)
    folder.chmod(0o755)


def test_sha256_of_agrees_with_published_values(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_more_than_one_piece(tmp_path: Path) -> None:
    import hashlib

    content = bytes(range(256)) * 10_000
    path = tmp_path / "large"
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


# --- one file


def test_atomic_write_replaces_the_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    atomic_write(path, "old")
    atomic_write(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    atomic_write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert _names(tmp_path) == ["report.json"]


def test_atomic_write_keeps_the_old_file_when_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["report.json"]


def test_atomic_write_into_a_missing_or_read_only_folder_raises(tmp_path: Path, read_only: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write(tmp_path / "none" / "report.json", "")
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write(read_only / "report.json", "")


def test_atomic_write_over_a_folder_raises(tmp_path: Path) -> None:
    folder = _folder_with(tmp_path / "report.json", "old")
    with pytest.raises(OutputError):
        atomic_write(folder, "new")
    assert (folder / "model").read_text() == "old"
    assert _names(tmp_path) == ["report.json"]


def test_atomic_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_atomic_write_writes_into_a_pipe_and_does_not_replace_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    atomic_write(pipe, "through")
    reader.join(timeout=10)
    assert received == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_atomic_file_does_not_replace_a_pipe(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OutputError, match="pipe: is not a file"), atomic_file(path) as file:
            file.write(b"a file")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


# --- a folder


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in place: the one step of Linux, and what other systems do."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    return str(request.param)


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_two_folders_are_exchanged_in_one_step(tmp_path: Path) -> None:
    first, second = _folder_with(tmp_path / "a", "1"), _folder_with(tmp_path / "b", "2")
    if not exchange(first, second):
        pytest.skip("this file system has no RENAME_EXCHANGE")
    assert ((first / "model").read_text(), (second / "model").read_text()) == ("2", "1")


def test_exchange_returns_false_if_the_system_cannot(tmp_path: Path) -> None:
    assert exchange(tmp_path / "none", tmp_path / "neither") is False


def test_atomic_folder_makes_and_replaces(tmp_path: Path, way: str) -> None:
    out = tmp_path / "deep" / "bundle"
    for text in ("one", "two"):
        with atomic_folder(out) as staging:
            (staging / "model").write_text(text)
            (staging / text).mkdir()
        assert (out / "model").read_text() == text
        assert _names(out) == sorted(["model", text])
        assert _names(out.parent) == ["bundle"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of open files from /proc")
def test_atomic_folder_is_on_disk_before_the_old_folder_is_removed(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _folder_with(tmp_path / "bundle", "old")
    synced = []
    real = os.fsync

    def fsync(handle: int) -> None:
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        synced.append("the folder of both" if name == str(tmp_path) else re.sub(r".*\.new-\w+", "new", name))
        stood = [path for path in tmp_path.rglob("model") if path.read_text() == "old"]
        assert stood, "the old one was removed already"
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(out) as staging:
        (staging / "model").write_text("new")
        (staging / "deep").mkdir()
        (staging / "deep" / "page").write_text("new")
    assert synced == ["new/model", "new", "new/deep/page", "new/deep", "the folder of both"]
    assert _names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1), FileNotFoundError(2, "no")])
def test_atomic_folder_leaves_the_old_one_when_the_block_raises(error: BaseException, tmp_path: Path, way: str) -> None:
    out = _folder_with(tmp_path / "bundle", "old")
    with pytest.raises(type(error)) as caught, atomic_folder(out) as staging:
        (staging / "model").write_text("half")
        raise error
    assert caught.value is error  # as it was: a missing scan is no output error
    assert (out / "model").read_text() == "old"
    assert _names(tmp_path) == ["bundle"]


def test_atomic_folder_names_the_disk_when_writing_in_it_fails(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(OutputError, match=r"bundle: cannot write \(No space"), atomic_folder(out):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match=r"bundle: cannot write \(No such file"), atomic_folder(out) as staging:
        (staging / "none" / "model").write_text("")
    assert _names(tmp_path) == []


def test_atomic_folder_puts_the_old_one_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _folder_with(tmp_path / "bundle", "old")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".new-" in str(source):
            raise PermissionError(13, "Permission denied", str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(atomic, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match="Permission denied"), atomic_folder(out) as staging:
        (staging / "model").write_text("new")
    assert (out / "model").read_text() == "old"
    assert _names(tmp_path) == ["bundle"]


def test_atomic_folder_in_a_read_only_folder(read_only: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), atomic_folder(read_only / "bundle"):
        pytest.fail("the block must not run")


def test_atomic_folder_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(OutputError, match="is a file"), atomic_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")
    assert (tmp_path / "bundle").read_text() == "mine"


def test_atomic_folder_follows_a_link(tmp_path: Path, way: str) -> None:
    _folder_with(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as staging:
        (staging / "model").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model").read_text() == "new"
    assert _names(tmp_path) == ["link", "real"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("ended_by", ["SIGINT", "SIGKILL"])
def test_old_folder_outlives_a_process_that_is_ended_while_it_writes(ended_by: str, tmp_path: Path) -> None:
    out = _folder_with(tmp_path / "bundle", "old")
    program = (
        "import sys, time; from pathlib import Path; from mri_edge.storage.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'model').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, ended_by))
        process.wait(timeout=20)
    assert (out / "model").read_text() == "old"
    if ended_by == "SIGINT":  # nobody can tidy up after SIGKILL
        assert _names(tmp_path) == ["bundle"]


# --- moving


@pytest.fixture(params=["rename", "copy"])
def move(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test within one file system and as if there were two."""
    if request.param == "copy":
        replace = os.replace

        def refuse(source: Path, target: Path) -> None:
            if Path(source).parent != Path(target).parent:
                raise OSError(18, "Invalid cross-device link")
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "from" / "scan").write_bytes(b"pixels" * 1000)
    return str(request.param)


def test_atomic_move_moves_a_file(tmp_path: Path, move: str) -> None:
    atomic.atomic_move(tmp_path / "from" / "scan", tmp_path / "to" / "scan")
    assert (tmp_path / "to" / "scan").read_bytes() == b"pixels" * 1000
    assert (_names(tmp_path / "from"), _names(tmp_path / "to")) == ([], ["scan"])


def test_an_atomic_move_that_fails_leaves_the_source(
    tmp_path: Path, move: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="cannot be moved"):
        atomic.atomic_move(tmp_path / "from" / "scan", tmp_path / "none" / "scan")
    if move == "copy":
        copy = atomic._copy

        def grow(source: Path, *arguments: object) -> None:
            copy(source, *arguments)
            with open(source, "ab") as file:
                file.write(b"more")

        monkeypatch.setattr(atomic, "_copy", grow)
        with pytest.raises(OutputError, match="changed while it was copied"):
            atomic.atomic_move(tmp_path / "from" / "scan", tmp_path / "to" / "scan")
    assert (_names(tmp_path / "from"), _names(tmp_path / "to")) == (["scan"], [])


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_rename_to_a_free_name_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(atomic, "_renameat2", lambda *_: False)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    assert not rename_to_free_name(source, target)
    assert (source.read_text(), target.read_text()) == ("new", "old")
    target.unlink()
    assert rename_to_free_name(source, target)
    assert (_names(tmp_path), target.read_text()) == (["target"], "new")
    with pytest.raises(FileNotFoundError):
        rename_to_free_name(source, tmp_path / "other")


# --- what a kill leaves

_STAGES = """
import sys, time
from pathlib import Path
from mri_edge.storage.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("half")
    print(staging, flush=True)
    time.sleep(60)
"""


def _start_staging(target: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _STAGES, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks no folders")
def test_the_next_run_removes_a_folder_of_a_killed_run_but_not_of_a_running_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle[1]"  # a name that is a pattern as well
    killed, left = _start_staging(target)
    living, in_use = _start_staging(target)
    other = tmp_path / ".other.new-12345678"
    other.mkdir()
    try:
        killed.kill()
        killed.wait()
        assert (left / "half").exists()
        with atomic_folder(target) as staging:
            assert not left.exists()
            assert (in_use / "half").exists()
            (staging / "file").write_text("complete")
    finally:
        living.kill()
        living.wait()
    assert (target / "file").read_text() == "complete"
    assert other.exists(), "it belongs to another folder"
    with atomic_folder(target):
        pass
    assert [path.name for path in tmp_path.iterdir() if ".new-" in path.name] == [other.name]


def test_a_path_is_checked_before_long_work_and_nothing_is_left(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    check_can_write(path)
    check_can_write(tmp_path / "new.json")
    check_can_write(Path(os.devnull))
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    with pytest.raises(OutputError, match="cannot write"):
        check_can_write(tmp_path / "missing" / "a.json")
