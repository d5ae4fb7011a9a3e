"""Disable engines in a forked child, where they would hang or crash.

A forked child has its parent's memory but not its threads. When an inherited engine runs or is destroyed, its native
part waits for threads that do not exist. So the child never runs or destroys it; its memory is shared with the parent
and released when the child ends. This module uses ``ctypes.pythonapi`` (tested with CPython 3.10 to 3.13).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, NoReturn

from mri_edge.errors import EngineError

_opened: list[weakref.ref[Any]] = []  # engines of this process that still exist
_used: set[str] = set()  # names of engines opened in this process
_inherited: set[str] = set()  # names of engines that a parent opened before the fork


def guard(engine: Any) -> None:
    """Disable ``engine`` in every forked child of this process: it refuses to run, and ``close`` does nothing."""
    _opened[:] = [reference for reference in _opened if reference() is not None]
    _opened.append(weakref.ref(engine))
    _used.add(engine.name)


def is_inherited(engine: Any) -> bool:
    """Whether an engine was opened before this process was forked, and so cannot run in it."""
    return getattr(engine, "run_outputs", None) is _refuse


def check_opens_here(name: str, *, opens_after_fork: bool) -> None:
    """Raise EngineError if a parent of this process used this engine and its library cannot start again in a child."""
    if name in _inherited and not opens_after_fork:
        raise EngineError(
            f"engine {name!r} was in use before this process was forked, and its library cannot start in the child",
            "Load the classifier after the fork, start processes by 'spawn', or use another engine",
        )


def _refuse(*_: object) -> NoReturn:
    raise EngineError(
        "this engine was opened before the process was forked, and does not run in the child", "Open it in the child"
    )


def _close_nothing() -> None:
    """Do nothing: the threads and the memory belong to the parent."""


def _disable_inherited() -> None:
    for reference in _opened:
        if (engine := reference()) is not None:
            # Leak one reference, so that no destructor runs, not even at exit.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
            engine.run = engine.run_outputs = _refuse
            engine.close = _close_nothing
    _opened.clear()
    _inherited.update(_used)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_inherited)
