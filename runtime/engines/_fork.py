"""Keep engines that a process inherits by ``fork`` from hanging or crashing it.

A forked child has its parent's memory but none of its threads. The native part of an inherited engine waits for
threads that are not there when it runs, and again when it is destroyed. So in the child it is never run and never
destroyed: its memory is shared with the parent, and goes when the child ends.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, NoReturn

from mri_edge.errors import EngineError

_opened: list[weakref.ref[Any]] = []  # in this process, and still there
_used: set[str] = set()  # names of the engines that were opened in this process
_inherited: set[str] = set()  # and of those that a parent of it had opened before it was forked


def guard(engine: Any) -> None:
    """In every child that this process forks, ``engine`` refuses to run, and its ``close`` does nothing."""
    _opened[:] = [one for one in _opened if one() is not None]
    _opened.append(weakref.ref(engine))
    _used.add(engine.name)


def is_inherited(engine: Any) -> bool:
    """Whether an engine was opened before this process was forked, so that it does not run here."""
    return getattr(engine, "run_all", None) is _refuse


def check_opens_here(name: str, *, opens_after_fork: bool) -> None:
    """Raise EngineError if a parent of this process opened such an engine, and its library bears no second start."""
    if name in _inherited and not opens_after_fork:
        raise EngineError(
            f"engine {name!r} was in use before this process was forked, and its library cannot start in the child",
            "Load the classifier after the fork, start processes by 'spawn', or take another engine",
        )


def _refuse(batch: object) -> NoReturn:
    raise EngineError(
        "this engine was opened before the process was forked, and does not run in the child", "Open it in the child"
    )


def _close_nothing() -> None:
    """There is nothing to give back: threads and memory are the parent's."""


def _disarm() -> None:
    for reference in _opened:
        if (engine := reference()) is not None:
            # One reference that nobody counts back: no destructor runs, not even when the interpreter ends.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
            engine.run = engine.run_all = _refuse
            engine.close = _close_nothing
    _opened.clear()
    _inherited.update(_used)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disarm)
