"""The next run removes temporary folders of a killed program, and keeps those of a running one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mri_edge.storage.atomic import atomic_folder
from mri_edge.storage.staging import lock_folder, locked_temp_folder, remove_abandoned, use_temporary_folder

pytest.importorskip("fcntl", reason="folders have no locks on Windows, and nothing is cleared there")

# Enters the context manager that is named in the arguments, prints a line, and waits to be killed.
HOLDER = """
import sys, tempfile
from pathlib import Path
from mri_edge.storage import atomic, staging
with eval(sys.argv[1]):
    tempfile.NamedTemporaryFile(delete=False)
    print("held", flush=True)
    sys.stdin.read()
"""


def start(expression: str, temporary: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, expression],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(temporary), "PATH": ""},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", ["bundle", "model[1]", "a.b*"])
def test_a_killed_write_is_cleared_by_the_next_write_of_the_same_folder(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / name, tmp_path / f".{name}.new-notours"
    other.mkdir()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    kill(start(f"atomic.atomic_folder(Path({str(path)!r}))", temporary))
    [left] = [path for path in tmp_path.iterdir() if path not in (other, temporary)]
    assert left.name.startswith(f".{name}.new-")
    with atomic_folder(path) as staging:
        (staging / "file").write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([path, other, temporary])
    assert (path / "file").read_text() == "new"


def test_a_running_write_keeps_its_files_when_another_starts(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as first:
        (first / "file").write_text("first")
        with atomic_folder(path) as second:
            (second / "file").write_text("second")
        assert (first / "file").read_text() == "first"
    assert (path / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_links_are_not_followed_when_clearing(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / "work-0123abcd").symlink_to(target)
    remove_abandoned(tmp_path, "work-")
    assert target.is_dir()


def test_a_folder_is_locked_once_and_gone_afterwards(tmp_path: Path) -> None:
    with locked_temp_folder(tmp_path, "work-") as folder:
        with pytest.raises(BlockingIOError):
            lock_folder(folder)
        remove_abandoned(tmp_path, "work-")
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


def test_the_next_program_removes_temporary_files_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = start("staging.use_temporary_folder('export')", tmp_path)
    kill(start("staging.use_temporary_folder('export')", tmp_path))
    kill(start("staging.use_temporary_folder('train')", tmp_path))  # another command's: not ours to clear
    assert len(list(tmp_path.iterdir())) == 3
    with use_temporary_folder("export"):
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent.parent == tmp_path
        assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.glob("mri-edge-export-*"))) == 1, "the living program's"
    assert tempfile.gettempdir() == str(tmp_path)
    kill(living)
