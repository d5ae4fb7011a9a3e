"""Record how a bundle or a report was made: time, command line, versions and commit of this run."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import click

from mri_edge import __version__
from mri_edge.bundles.manifest import Creation
from mri_edge.device.machine import installed
from mri_edge.scans.readers import has_known_suffix

LIBRARIES = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "scikit-learn", "scipy")


def current_provenance() -> Creation:
    """The provenance of a bundle that this process makes."""
    return Creation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["mri-edge", *_recorded_arguments(sys.argv[1:])]),
        code_version=__version__,
        code_commit=_commit(),
        libraries={"python": platform.python_version(), **installed(LIBRARIES)},
        platform=f"{platform.system()} {platform.machine()}",
    )


def replace_paths(arguments: Sequence[str], *, command: Sequence[str] = (), paths: Collection[str] = ()) -> list[str]:
    """Replace anything in a command line that may be a path by ``PATH``, also in ``--option=PATH``.

    Bundles are passed on, and names of folders may contain names of patients, users or projects.

    Parameters
    ----------
    command
        Names of the command and its subcommand, which are kept where the arguments begin with them.
    paths
        Arguments that are paths although they do not look like one.
    """

    def replace(argument: str) -> str:
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        if argument.startswith("-") and not equals:
            return argument
        return f"{option}{equals}PATH" if value in paths or _looks_like_path(value) else argument

    kept = 0
    while kept < len(arguments) and list(arguments[kept : kept + 1]) == list(command[kept : kept + 1]):
        kept += 1
    return [*arguments[:kept], *map(replace, arguments[kept:])]


def _recorded_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of the running command without paths. A name that exists as a file counts as a path."""
    context = click.get_current_context(silent=True)
    values = [argument.partition("=")[2] if argument.startswith("-") else argument for argument in arguments]
    paths = {value for value in values if value and os.path.lexists(value)}
    if context is None:
        return replace_paths(arguments, paths=paths)
    parameters = context.command.params
    paths -= _values(context, [each for each in parameters if each.metavar == "NAME"])  # a folder may have such a name
    # These need not exist: ``--out``.
    paths |= _values(context, [each for each in parameters if isinstance(each.type, click.Path)])
    return replace_paths(arguments, command=context.command_path.split()[1:], paths=paths)


def _values(context: click.Context, parameters: Iterable[click.Parameter]) -> set[str]:
    values = (context.params.get(parameter.name) for parameter in parameters if parameter.name)
    return {os.fspath(value) for value in values if isinstance(value, str | os.PathLike)}


def _looks_like_path(value: str) -> bool:
    if value.startswith("{"):  # the JSON of --preprocessing
        return False
    return bool(re.search(r"[/\\*?\[]|^~|^\.", value)) or has_known_suffix(value)


def _commit() -> str | None:
    """Commit of this code if it runs from a checkout. An installed package has none."""
    file = Path(__file__).resolve()
    try:
        for command in (["ls-files", "--error-unmatch", file.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(  # noqa: S603 (our own arguments, no shell)
                ["git", "-C", str(file.parent), *command],  # noqa: S607 (git is where PATH says)
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
