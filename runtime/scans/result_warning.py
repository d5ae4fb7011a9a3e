"""A reason to doubt one answer, as results carry it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResultWarning:
    """A reason to doubt one answer; ``str`` gives the message.

    Attributes
    ----------
    code
        What is doubtful, as one stable word for programs: ``"coloured"``, ``"unlike_training"``, …
    message
        The same for people.
    value, limit
        What was measured and the bound it breaks, where there is one.
    """

    code: str
    message: str
    value: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return self.message
