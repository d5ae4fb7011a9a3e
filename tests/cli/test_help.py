"""Help, version and usage errors of every command, without the extras `train` and `export`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mri_edge.cli import COMMANDS, cli, run
from mri_edge.scans.readers import TEMPORARY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_imports_nothing_heavy(name):
    code = """
import sys
from mri_edge.cli import run
status = run([sys.argv[1], "--help"])
heavy = {"tensorflow", "keras", "onnx", "sklearn", "matplotlib", "scipy", "onnxruntime", "rich"} & set(sys.modules)
sys.exit(status or bool(heavy and print(heavy)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: mri-edge" in done.stdout
    assert "{'" not in done.stdout.splitlines()[-1], "heavy modules were imported"


@pytest.mark.parametrize("name", COMMANDS)
def test_table_line_is_the_commands_own_first_line(name):
    """The table repeats each command's short help to avoid imports; both must stay equal."""
    command = cli.get_command(click.Context(cli), name)
    assert command.get_short_help_str(limit=200) == COMMANDS[name][2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples(name, capfd):
    assert run([name, "--help"]) == 0
    out = capfd.readouterr().out
    assert "Example" in out
    assert f"mri-edge {name}" in out.partition("Example")[2]


@pytest.mark.parametrize("ending", TEMPORARY)
def test_watch_names_the_endings_that_it_ignores(ending):
    page = (Path(__file__).resolve().parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")
    assert f"`{ending}`" in page
    assert re.search(rf" {re.escape(ending)}[, ]", cli.get_command(click.Context(cli), "watch").help)


def test_groups_are_explained_by_what_the_command_does():
    [train], [recalibrate] = (
        [option.help for option in cli.get_command(click.Context(cli), name).params if option.name == "groups"]
        for name in ("train", "recalibrate")
    )
    assert "cross-validation" in train
    assert "cross-validation" not in recalibrate


def test_bare_call_shows_help(capfd):
    assert run([]) == 0
    assert "Exit codes" in capfd.readouterr().out


@pytest.mark.parametrize("arguments", [["predict"], ["nonsense"], ["predict", "--nonsense"]])
def test_usage_errors_are_one_line_and_exit_2(arguments, capfd):
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "--help" in err


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mri_edge", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "mri-edge predict scan.jpg" in done.stdout
