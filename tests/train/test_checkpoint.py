"""Where a training goes that nobody named, and what is left there of one that was cut off."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")
pytest.importorskip("fcntl", reason="folders have no locks on Windows")

from mri_edge.errors import UsageError
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


def cut_off(out: Path, *files: str) -> None:
    """What a kill leaves of a training of ``out``."""
    work = work_folder(out, [], overwrite=True, resume=False)
    for file in files:
        (work / file).write_text("")


def test_two_at_once_never_take_the_same_folder(tmp_path: Path) -> None:
    processes = []
    for _ in range(3):
        command = [sys.executable, "-c", HOLDER]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    taken = [process.stdout.readline().strip() for process in processes]
    assert sorted(taken) == ["runs/vgg16", "runs/vgg16-2", "runs/vgg16-3"]
    for process in processes:
        process.kill()
        process.communicate()
    # A kill leaves nothing that stands in the way, and the next run takes it away.
    assert run_name() == "runs/vgg16"
    assert not (tmp_path / "runs" / ".vgg16.training").exists()


def test_what_stands_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vgg16").write_text("a file of the user")
    (tmp_path / "runs" / "vgg16-2").mkdir()
    assert run_name() == "runs/vgg16-3"


def test_a_run_that_fails_early_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed_run("vgg16", resume=False):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), claimed(Path("a/b/mine")):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_nothing_to_resume_is_cleared_and_an_epoch_that_ended_is_kept() -> None:
    cut_off(Path("runs/vgg16"), "pixels.npy", "validation.npy", "views.npy", ".checkpoint.npz.new-0123abcd")
    cut_off(Path("runs/vgg16"), "pixels.npy", "validation.npy")
    assert not has_state(Path("runs/vgg16"))
    assert run_name() == "runs/vgg16"
    cut_off(Path("runs/vgg16"), "checkpoint.npz")
    assert run_name() == "runs/vgg16-2"
    assert has_state(Path("runs/vgg16"))


def test_resume_takes_the_last_that_was_cut_off() -> None:
    with pytest.raises(UsageError, match="holds no training of vgg16"), claimed_run("vgg16", resume=True):
        pass
    cut_off(Path("runs/vgg16-2"), "checkpoint.npz")
    cut_off(Path("runs/vgg16"), "checkpoint.npz")
    cut_off(Path("runs/vgg16-3"), "pixels.npy")  # nothing to go on with
    cut_off(Path("runs/small"), "answers.npy")
    with claimed_run("vgg16", resume=True) as out:
        assert out == Path("runs/vgg16")
    with claimed_run("small", resume=True) as out:
        assert out == Path("runs/small")


def test_one_training_at_a_time_works_on_a_result() -> None:
    with ExitStack() as first:
        first.enter_context(claimed(Path("mine")))
        with pytest.raises(UsageError, match="another training is writing it"), claimed(Path("mine")):
            pass
        work_folder(Path("mine"), [], overwrite=True, resume=False)  # keeps the lock that is held
        with pytest.raises(UsageError, match="another training"), claimed(Path("mine")):
            pass
    with claimed(Path("mine")):
        pass
