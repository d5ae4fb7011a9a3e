"""Where mri-edge keeps what belongs to this machine: profiles of ``tune``, engines of ``warmup``, notes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mri_edge.errors import UsageError


def cache_folder() -> Path:
    """The user's cache folder for mri-edge, by the habits of the system; it need not exist yet.

    XDG base directory specification on Linux; ``~/Library/Caches``; ``%LOCALAPPDATA%``.

    Raises
    ------
    UsageError
        Nobody knows this user's home: a number without an account, as services and containers run under.
    """
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _of_user(root)


def state_folder() -> Path:
    """The user's folder for what mri-edge notes between runs and cannot make anew; it need not exist yet.

    XDG base directory specification on Linux; ``~/Library/Application Support``; ``%LOCALAPPDATA%``.

    Raises
    ------
    UsageError
        As for ``cache_folder``.
    """
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        root = "~/Library/Application Support"
    else:
        root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return _of_user(root)


def _of_user(root: str) -> Path:
    folder = os.path.expanduser(root)
    if folder.startswith("~"):
        raise UsageError(
            "this user has no home folder to keep profiles and caches in",
            "Set HOME to a folder, or for the profiles of 'mri-edge tune' alone MRI_EDGE_PROFILE_DIR",
        )
    return Path(folder) / "mri-edge"


def profile_folder() -> Path:
    """Folder of the device profiles: ``MRI_EDGE_PROFILE_DIR``, else within ``cache_folder``, which may raise."""
    named = os.environ.get("MRI_EDGE_PROFILE_DIR")
    return Path(named) if named else cache_folder() / "profiles"
