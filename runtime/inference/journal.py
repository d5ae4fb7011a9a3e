"""A results file that survives a kill: whole lines are appended, and a second run goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mri_edge.bundles.manifest import Artefact
from mri_edge.errors import OutputError, UsageError

from .prediction import SCHEMA_VERSION, Failure, Pause, Prediction, as_json

_BEGINNING = f'{{"schema_version": {SCHEMA_VERSION}, "file": '.encode()  # of every line that ``write`` appends


class Journal:
    """JSON lines on disk, one a scan.

    Opening reads which files have an answer, and drops a last line that a kill cut short. Each result is written by
    one ``write`` of a whole line, so that at any moment the file ends well or in one partial line, which the next
    opening drops. A file that holds anything else is refused as it is. One program at a time writes it.

    Parameters
    ----------
    path
        The file, there or not.
    model
        Title of the model that answers: another one's answers are not gone on with.
    artefact
        What runs: nor are the answers of another file of the same name, as a model that was trained again has it.

    Attributes
    ----------
    skipped
        How many scans ``remaining`` left out, because they have their line.

    Raises
    ------
    UsageError
        The file is written by another program, or holds something that is no journal or another model's.
    OutputError
        The file cannot be read or written.
    """

    def __init__(self, path: Path, model: str, artefact: Artefact | None = None) -> None:
        from mri_edge.storage.lock import lock

        self.path = path
        self._model = model
        self._artefact = artefact
        self._done: set[str] = set()
        self._failures: dict[str, dict[str, Any]] = {}
        self.skipped = 0
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{path}: is no plain file, so it cannot be read again and gone on with", "Name another")
        try:
            # Unbuffered: a line is handed to the system whole, and is there however the process ends.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            lock(self._file)
            self._read()
        except BlockingIOError as error:
            self.close()
            raise UsageError(
                f"{path}: another mri-edge writes it", "Wait for that one, or name another file"
            ) from error
        except OSError as error:
            self.close()
            raise _cannot_write(path, error) from error
        except UsageError:
            self.close()
            raise

    def remaining(self, sources: Iterable[str | Failure | Pause]) -> Iterator[str | Failure | Pause]:
        """The sources that have no answer yet, each once."""
        for source in sources:
            if isinstance(source, str):
                if source in self._done:
                    self.skipped += 1
                    continue
                self._done.add(source)
            yield source

    def write(self, result: Prediction | Failure) -> None:
        """Append one result, unless it is the failure that the file ends with for this scan.

        Raises OutputError when the disk is full.
        """
        record = result.to_dict()
        if isinstance(result, Failure) and result.file is not None:
            if self._failures.get(result.file) == record:
                return
            self._failures[result.file] = record
        line = as_json(record).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot write ({error.strerror})", "Make room and run again") from error
        if written != len(line):
            raise OutputError(f"{self.path}: the disk is full", "Make room and run again: it goes on from here")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        """Note what has an answer and what failed: an error may be gone by now, so the scan is tried again."""
        whole = 0
        cut_short = False
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    # A kill leaves the beginning of one of our lines, or a piece of it; anything else is not ours.
                    if line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                        raise self._foreign(number)
                    cut_short = True
                    break
                try:
                    record = json.loads(line)
                    self._note(record, number)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise self._foreign(number) from error
                whole += len(line)
        if cut_short:  # only now, when every line before it is known to be ours
            os.truncate(self.path, whole)

    def _note(self, record: dict[str, Any], number: int) -> None:
        if record["schema_version"] != SCHEMA_VERSION:
            raise KeyError("schema_version")
        scan = record["file"]
        if "error" in record:
            self._failures[scan] = record
            return
        model, artefact, digest = record["model"], record["artefact"], record["model_hash"]
        ours = self._artefact
        if model != self._model:
            found, wanted = repr(model), repr(self._model)
        elif ours is not None and artefact == ours.file and digest != ours.sha256[:12]:
            found, wanted = f"{model!r} ({digest})", f"{self._model!r} ({ours.sha256[:12]})"
        else:
            if scan:
                self._done.add(scan)
                self._failures.pop(scan, None)
            return
        raise UsageError(
            f"{self.path}: line {number} is an answer of {found}, and this is {wanted}",
            "Name a new file, or the model to go on with",
        )

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"{self.path}: line {number} is no result of mri-edge, so nothing is written to this file",
            "Name a new file, or the one to go on with",
        )


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot write ({error.strerror})", "Name another file")
