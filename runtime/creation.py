"""How a bundle or a record came to be: time, command line, versions and commit of this run."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from . import __version__
from .anonymous import without_paths
from .manifest import Creation

LIBRARIES = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "scikit-learn", "scipy")


def creation() -> Creation:
    """The manifest's entry for what is made by this very process."""
    return Creation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # A bundle travels: the folders of the machine that made it stay at home.
        command=without_paths(["mri-edge", *sys.argv[1:]]),
        code_version=__version__,
        code_commit=_commit(),
        libraries={"python": platform.python_version(), **_versions()},
        platform=f"{platform.system()} {platform.machine()}",
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Commit of this code, if it runs from a checkout of its own; an installed package has none."""
    here = Path(__file__).resolve()
    try:
        for question in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            answer = subprocess.run(  # noqa: S603 (our own arguments, no shell)
                ["git", "-C", str(here.parent), *question],  # noqa: S607 (git is where PATH says)
                capture_output=True,
                text=True,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
