"""Test the choice of a run folder, its lock, and what an interrupted training leaves there."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")
pytest.importorskip("fcntl", reason="folders have no locks on Windows")

from mri_edge.errors import OutputError, UsageError
from mri_edge.train.loops.checkpoint import claimed, claimed_run, has_state, work_folder

HOLDER = """
import sys
from mri_edge.train.loops.checkpoint import claimed_run
with claimed_run("vgg16", resume=False) as out:
    print(out, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_name() -> str:
    with claimed_run("vgg16", resume=False) as out:
        return str(out)


def leave_interrupted(out: Path, *files: str) -> None:
    """Create what a killed training of ``out`` leaves behind."""
    work = work_folder(out, [], overwrite=True, resume=False)
    for file in files:
        (work / file).write_text("")


def test_concurrent_trainings_never_use_the_same_folder(tmp_path: Path) -> None:
    processes = []
    for _ in range(3):
        command = [sys.executable, "-c", HOLDER]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    taken = [process.stdout.readline().strip() for process in processes]
    assert sorted(taken) == ["runs/vgg16", "runs/vgg16-2", "runs/vgg16-3"]
    for process in processes:
        process.kill()
        process.communicate()
    # The remains of a killed training do not block the next one, which removes them.
    assert run_name() == "runs/vgg16"
    assert not (tmp_path / "runs" / ".vgg16.training").exists()


def test_existing_files_and_folders_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vgg16").write_text("a file of the user")
    (tmp_path / "runs" / "vgg16-2").mkdir()
    assert run_name() == "runs/vgg16-3"


def test_a_training_that_fails_early_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed_run("vgg16", resume=False):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), claimed(Path("a/b/mine")):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_state_is_kept_only_once_an_epoch_has_ended() -> None:
    leave_interrupted(Path("runs/vgg16"), "pixels.npy", "validation.npy", "views.npy", ".checkpoint.npz.new-0123abcd")
    leave_interrupted(Path("runs/vgg16"), "pixels.npy", "validation.npy")
    assert not has_state(Path("runs/vgg16"))
    assert run_name() == "runs/vgg16"
    leave_interrupted(Path("runs/vgg16"), "checkpoint.npz")
    assert run_name() == "runs/vgg16-2"
    assert has_state(Path("runs/vgg16"))


def test_resume_continues_the_last_interrupted_training() -> None:
    with pytest.raises(UsageError, match="has no interrupted training of vgg16"), claimed_run("vgg16", resume=True):
        pass
    leave_interrupted(Path("runs/vgg16-2"), "checkpoint.npz")
    leave_interrupted(Path("runs/vgg16"), "checkpoint.npz")
    leave_interrupted(Path("runs/vgg16-3"), "pixels.npy")  # nothing to resume
    leave_interrupted(Path("runs/small"), "answers.npy")
    with claimed_run("vgg16", resume=True) as out:
        assert out == Path("runs/vgg16")
    with claimed_run("small", resume=True) as out:
        assert out == Path("runs/small")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make folders")
def test_a_folder_that_cannot_be_made_is_not_taken() -> None:
    with pytest.raises(OutputError, match=r"/proc/\.mine\.training: cannot write"), claimed(Path("/proc/mine")):
        pass


def test_only_one_training_at_a_time_writes_an_output() -> None:
    with ExitStack() as first:
        first.enter_context(claimed(Path("mine")))
        with pytest.raises(UsageError, match="another training is writing it"), claimed(Path("mine")):
            pass
        work_folder(Path("mine"), [], overwrite=True, resume=False)  # does not release the lock
        with pytest.raises(UsageError, match="another training"), claimed(Path("mine")):
            pass
    with claimed(Path("mine")):
        pass
