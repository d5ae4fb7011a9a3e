"""A function of ours in a process of its own: whatever dies there is a finding, not a crash.

The function takes one dataclass and returns another, both of plain types, for they travel as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any, get_type_hints

from mri_edge.errors import MriEdgeError

# Python puts the current folder first in its path, where anything may lie: take it out before any import.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from mri_edge.benchmarking.isolated import main; main()"
# How a process dies of a library, by its exit code: minus the signal's number on POSIX, else NTSTATUS.
_ILLEGAL = "illegal instruction: the library was built for a newer CPU"
_CRASHED = "crashed: the library does not fit this system or driver"
_DEATHS = {
    -4: f"{_ILLEGAL} (SIGILL)",
    -6: f"{_CRASHED} (SIGABRT)",
    -9: "killed, most likely for want of memory (SIGKILL)",
    -11: f"{_CRASHED} (SIGSEGV)",
    0xC000001D: f"{_ILLEGAL} (STATUS_ILLEGAL_INSTRUCTION)",
    0xC0000005: f"{_CRASHED} (STATUS_ACCESS_VIOLATION)",
}


def call(function: str, request: Any, *, time_limit: float) -> dict[str, Any] | str:
    """Call ``"module:function"`` of this package in a new process; never raises for what happens in there.

    Parameters
    ----------
    request
        The function's argument, a dataclass.
    time_limit
        In seconds.

    Returns
    -------
    The fields of the dataclass that came back, or the problem in words.
    """
    try:
        done = subprocess.run(  # noqa: S603 (our own program, no shell)
            [sys.executable, "-c", _PROGRAM, function],
            input=json.dumps(asdict(request)),  # no argument: the system limits its length, and scans may be many
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {time_limit:.0f} s"
    if done.returncode:
        return _last_words(done.returncode, done.stderr)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if problem := answer.get("problem"):
            return str(problem)
        found: dict[str, Any] = answer["found"]
        return found
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return f"its answer cannot be read: {done.stdout[-80:]!r}"


def _last_words(code: int, errors: str) -> str:
    if code in _DEATHS:
        return _DEATHS[code]
    if code < 0:
        return f"killed by signal {-code}"
    return (errors.strip().splitlines() or [f"failed without a word, exit code {code}"])[-1]


def main() -> None:
    """Entry of the new process: the function's name, the request as JSON on stdin, the answer as the last line out."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(f"mri_edge.{module}"), name)
    kind = next(iter(get_type_hints(function).values()))
    answer: dict[str, Any]
    try:
        answer = {"found": asdict(function(kind(**json.load(sys.stdin))))}
    except (MriEdgeError, ImportError) as error:
        answer = {"problem": str(error)}
    print(json.dumps(answer))
