"""The state of an unfinished training: a folder beside its result, from which ``--resume`` goes on."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mri_edge import __version__
from mri_edge.errors import OutputError
from mri_edge.files import fingerprint, write_whole

from .framework import load_keras

# What alone is there when the data or the disk were found unfit: nothing that a resumed training would take up.
_BEFORE_TRAINING = {"identity", "pixels.npy", "slices"}


def work_folder(out: Path, facts: object, *, overwrite: bool, resume: bool) -> Path:
    """The folder that holds the state of the training whose result will be ``out``.

    ``facts``, as JSON can hold them, are all that decides the result beside the code: only a training with the same,
    by the same version, is resumed.

    Raises
    ------
    OutputError
        An unfinished training is there and ``resume`` was not said, or it is another one.
    """
    identity = fingerprint([__version__, json.dumps(facts)])
    work = out.absolute().with_name(f".{out.name}.training")
    record = work / "identity"
    try:
        if work.exists() and {file.name for file in work.iterdir()} <= _BEFORE_TRAINING:
            shutil.rmtree(work)
        if work.exists() and not resume:
            if not overwrite:
                raise OutputError(
                    f"{work}: an unfinished training is there", "--resume goes on with it, --overwrite begins anew"
                )
            shutil.rmtree(work)
        if record.is_file() and record.read_text() != identity:
            raise OutputError(
                f"{work}: the unfinished training there has another recipe, seed, data or backbone, or "
                "another version of mri-edge made it",
                "Give it the same options, or begin anew with --overwrite",
            )
        work.mkdir(parents=True, exist_ok=True)
        record.write_text(identity)
    except OSError as error:
        raise OutputError(f"{work}: cannot write ({error.strerror})", "Name another output folder") from error
    return work


def check_space(work: Path, wanted: int) -> None:
    """Raise OutputError unless the disk has ``wanted`` bytes free."""
    free = shutil.disk_usage(work).free
    if free < wanted:
        raise OutputError(
            f"{work.parent}: {free / 1e6:.0f} MB free, this training needs {wanted / 1e6:.0f} MB",
            "Make room, or name an output folder on another disk",
        )


def save(path: Path, variables: Sequence[Any], facts: object) -> None:
    """Write Keras variables, and facts as JSON can hold them, whole."""
    keras = load_keras()
    content = io.BytesIO()
    arrays = {f"v{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(variables)}
    np.savez(content, facts=json.dumps(facts), **arrays)
    write_whole(path, content.getbuffer())


def restore(path: Path, variables: Sequence[Any]) -> None:
    """Give variables the values that ``save`` wrote of them."""
    with np.load(path, allow_pickle=False) as content:
        for index, variable in enumerate(variables):
            variable.assign(content[f"v{index}"])


def facts_in(path: Path | None) -> Any:
    """The facts that ``save`` wrote, or None where there is no file."""
    if path is None or not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as content:
        return json.loads(str(content["facts"]))


def kept(path: Path | None, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, as JSON can hold it: kept at ``path``, and made only where it is not there yet."""
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    made = make()
    if path is not None:
        write_whole(path, json.dumps(made))
    return made
