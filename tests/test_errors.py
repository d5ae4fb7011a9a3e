"""The error classes and exit codes match the module docstring."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from mri_edge import errors
from mri_edge.errors import MriEdgeError, first_line

CLASSES = [
    found_class
    for _, found_class in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found_class, MriEdgeError)
]


def test_docstring_lists_the_error_classes_and_exit_codes() -> None:
    drawn: dict[str, tuple[str, int]] = {}
    parents = ["MriEdgeError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"( *[│ ]*)[├└]── (\w+) .* exit (\d)$", line)
        if not found:
            continue
        depth = 1 if len(found[1]) <= 4 else 2
        parents[depth:] = [found[2]]
        drawn[found[2]] = (parents[depth - 1], int(found[3]))
    real = {
        error.__name__: (error.__bases__[0].__name__, error.exit_code) for error in CLASSES if error is not MriEdgeError
    }
    assert drawn == real


@pytest.mark.parametrize("kind", CLASSES)
def test_message_contains_problem_and_hint(kind: type[MriEdgeError]) -> None:
    assert str(kind("scan.jpg: no such file")) == "scan.jpg: no such file"
    assert str(kind("scan.jpg: no such file", "Look again")) == "scan.jpg: no such file. Look again"


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_can_be_pickled(kind: type[MriEdgeError]) -> None:
    error = pickle.loads(pickle.dumps(kind("problem", "hint")))  # noqa: S301
    assert type(error) is kind
    assert (error.problem, error.hint) == ("problem", "hint")


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (ValueError("\n  late"), "late"), (RuntimeError(), "RuntimeError")],
)
def test_first_line_of_a_library_error_is_never_empty(error, line):
    assert first_line(error) == line
