"""Keep the state of an unfinished training in a work folder next to its output, so that ``--resume`` can continue."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge import __version__
from mri_edge.authoring.quiet import load_keras
from mri_edge.authoring.runs import RUNS
from mri_edge.errors import OutputError, UsageError
from mri_edge.storage.atomic import atomic_write, clear_leftovers, fingerprint
from mri_edge.storage.staging import locked_folder

# A work folder with only these files is from before the end of the first epoch: there is nothing to resume.
_BEFORE_TRAINING = {"identity", "pixels.npy", "slices", "validation.npy", "views.npy"}


class _TakenError(UsageError):
    """Another training is writing the same output."""


@contextmanager
def claimed(out: Path) -> Iterator[Path]:
    """Lock ``out`` for one training while the block runs, by a lock on its work folder; yield ``out``.

    The system releases the lock however the program ends. A work folder with nothing to resume is removed, and so are
    the parent folders that were created for it.

    Raises
    ------
    UsageError
        Another training is writing the same output.
    OutputError
        The work folder cannot be created.
    """
    work = _work_folder(out)
    new_parents = [folder for folder in work.parents if not os.path.lexists(folder)]
    taken = _TakenError(f"{out}: another training is writing it", "Wait for it, or choose another --out")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(work, error) from error
    with locked_folder(work, taken):
        try:
            yield out
        finally:
            if not has_state(out):
                shutil.rmtree(work, ignore_errors=True)
                for folder in new_parents:
                    with suppress(OSError):  # not empty: it contains the bundle
                        folder.rmdir()


@contextmanager
def claimed_run(name: str, *, resume: bool) -> Iterator[Path]:
    """Lock the next free folder of ``runs/NAME``, ``runs/NAME-2``, …; with ``resume``, the last interrupted one.

    Raises
    ------
    UsageError
        There is nothing to resume.
    OutputError
        The folder cannot be created.
    """
    if resume:
        with claimed(_last_interrupted(name)) as out:
            yield out
        return
    for number in count(1):
        out = RUNS / (name if number == 1 else f"{name}-{number}")
        with ExitStack() as claim:
            try:
                claim.enter_context(claimed(out))
            except _TakenError:
                continue
            # Check only now: before the lock was taken, another training may have finished here.
            if os.path.lexists(out) or has_state(out):
                continue
            yield out
            return


def has_state(out: Path) -> bool:
    """Return whether an unfinished training of ``out`` can be resumed."""
    try:
        return not {path.name for path in _work_folder(out).rglob("*") if not path.is_dir()} <= _BEFORE_TRAINING
    except OSError:
        return False


def _last_interrupted(name: str) -> Path:
    pattern = re.compile(rf"\.({re.escape(name)}(?:-\d+)?)\.training")
    found = [match for path in RUNS.iterdir() if (match := pattern.fullmatch(path.name))] if RUNS.is_dir() else []
    outs = [out for match in found if has_state(out := RUNS / match[1])]
    if not outs:
        raise UsageError(f"{RUNS}/ has no interrupted training of {name}", "Give its --out, or train without --resume")
    return max(outs, key=lambda out: _work_folder(out).stat().st_mtime_ns)


def _work_folder(out: Path) -> Path:
    return out.absolute().with_name(f".{out.absolute().name}.training")


def _clear(work: Path) -> None:
    """Remove the content of a work folder, but not the folder itself, which carries the lock."""
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _cannot_write(work: Path, error: OSError) -> OutputError:
    return OutputError(f"{work}: cannot write ({error.strerror})", "Choose another output folder")


def work_folder(out: Path, facts: object, *, overwrite: bool, resume: bool) -> Path:
    """Return the folder for the state of the training that writes ``out``.

    ``facts`` are JSON values that, together with the code, determine the result. A training is resumed only with the
    same facts and the same version.

    Raises
    ------
    OutputError
        There is an unfinished training, and ``resume`` is False or it has other facts.
    """
    identity = fingerprint([__version__, json.dumps(facts)])
    work = _work_folder(out)
    record = work / "identity"
    try:
        work.mkdir(parents=True, exist_ok=True)
        clear_leftovers(work)
        if not has_state(out):
            _clear(work)
        elif not resume:
            if not overwrite:
                raise OutputError(
                    f"{work}: an unfinished training is there",
                    "Use --resume to continue it, or --overwrite to start over",
                )
            _clear(work)
        if record.is_file() and record.read_text() != identity:
            raise OutputError(
                f"{work}: the unfinished training has another recipe, seed, data, backbone or version of mri-edge",
                "Use the same options, or start over: --overwrite without --resume",
            )
        record.write_text(identity)
    except OSError as error:
        raise _cannot_write(work, error) from error
    return work


def check_space(work: Path, wanted: int) -> None:
    """Raise OutputError unless the disk has ``wanted`` bytes free."""
    free = shutil.disk_usage(work).free
    if free < wanted:
        raise OutputError(
            f"{work.parent}: {free / 1e6:.0f} MB free, this training needs {wanted / 1e6:.0f} MB",
            "Free disk space, or choose an output folder on another disk",
        )


def save(path: Path, variables: Sequence[Any], facts: object) -> None:
    """Write Keras variables and facts (JSON values) atomically."""
    keras = load_keras("train")
    content = io.BytesIO()
    arrays = {f"v{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(variables)}
    np.savez(content, facts=json.dumps(facts), **arrays)
    atomic_write(path, content.getbuffer())


def restore(path: Path, variables: Sequence[Any]) -> None:
    """Restore the variables that ``save`` wrote."""
    with np.load(path, allow_pickle=False) as content:
        for index, variable in enumerate(variables):
            variable.assign(content[f"v{index}"])


def facts_in(path: Path | None) -> Any:
    """Return the facts that ``save`` wrote, or None if there is no file."""
    if path is None or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as content:
        return json.loads(str(content["facts"]))
