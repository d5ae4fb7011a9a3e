"""Run a function of this package in a separate process, so that a crash of a library becomes a result.

The function takes one dataclass and returns another. Both have plain types, because they are passed as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any, get_type_hints

from mri_edge.errors import MriEdgeError

# Remove the current folder, which may contain anything, from the module path before any import.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from mri_edge.benchmarking.isolated import main; main()"
# Exit codes of crashes: minus the signal's number on POSIX, NTSTATUS on Windows.
_ILLEGAL = "illegal instruction: the library was built for a newer CPU"
_CRASHED = "crashed: the library does not fit this system or driver"
_CRASH_CODES = {
    -4: f"{_ILLEGAL} (SIGILL)",
    -6: f"{_CRASHED} (SIGABRT)",
    -9: "killed, most likely because memory ran out (SIGKILL)",
    -11: f"{_CRASHED} (SIGSEGV)",
    0xC000001D: f"{_ILLEGAL} (STATUS_ILLEGAL_INSTRUCTION)",
    0xC0000005: f"{_CRASHED} (STATUS_ACCESS_VIOLATION)",
}


def run_isolated(function: str, request: Any, *, time_limit: float) -> dict[str, Any] | str:
    """Call ``"module:function"`` of this package in a new process. Failures there are returned, not raised.

    Parameters
    ----------
    request
        The function's argument, a dataclass.
    time_limit
        In seconds.

    Returns
    -------
    The fields of the returned dataclass, or a description of the problem.
    """
    try:
        done = subprocess.run(  # noqa: S603 (our own program, no shell)
            [sys.executable, "-c", _PROGRAM, function],
            input=json.dumps(asdict(request)),  # arguments are limited in length, and there may be many scans
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {time_limit:.0f} s"
    if done.returncode:
        return _describe_failure(done.returncode, done.stderr)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if problem := answer.get("problem"):
            return str(problem)
        found: dict[str, Any] = answer["found"]
        return found
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return f"its answer cannot be read: {done.stdout[-80:]!r}"


def _describe_failure(code: int, errors: str) -> str:
    if code in _CRASH_CODES:
        return _CRASH_CODES[code]
    if code < 0:
        return f"killed by signal {-code}"
    return (errors.strip().splitlines() or [f"failed without a message, exit code {code}"])[-1]


def main() -> None:
    """Run in the new process: function name as argument, request as JSON on stdin, answer as last line of stdout."""
    module, _, name = sys.argv[1].partition(":")
    function = getattr(import_module(f"mri_edge.{module}"), name)
    kind = next(iter(get_type_hints(function).values()))
    answer: dict[str, Any]
    try:
        answer = {"found": asdict(function(kind(**json.load(sys.stdin))))}
    except (MriEdgeError, ImportError) as error:
        answer = {"problem": str(error)}
    print(json.dumps(answer))
