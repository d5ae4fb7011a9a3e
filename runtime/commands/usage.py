"""Explain wrong usage: name all missing options, and suggest the command that the user probably meant."""

from __future__ import annotations

import math
import os
from typing import Any

import click

DAY_S = 86_400
"""Longest time in seconds for an option. Sockets and timers raise OverflowError for much longer ones."""


class Group(click.Group):
    """A command group that suggests a similar command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with. Raises click.UsageError with a suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {name!r}.{self._suggestion(ctx, name)}", ctx)
        return super().resolve_command(ctx, args)

    def _suggestion(self, ctx: click.Context, name: str) -> str:
        from difflib import get_close_matches

        names = self.list_commands(ctx)
        close = get_close_matches(name.lower(), names) or [known for known in names if known.startswith(name.lower())]
        if close:
            return f" Did you mean {' or '.join(map(repr, close))}?"
        if "predict" in names and os.path.exists(name):
            return f" Did you mean '{ctx.command_path} predict {name}'?"
        return ""


class NumberRange(click.FloatRange):
    """A number in a range. NaN compares as neither below nor above, and infinity is no number to wait or allow."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class RequiredUnlessModel(click.Argument):
    """An argument that is required unless the option ``--model`` is given."""


def explain(error: click.UsageError) -> str:
    """Describe a usage error in one line. It names all missing parameters, where click names only the first.

    When click raises MissingParameter, it has processed all given values. So any other required parameter without a
    value is missing too.
    """
    message = " ".join(error.format_message().split())
    ctx = error.ctx
    if not isinstance(error, click.MissingParameter) or ctx is None:
        return message
    missing = []
    for parameter in ctx.command.get_params(ctx):
        if isinstance(parameter, RequiredUnlessModel):
            if not any(isinstance(ctx.params.get(name), str) for name in (str(parameter.name), "model")):
                missing.append(f"argument {parameter.get_error_hint(ctx)}")
        elif parameter.required and parameter.name not in ctx.params:
            try:
                parameter.handle_parse_result(ctx, {}, [])  # it may be set in the environment
            except click.MissingParameter:
                missing.append(f"{parameter.param_type_name} {parameter.get_error_hint(ctx)}")
            except click.UsageError:  # it was given but is invalid: click reports it in the next run
                continue
    if len(missing) < 2:
        return message
    return f"Missing {', '.join(missing[:-1])} and {missing[-1]}"
