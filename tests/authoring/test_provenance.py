"""The command line that a bundle records contains no paths."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from mri_edge.authoring.provenance import _recorded_arguments


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        ("train /data/smith_john --seed 3", "train PATH --seed 3"),
        ("train --data=/data/smith_john --out=../runs/mine", "train --data=PATH --out=PATH"),
        ("train scans/ --exclude no/smith*.gif", "train PATH --exclude PATH"),
        ("train --exclude=smith?", "train --exclude=PATH"),
        ("train ~/scans --groups patients.csv --recipe robust", "train PATH --groups PATH --recipe robust"),
        (r"train C:\scans --out D:\mine", "train PATH --out PATH"),
        ("train here --cv 5 --backbone-weights torchvision", "train PATH --cv 5 --backbone-weights torchvision"),
        ("bundle record mine smith_john.JPG", "bundle record mine PATH"),
        (
            'export --labels no,yes --preprocessing {"scale":1} -v',
            'export --labels no,yes --preprocessing {"scale":1} -v',
        ),
    ],
)
def test_paths_are_replaced(arguments: str, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "patients.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    assert _recorded_arguments(arguments.split()) == recorded.split()


def test_an_output_that_does_not_exist_is_a_path_and_the_command_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()  # a folder with the name of the command
    monkeypatch.chdir(tmp_path)
    recorded = []

    @click.command("train")
    @click.option("--out", type=click.Path(path_type=Path))
    @click.option("--name")
    def train(out: Path, name: str) -> None:
        recorded.extend(_recorded_arguments(["train", "--out", "smith", "--name", "mine"]))

    group = click.Group("mri-edge", {"train": train})
    group.main(["train", "--out", "smith", "--name", "mine"], prog_name="mri-edge", standalone_mode=False)
    assert recorded == ["train", "--out", "PATH", "--name", "mine"]


def test_a_name_is_no_path_although_a_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lite").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments, recorded = ["--recipe", "lite", "--seed=1"], []

    @click.command("train")
    @click.option("--recipe", metavar="NAME")
    @click.option("--seed", type=int)
    def train(recipe: str, seed: int) -> None:
        recorded.extend(_recorded_arguments(arguments))

    train.main(arguments, standalone_mode=False)
    assert recorded == arguments
