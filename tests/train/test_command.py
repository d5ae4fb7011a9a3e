"""Test the command ``train``: its progress, its errors and its hints for the next step."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train.loops.head import Epoch
from mri_edge.train.loops.progress import step_progress, training_progress

REFERENCE = ["--recipe", "reference"]
TRAIN = [sys.executable, "-m", "mri_edge", "train"]
_LEFT = r"\d+:\d\d elapsed, about \d+:\d\d left"


def test_epoch_is_one_line_without_a_terminal(capfd) -> None:
    with training_progress(100, 3, "fold 2/5, ") as progress:
        progress.started(1)
        progress.images(100)
        for number in (1, 2, 3):
            progress.epoch(Epoch(number, 0.5, 0.75, 0.25, 1.0))
    first, _, last = capfd.readouterr().err.splitlines()
    figures = "loss 0.500  accuracy 0.750  validation loss 0.250  accuracy 1.000"
    assert re.fullmatch(rf"fold 2/5, epoch   1/3  {figures}  {_LEFT}", first)
    assert re.fullmatch(rf"fold 2/5, epoch   3/3  {figures}  \d+:\d\d elapsed", last)


def test_resumed_epochs_do_not_affect_the_time_estimate(monkeypatch, capfd) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with training_progress(100, 20) as progress:
        progress.started(11)
        now[0] = 60
        progress.epoch(Epoch(11, 0.5, 0.75, 0.25, 1.0))
    assert "1:00 elapsed, about 9:00 left" in capfd.readouterr().err


def test_steps_print_a_line_per_epoch_and_are_never_silent_for_long(monkeypatch, capfd) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with step_progress("fine-tuning", first=60, every=64) as report:
        for done in range(1, 60 + 2 * 64 + 1):
            now[0] += 0.5
            report(done, 60 + 2 * 64, 0.125)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [
        "fine-tuning",
        "fine-tuning  loss 0.125  epoch 0/2  60",
        "fine-tuning  loss 0.125  epoch 1/2  124",
        "fine-tuning  loss 0.125  epoch 2/2  188",
    ]
    assert "0:30 elapsed, about 1:04 left" in lines[1]
    with step_progress("asking the teacher") as report:
        for done in range(1, 9):
            now[0] += 45
            report(done, 4000, 0.0)
    assert len(capfd.readouterr().err.splitlines()) == 1 + 3  # after 3, 5 and 7 steps


def test_dumb_terminal_gets_lines_instead_of_bars(monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    with training_progress(100, 1) as progress:
        progress.epoch(Epoch(1, 0.5, 0.75, 0.25, 1.0))
    assert capfd.readouterr().err.startswith("epoch   1/1  loss")


@pytest.mark.slow
def test_interrupted_training_says_how_to_continue(folders, weights_file, tmp_path, monkeypatch, capfd) -> None:
    from mri_edge.cli import run

    options = [str(folders), "--backbone-weights", str(weights_file), "--epochs", "4"]
    process = subprocess.Popen(
        [*TRAIN, *options], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("epoch   1/4"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, lines
    assert lines[0] == "the bundle goes to runs/vgg16\n"
    assert lines[-2] == "mri-edge: interrupted; finished work is saved. To continue:\n"
    again = lines[-1].split()
    assert again == ["mri-edge", "train", *options, "--out", "runs/vgg16", "--resume"]

    monkeypatch.chdir(tmp_path)
    assert run(again[1:]) == 0
    done = capfd.readouterr()
    assert "epoch   1/4" not in done.err
    assert done.err.splitlines()[-2:] == [
        "report: runs/vgg16/report/index.html",
        "next: mri-edge export runs/vgg16 --quantize",
    ]
    assert re.search(r"accuracy +[01]\.\d{3} \([01]\.\d{3} to [01]\.\d{3}\)  of 6", done.out)
    manifest = json.loads((tmp_path / "runs/vgg16/manifest.json").read_text())
    assert manifest["name"] == "vgg16"
    assert os.listdir(tmp_path / "runs") == ["vgg16"]  # noqa: PTH208


def test_training_interrupted_early_leaves_nothing(folders, weights_file, tmp_path) -> None:
    options = [str(folders), "--backbone-weights", str(weights_file), "--out", "new/mine"]
    process = subprocess.Popen([*TRAIN, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("reading 30 scans"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, lines
    assert lines[-2] == "mri-edge: interrupted before anything was saved. To start over:\n"
    assert lines[-1].split() == ["mri-edge", "train", *options]
    assert not (tmp_path / "new").exists()


def test_next_training_clears_what_a_killed_one_left(folders, weights_file, tmp_path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    options = [*TRAIN, str(folders), "--backbone-weights", str(weights_file), "--out", "mine"]
    process = subprocess.Popen(options, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("computing the features"):
            process.kill()
    process.wait()
    assert (tmp_path / ".mine.training").is_dir()
    assert list(temporary.iterdir())
    missing = [*TRAIN, "nowhere", "--out", "mine"]
    done = subprocess.run(missing, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert not (tmp_path / ".mine.training").exists()
    assert not list(temporary.iterdir())


@pytest.mark.usefixtures("eager")
def test_model_is_named_after_its_folder(folders, toy_reference, tmp_path, monkeypatch, capfd) -> None:
    from mri_edge.cli import run
    from mri_edge.train.recipes import registry

    monkeypatch.setitem(registry.RECIPES, "reference", toy_reference)
    monkeypatch.chdir(tmp_path)
    options = [str(folders), "--epochs", "1"]
    for more, place, name in (
        (["--out", "bundles/mine"], "bundles/mine", "mine"),
        (["--out", "bundles/other", "--name", "better"], "bundles/other", "better"),
        ([], "runs/vgg16", "vgg16"),
        ([], "runs/vgg16-2", "vgg16-2"),
    ):
        assert run(["train", *options, *more]) == 0
        assert json.loads((tmp_path / place / "manifest.json").read_text())["name"] == name
    assert capfd.readouterr().err.splitlines()[-1] == "next: mri-edge export --quantize"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["missing: DIR", "mri-edge train scans/"]),
        (["--cv", "3"], ["missing: DIR", "--out DIR", "mri-edge train scans/ --cv 3 --out figures/"]),
        (["--recipe", "small", "data"], ["missing: --teacher", "mri-edge train data --recipe small --teacher vgg16"]),
        (["one", "--data", "two"], ["two data folders given: one", "two"]),
        (["data", "--overwrite"], ["--overwrite replaces the bundle at --out"]),
        (["data", "--out", "mine", "--resume"], ["mine: has no interrupted training"]),
        (["data", "--resume"], ["runs/ has no interrupted training of vgg16"]),
    ],
)
def test_wrong_usage_is_one_line_that_lists_every_problem(arguments, words, tmp_path, monkeypatch, capfd) -> None:
    from mri_edge.cli import run

    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--seed", "0", "--backbone-weights", "auto"], REFERENCE),
        (
            ["--labels", "no=healthy", "--labels", "yes=lesion", "--positive", "lesion", "--groups", "blocks:20"],
            [*REFERENCE, "--labels", "no=healthy,yes=lesion", "--positive", "lesion", "--groups", "blocks:20"],
        ),
        (
            ["--exclude", "no/*.gif", "--exclude", "a.txt", "--seed", "3"],
            [*REFERENCE, "--exclude", "no/*.gif", "--exclude", "a.txt", "--seed", "3"],
        ),
        (["--recipe", "robust", "--epochs", "2"], ["--recipe", "robust", "--epochs", "2"]),
        (
            ["--recipe", "small", "--labels", "folders", "--groups", "near-duplicates"],
            ["--recipe", "small", "--teacher", "BUNDLE", "--labels", "folders"],
        ),
    ],
)
def test_command_after_a_cross_validation_has_its_options(given, expected, tmp_path, monkeypatch, capfd) -> None:
    from mri_edge.cli import run

    monkeypatch.setattr("mri_edge.train.crossval.cross_validate", lambda *arguments, **options: {})
    data = tmp_path / "our scans"
    assert run(["train", str(data), "--cv", "3", "--out", str(tmp_path / "figures"), *given]) == 0
    start = "next, for the model itself: "
    [command] = [line.removeprefix(start) for line in capfd.readouterr().err.splitlines() if line.startswith(start)]
    program, name, folder, *options = shlex.split(command)
    assert (program, name, folder) == ("mri-edge", "train", str(data))
    assert options == expected
