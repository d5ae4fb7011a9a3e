"""Keep what a run was begun with, and refuse to continue it with anything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mri_edge.errors import UsageError
from mri_edge.storage.atomic import atomic_write
from mri_edge.storage.lock import LOCK

RECORD = "run.json"
INPUTS, UNFINISHED, FOLDERS = "inputs", ".inputs.new", ".inputs.folders"  # these exist before the record
_SCHEMA_VERSION = 1
_OPTIONS = {  # what a user changes to get the value of the record
    "sources": "other sources",
    "by": "--by",
    "model": "--model",
    "artifact": "--artifact",
    "engine": "--engine",
    "provider": "--provider",
    "allow_fallback": "--allow-fallback",
    "window": "--window",
    "any_modality": "--any-modality",
    "plane": "--plane",
    "heatmap": "--heatmap",
    "folder": "the working folder",
    "version": "the version of mri-edge",
}


@dataclass(frozen=True)
class RunRecord:
    """Everything on which a row of the results depends, and how the list of inputs is divided.

    Attributes
    ----------
    sources
        As the user gave them.
    model, sha256
        Title of the model, and the SHA-256 of the artifact.
    folder
        To which relative paths refer; empty if all sources are absolute.
    per_part
        Inputs in each row group of the list of inputs.
    inputs
        Their number; None before they are listed.
    """

    sources: tuple[str, ...]
    by: str
    model: str
    sha256: str
    artifact: str
    engine: str
    provider: str
    allow_fallback: bool
    window: str
    any_modality: bool
    plane: str
    heatmap: bool
    version: str
    folder: str
    per_part: int
    inputs: int | None = None

    def write(self, out: Path) -> None:
        """Write the record. Raises OutputError."""
        text = json.dumps({"schema_version": _SCHEMA_VERSION, **asdict(self)}, indent=2)
        atomic_write(out / RECORD, text + "\n")


def begun_run(out: Path, run: RunRecord) -> RunRecord | None:
    """Return the record of the run that was begun in ``out``, or None if the folder is new or empty.

    Raises
    ------
    UsageError
        The run was begun with another model, version, window or other options, or the folder holds other files.
    """
    try:
        text = (out / RECORD).read_bytes()
    except FileNotFoundError:
        if out.is_dir() and {path.name for path in out.iterdir()} - {LOCK, INPUTS, UNFINISHED, FOLDERS}:
            raise UsageError(f"{out}: holds files, but no run to continue", "Name a new folder") from None
        return None
    except OSError as error:
        raise UsageError(f"{out / RECORD}: cannot read ({error.strerror})", "Name a new folder") from error
    try:
        found = json.loads(text)
        is_known = found.pop("schema_version") == _SCHEMA_VERSION
        begun = RunRecord(**found | {"sources": tuple(found["sources"])}) if is_known else None
    except (ValueError, KeyError, TypeError, AttributeError):
        begun = None
    if begun is None:
        raise UsageError(f"{out / RECORD}: is no record of a run", "Name a new folder")
    if begun.sha256 != run.sha256 and begun.model == run.model:
        raise _other(out, "--model", f"{begun.model} ({begun.sha256[:12]})", f"{run.model} ({run.sha256[:12]})")
    for name, option in _OPTIONS.items():
        before, now = getattr(begun, name), getattr(run, name)
        if before != now:
            shown = [" ".join(value) if isinstance(value, tuple) else str(value) for value in (before, now)]
            raise _other(out, option, *shown)
    return begun


def _other(out: Path, option: str, before: str, now: str) -> UsageError:
    return UsageError(
        f"{out}: the run was begun with {option} {before:.200}, and this run has {now:.200}",
        "Name a new folder, or run as before",
    )
