"""The Dockerfiles: who runs what in them, that it is a command of ours, and that no scan is sent to the builder."""

from __future__ import annotations

import json
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest

from mri_edge.cli import cli

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = sorted((CHECKOUT / "deploy").glob("Dockerfile*"))
ON_A_GPU = [file for file in FILES if "onnxruntime-gpu" in file.read_text(encoding="utf-8")]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "RUN", "USER", "WORKDIR"}


def _instructions(file: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of each, comments and line ends apart."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line).strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in lines]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_image_runs_our_program_and_not_as_root(file: Path) -> None:
    found = _instructions(file)
    assert {name for name, _ in found} <= KNOWN
    last = dict(found)  # of each instruction the last one
    assert int(last["USER"]) >= 1000  # a number: Kubernetes cannot tell a name from root
    assert "ENTRYPOINT" in [name for name, _ in found[[name for name, _ in found].index("USER") :]]
    assert json.loads(last["ENTRYPOINT"]) == ["mri-edge"]
    for command in (json.loads(last["CMD"]), json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])[1:]):
        context = click.Context(cli)
        name, *arguments = command
        if name != "--help":
            cli.get_command(context, name).make_context(name, arguments)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shell_lines_are_shell(file: Path) -> None:
    for name, rest in _instructions(file):
        if name == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ON_A_GPU, ids=lambda file: file.name)
def test_the_two_wheels_of_onnxruntime_never_meet(file: Path) -> None:
    [run] = [rest for name, rest in _instructions(file) if name == "RUN" and "onnxruntime" in rest]
    assert run.index("uninstall --yes onnxruntime") < run.index("onnxruntime-gpu")


def test_builder_gets_the_sources_and_no_picture() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    rules = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let = [rule[1:] for rule in rules if rule.startswith("!")]

    def sent(name: str) -> bool:
        return any(name == one or name.startswith(f"{one}/") for one in let)

    tables = project["tool"]["setuptools"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    assert all(sent(name) for name in [*needed, *tables["package-dir"].values()])
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pictures = [one for one in tracked.stdout.splitlines() if sent(one) and fnmatch(one, "*.jp*g")]
    assert all("/golden/" in one for one in pictures)
    assert not any(sent(name) for name in (".git/config", ".venv/bin/python", "bundles/mine/model.keras", "scan.jpg"))
