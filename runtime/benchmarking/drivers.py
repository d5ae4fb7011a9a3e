"""What loads a model with queries here: the real load generator where it is installed, else our own driver."""

from __future__ import annotations

from .loadgen import LoadgenDriver, is_installed
from .scenario import Driver, OwnDriver


def driver() -> Driver:
    """The real load generator where it is installed (extra ``bench``), else our own."""
    return LoadgenDriver() if is_installed() else OwnDriver()
