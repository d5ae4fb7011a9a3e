"""Keep results in a file that survives a kill: append whole lines, and let the next run continue where they end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mri_edge.bundles.manifest import Artifact
from mri_edge.errors import InputError, OutputError, UsageError

from .prediction import SCHEMA_VERSION, Failure, Prediction, as_json

_BEGINNING = f'{{"schema_version": {SCHEMA_VERSION}, "file": '.encode()  # of every line that ``write`` appends


class Journal:
    """JSON lines on disk, one for each frame of each scan.

    Opening the file reads which scans have an answer, and removes a last line that a kill has cut short. Each result
    is written as a whole line by one ``write``, so that the file always ends in a whole line or in one partial line. A
    file that holds anything else is refused and not changed. Only one program at a time may write it.

    Parameters
    ----------
    path
        The file; it need not exist.
    model
        Title of the model. A file with answers of another model is refused.
    artifact
        The artifact that runs. A file with answers of an artifact of the same name but another hash is refused too,
        because the model was trained again.

    Attributes
    ----------
    skipped
        Number of scans that ``remaining`` left out because they have an answer.

    Raises
    ------
    UsageError
        Another program writes the file, it holds answers of another model, or it is not a journal.
    OutputError
        The file cannot be read or written.
    """

    def __init__(self, path: Path, model: str, artifact: Artifact | None = None) -> None:
        from mri_edge.storage.lock import lock

        self.path = path
        self._model = model
        self._artifact = artifact
        self._done: set[str] = set()  # scans that are complete, or that ``remaining`` has yielded
        self._frames: dict[str, set[int]] = {}  # which frames have an answer, of scans that have several
        self._failures: dict[tuple[str, int], dict[str, Any]] = {}
        self.skipped = 0
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{path}: is not a regular file, so it cannot be continued", "Name another file")
        try:
            # Unbuffered: the system gets each line as a whole, and keeps it however the process ends.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            lock(self._file)
            self._read()
        except BlockingIOError as error:
            self.close()
            raise UsageError(
                f"{path}: another mri-edge writes it", "Wait until it ends, or name another file"
            ) from error
        except OSError as error:
            self.close()
            raise _cannot_write(path, error) from error
        except UsageError:
            self.close()
            raise

    def remaining(self, sources: Iterable[str | InputError]) -> Iterator[str | InputError]:
        """Yield the sources that have no complete answer yet, each once."""
        for source in sources:
            if isinstance(source, str):
                if source in self._done:
                    self.skipped += 1
                    continue
                self._done.add(source)
            yield source

    def write(self, result: Prediction | Failure) -> None:
        """Append one result, unless the frame has an answer or this same failure already.

        Raises OutputError when the disk is full.
        """
        record = result.to_dict()
        if isinstance(result, Failure) and result.source is not None:
            key = result.source, result.index
            if self._failures.get(key) == record:
                return
            self._failures[key] = record
        elif result.index in self._frames.get(result.source or "", ()):
            return
        line = as_json(record).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot write ({error.strerror})", "Free some space and run again"
            ) from error
        if written != len(line):
            raise OutputError(f"{self.path}: the disk is full", "Free some space and run again: it continues from here")

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
        """Read which scans have an answer and which failed. Failed scans are tried again: the cause may be gone."""
        whole = 0  # bytes of whole lines
        cut_short = False
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    # A kill leaves a line that begins as ours do, or a part of that beginning. Any other is foreign.
                    if line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                        raise self._foreign(number)
                    cut_short = True
                    break
                try:
                    record = json.loads(line)
                    self._add(record, number)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise self._foreign(number) from error
                whole += len(line)
        if cut_short:  # only after every other line has been checked
            os.truncate(self.path, whole)

    def _add(self, record: dict[str, Any], number: int) -> None:
        """Record one line. Raises KeyError if it is not a result of mri-edge, UsageError if it is another model's."""
        if record["schema_version"] != SCHEMA_VERSION:
            raise KeyError("schema_version")
        scan, index, frames = record["file"], record.get("index", 0), record.get("frames", 1)
        if "error" in record:
            self._failures[scan, index] = record
            return
        model, artifact, digest = record["model"], record["artefact"], record["model_hash"]
        ours = self._artifact
        if model != self._model:
            found, wanted = repr(model), repr(self._model)
        elif ours is not None and artifact == ours.file and digest != ours.sha256[:12]:
            found, wanted = f"{model!r} ({digest})", f"{self._model!r} ({ours.sha256[:12]})"
        else:
            if not scan:
                return
            self._failures.pop((scan, index), None)
            if frames > 1:
                answered = self._frames.setdefault(scan, set())
                answered.add(index)
                if len(answered) < frames:
                    return
            self._done.add(scan)
            return
        raise UsageError(
            f"{self.path}: line {number} is an answer of {found}, but the model is {wanted}",
            "Name a new file, or the model that wrote this one",
        )

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"{self.path}: line {number} is not a result of mri-edge, so this file is not changed",
            "Name a new file, or the one to continue",
        )


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot write ({error.strerror})", "Name another file")
