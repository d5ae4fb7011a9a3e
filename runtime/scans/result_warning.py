"""A warning about one result: a reason to distrust the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResultWarning:
    """A reason to distrust one answer; ``str`` gives the message.

    Attributes
    ----------
    code
        The reason as one stable word for programs: ``"coloured"``, ``"unlike_training"``, …
    message
        The reason for people.
    value, limit
        What was measured and the bound it breaks, where there is one.
    """

    code: str
    message: str
    value: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return self.message
