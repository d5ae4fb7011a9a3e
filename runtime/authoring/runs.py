"""Find the newest bundle in ``runs/``, the default output of training, and remember its data folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST
from mri_edge.device.dirs import state_folder
from mri_edge.errors import ManifestError, MriEdgeError, UsageError
from mri_edge.storage.atomic import atomic_write

RUNS = Path("runs")


def last_trained(wanted: Callable[[Bundle], bool] = lambda bundle: True, folder: Path = RUNS) -> Bundle | None:
    """The bundle in ``folder`` that was trained last, of those that can be opened and are ``wanted``, or None.

    Training times are read from the manifests, because exporting or copying a bundle changes the times of its files.
    """
    newest: tuple[tuple[datetime, int], Bundle] | None = None
    for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
        if path.name.startswith(".") or not os.path.isdir(path):
            continue
        try:
            bundle = Bundle.open(path)
            made = datetime.fromisoformat(bundle.manifest.creation.created)
            # Within the same second, compare the times of the files.
            time = (made if made.tzinfo else made.replace(tzinfo=timezone.utc), (path / MANIFEST).stat().st_mtime_ns)
        except (MriEdgeError, ValueError, OSError):
            continue
        if (newest is None or time > newest[0]) and wanted(bundle):
            newest = time, bundle
    return newest[1] if newest else None


def remember_data(bundle: Bundle, data: Path) -> None:
    """Remember on this machine which folder contains the training images of a bundle.

    The record is kept in the user's state folder, because a bundle is passed on and must not contain paths. If it
    cannot be written, the user has to name the folder later.
    """
    try:
        path = _record_path(bundle)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"data": os.path.abspath(data)}) + "\n")
    except (MriEdgeError, OSError):
        return


def remembered_data(bundle: Bundle) -> Path:
    """The folder that ``remember_data`` recorded. Callers compare its images with the split record.

    Raises
    ------
    UsageError
        There is no record on this machine, or the folder no longer exists.
    """
    try:
        folder = Path(json.loads(_record_path(bundle).read_text(encoding="utf-8"))["data"])
    except (MriEdgeError, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{bundle.folder}: this machine has no record of the folder it was trained from", "Name it: --data DIR"
        ) from error
    if not os.path.isdir(folder):
        raise UsageError(
            f"{bundle.folder}: was trained from {folder}, which is no longer there",
            "Name the folder where the images are now: --data DIR",
        )
    return folder


def as_typed(folder: Path) -> str:
    """A bundle's folder as a command-line argument: ``./small``, because ``small`` may name an embedded model."""
    return f"./{folder}" if folder.name == str(folder) else str(folder)


def _record_path(bundle: Bundle) -> Path:
    name = bundle.manifest.training.data_fingerprint[:32]
    if re.fullmatch("[0-9a-f]{32}", name) is None:  # otherwise a bundle could name any file
        raise ManifestError(f"{bundle.folder}: the fingerprint of its training data is no SHA-256")
    return state_folder() / "data" / f"{name}.json"


def choose_bundle(position: str | None, option: str | None) -> str | None:
    """The name of the bundle, given by position or with ``--model``, or None.

    Raises
    ------
    UsageError
        Both were given and differ.
    """
    if position and option and position != option:
        raise UsageError(f"two bundles are named: {position}, and with --model {option}", "Name one")
    return position or option
