"""The program accepts every mri-edge command that the pages in deploy/ show."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import click
import pytest

from mri_edge.bundles.bundle import embedded_models
from mri_edge.cli import COMMANDS, cli

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted((CHECKOUT / "deploy").glob("*.md"))


def _commands(page: Path) -> list[list[str]]:
    """Arguments of each `mri-edge` command in the console blocks of a page."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for i, (word, following) in enumerate(pairwise(words)):
            if re.fullmatch(r"(.*/bin/)?mri-edge(:\w+)?", word) and following in COMMANDS:
                commands.append(words[i + 1 :])
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_page_are_valid(page: Path) -> None:
    commands = _commands(page)
    assert len(commands) >= 2
    for name, *arguments in commands:
        cli.get_command(click.Context(cli), name).make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:deploy|tests|examples)/[\w./-]*\w", text)
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [name for name in named if not (CHECKOUT / name).exists()]
    assert missing + [name for name in linked if not (page.parent / name).exists()] == []


def test_no_page_or_help_runs_an_embedded_model_on_tensorrt() -> None:
    """They have none of the files that TensorRT builds."""
    shown = [command for page in PAGES for command in _commands(page)]
    for name in COMMANDS:
        examples = cli.get_command(click.Context(cli), name).epilog or ""
        shown += [shlex.split(line)[1:] for line in re.findall(r"^ *(mri-edge .*tensorrt.*)$", examples, re.M)]
    on_tensorrt = [command for command in shown if "tensorrt" in command]
    assert len(on_tensorrt) >= 3
    for name, *arguments in on_tensorrt:
        params = cli.get_command(click.Context(cli), name).make_context(name, arguments).params
        assert (params.get("bundle") or params["model"]) not in embedded_models()


def test_every_page_that_installs_a_service_leads_to_the_update() -> None:
    pages = [*PAGES, *sorted((CHECKOUT / "docs").glob("*.md"))]
    installing = [page for page in pages if "/opt/mri-edge/bin/pip install" in page.read_text(encoding="utf-8")]
    assert len(installing) >= 3
    for page in installing:
        text = page.read_text(encoding="utf-8")
        assert "README.md#update)" in text or "\n## Update\n" in text, page.name


def test_the_update_removes_what_an_earlier_build_left() -> None:
    """Otherwise the wheel contains files that the new version no longer has."""
    page = (CHECKOUT / "deploy" / "README.md").read_text(encoding="utf-8")
    commands = page.partition("\n## Update\n")[2].partition("```console\n")[2].partition("```")[0].splitlines()
    removal = "$ sudo rm -rf build mri_edge.egg-info"
    [install] = [i for i, command in enumerate(commands) if "pip install" in command]
    assert commands[install - 1] == commands[install + 1] == removal
