"""Read defaults for the options of commands from ``mri-edge.toml`` or ``pyproject.toml`` in the current folder.

The command line and environment variables win over the file. It could come with somebody else's scans, so its values
are printed on stderr, and it cannot name a bundle to change or allow that something is overwritten.

``tomllib`` is part of Python since 3.11; earlier versions use ``tomli``, which is the same parser.
"""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path
from typing import Any

import click

from mri_edge.errors import UsageError, first_line, printable

FILE, PROJECT = "mri-edge.toml", "pyproject.toml"
_LARGEST = 1 << 20  # bytes
# What a pyproject.toml with our table contains. Most have none, and the parser would take milliseconds.
_MAYBE_OURS = re.compile(
    rb"""tool["']?\s*\.\s*["']?mri-edge|^\s*\[\s*["']?tool["']?\s*\]|^\s*["']?tool["']?\s*=""", re.M
)
_TYPED = {"overwrite"}  # options that only the command line can set
_SEPARATOR = ", "


def find_defaults() -> tuple[str, dict[str, Any]] | None:
    """The name of the file in the current folder that has defaults, and its tables by command; None if there is none.

    ``mri-edge.toml`` is read instead of the table ``[tool.mri-edge]`` in ``pyproject.toml``, not in addition to it.

    Raises
    ------
    UsageError
        The file cannot be read or is not valid TOML, or a command in it is not a table.
    """
    if (content := _read(FILE)) is not None:
        return FILE, _check_tables(FILE, _parse(FILE, content), FILE)
    content = _read(PROJECT)
    if content is None or not _MAYBE_OURS.search(content):
        return None
    tool = _parse(PROJECT, content).get("tool")
    tables = tool.get("mri-edge") if isinstance(tool, dict) else None
    return None if tables is None else (PROJECT, _check_tables(PROJECT, tables, "tool.mri-edge"))


def apply_defaults(group: click.Group, ctx: click.Context, name: str) -> None:
    """Set the defaults of command ``name`` of ``group`` from the file, and print them on stderr.

    Raises
    ------
    UsageError
        As for ``find_defaults``; or the file names an unknown command or option, or a value has the wrong type.
    """
    found = find_defaults()
    if found is None:
        return
    file, tables = found
    commands = group.list_commands(ctx)
    for key in tables:
        if key not in commands:
            raise UsageError(f"{file}: {key}: no such command", f"Commands: {', '.join(commands)}")
    command = group.get_command(ctx, name)
    if name not in tables or command is None:
        return
    shown: list[str] = []
    ctx.default_map = {name: _defaults_of(command, ctx, tables[name], f"{file}: {name}", shown)}
    if shown:
        click.echo(f"mri-edge: defaults from {file}: {printable(_SEPARATOR.join(shown))}", err=True)


def _read(file: str) -> bytes | None:
    """The content of a file in the current folder, or None if there is none."""
    try:
        status = Path(file).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{file}: cannot read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        raise UsageError(
            f"{file}: must be a file of at most {_LARGEST:,} bytes", "Remove it, or change to another folder"
        )
    try:
        with open(file, "rb") as opened:
            return opened.read(_LARGEST)
    except OSError as error:
        raise UsageError(f"{file}: cannot read ({error.strerror})") from error


def _parse(file: str, content: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{file}: is not valid TOML ({printable(first_line(error))})") from error


def _check_tables(file: str, tables: Any, place: str) -> dict[str, Any]:
    if not isinstance(tables, dict):
        raise UsageError(f"{file}: {place}: must be a table. Received: {tables!r}")
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{file}: {printable(key)}: must be in the table of a command",
                f"For example: [predict] {printable(key)} = …",
            )
    return tables


def _defaults_of(
    command: click.Command, ctx: click.Context, table: dict[str, Any], place: str, shown: list[str]
) -> dict[str, Any]:
    """The ``default_map`` of a command or, by name, of the commands of a group. Appends each setting to ``shown``."""
    if isinstance(command, click.Group):
        defaults: dict[str, Any] = {}
        for key, inner in table.items():
            member = command.get_command(ctx, key)
            if member is None:
                raise UsageError(
                    f"{place}.{key}: no such command", f"Commands: {', '.join(command.list_commands(ctx))}"
                )
            if not isinstance(inner, dict):
                raise UsageError(f"{place}.{key}: must be a table. Received: {inner!r}")
            of_member: list[str] = []
            defaults[key] = _defaults_of(member, ctx, inner, f"{place}.{key}", of_member)
            shown += [f"{key}.{setting}" for setting in of_member]
        return defaults
    options = {
        name.lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")
    }
    values: dict[str, Any] = {}
    for key, value in table.items():
        option = options.get(key)
        if option is None:
            raise UsageError(f"{place}.{key}: no such option", f"Options: {', '.join(options)}")
        # Where --model has no environment variable it names a bundle to create or change.
        if key in _TYPED or (option.name == "model" and not option.envvar):
            raise UsageError(f"{place}.{key}: only the command line can set this option", "Remove it from the file")
        if option.name in values:
            raise UsageError(f"{place}.{key}: sets the same as another key of the file", "Keep one of the two")
        checked = _check_value(option, ctx, value, f"{place}.{key}")
        if checked is not None:
            values[str(option.name)] = checked
            shown.append(f"{key}={value!r}")
    return values


def _check_value(option: click.Option, ctx: click.Context, value: Any, place: str) -> Any:
    """The value as click expects it; None for a switch of several that is off. UsageError if the type is wrong."""
    several = option.multiple or option.nargs != 1
    wanted, name = _toml_type(option)
    if isinstance(value, list) != several or not all(type(part) in wanted for part in (value if several else [value])):
        raise UsageError(f"{place}: must be {'a list, each part ' if several else ''}{name}. Received: {value!r}")
    if (
        option.is_flag
        and not isinstance(option.flag_value, bool)
        and isinstance(option.type, click.types.StringParamType)
    ):
        return option.flag_value if value else None
    try:
        option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise UsageError(f"{place}: {printable(error.message)}") from error
    return value


def _toml_type(option: click.Option) -> tuple[tuple[type, ...], str]:
    """The Python types that a TOML value of an option may have, and their name. ``True`` is not a number."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.types.IntParamType):
        return (int,), "a whole number"
    if isinstance(option.type, click.types.FloatParamType):
        return (int, float), "a number"
    return (str,), "a text"
