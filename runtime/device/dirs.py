"""Find the user's folders for mri-edge: cache (profiles of ``tune``, engines of ``warmup``) and state."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mri_edge.errors import UsageError


def cache_folder() -> Path:
    """Return the user's cache folder for mri-edge by the conventions of the system. It need not exist.

    XDG base directory specification on Linux; ``~/Library/Caches``; ``%LOCALAPPDATA%``.

    Raises
    ------
    UsageError
        This user has no home folder, which is common in services and containers.
    """
    return _user_folder("~/Library/Caches", "XDG_CACHE_HOME", "~/.cache")


def state_folder() -> Path:
    """Return the user's folder for facts that mri-edge keeps between runs and cannot compute again. It need not exist.

    XDG base directory specification on Linux; ``~/Library/Application Support``; ``%LOCALAPPDATA%``.

    Raises
    ------
    UsageError
        As for ``cache_folder``.
    """
    return _user_folder("~/Library/Application Support", "XDG_STATE_HOME", "~/.local/state")


def _user_folder(mac: str, variable: str, default: str) -> Path:
    """Return the folder for this system: ``mac``, or on Linux the value of ``variable``, else ``default``."""
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = mac
    else:
        root = os.environ.get(variable) or default
    folder = os.path.expanduser(root)
    if folder.startswith("~"):
        raise UsageError(
            "this user has no home folder for profiles and caches",
            "Set HOME to a folder, or MRI_EDGE_PROFILE_DIR for the profiles of 'mri-edge tune' only",
        )
    return Path(folder) / "mri-edge"


def profile_folder() -> Path:
    """Return the folder of device profiles: ``MRI_EDGE_PROFILE_DIR``, or one in ``cache_folder``, which may raise."""
    configured = os.environ.get("MRI_EDGE_PROFILE_DIR")
    return Path(configured) if configured else cache_folder() / "profiles"
