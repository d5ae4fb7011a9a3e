"""How a bundle or a record came to be: time, command line, versions and commit of this run."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import click

from mri_edge import __version__
from mri_edge.bundles.manifest import Creation
from mri_edge.scans.readers import has_known_suffix

LIBRARIES = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "scikit-learn", "scipy")


def creation() -> Creation:
    """The manifest's entry for what is made by this very process."""
    return Creation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["mri-edge", *without_paths(sys.argv[1:])]),
        code_version=__version__,
        code_commit=_commit(),
        libraries={"python": platform.python_version(), **_versions()},
        platform=f"{platform.system()} {platform.machine()}",
    )


def without_paths(arguments: Iterable[str]) -> list[str]:
    """A command line with ``PATH`` for everything in it that may name a file or a folder, ``--option=PATH`` too.

    A bundle travels, and the folders of its maker are named after patients, users and projects. So what is no path
    for certain, a name that lies in the current folder for one, counts as a path as well.
    """
    context = click.get_current_context(silent=True)
    words = context.command_path.split()[1:] if context else []
    named = _paths_given_to(context) if context else set()
    kept: list[str] = []
    for argument in arguments:
        if words[len(kept) : len(kept) + 1] == [argument]:  # the command, whatever folder has its name
            kept.append(argument)
            continue
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        if argument.startswith("-") and not equals:
            kept.append(argument)
        else:
            kept.append(f"{option}{equals}PATH" if value in named or _may_be_path(value) else argument)
    return kept


def _paths_given_to(context: click.Context) -> set[str]:
    """The values that click takes for paths in the command at work, which need not exist: ``--out`` for one."""
    typed = [parameter.name for parameter in context.command.params if isinstance(parameter.type, click.Path)]
    values = (context.params.get(name) for name in typed if name)
    return {os.fspath(value) for value in values if isinstance(value, str | os.PathLike)}


def _may_be_path(value: str) -> bool:
    if value.startswith("{"):  # the JSON of --preprocessing
        return False
    return bool(re.search(r"[/\\*?\[]|^~|^\.", value)) or has_known_suffix(value) or os.path.lexists(value)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Commit of this code, if it runs from a checkout of its own; an installed package has none."""
    here = Path(__file__).resolve()
    try:
        for question in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(  # noqa: S603 (our own arguments, no shell)
                ["git", "-C", str(here.parent), *question],  # noqa: S607 (git is where PATH says)
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
