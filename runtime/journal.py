"""A results file that survives a kill: whole lines are appended, and a second run goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from .errors import OutputError
from .prediction import Failure, Pause, Prediction, as_json


class Journal:
    """JSON lines on disk, one a scan.

    Opening drops a last line that a kill cut short and remembers which files have an answer. Each
    result is written by one ``write`` of a whole line, so that at any moment the file ends well
    or in one partial line, which the next opening drops. One program at a time writes it.

    Parameters
    ----------
    path
        The file, there or not.
    model
        Title of the model that answers: another one's answers are not gone on with.

    Attributes
    ----------
    skipped
        How many scans ``remaining`` left out, because they have their line.

    Raises
    ------
    OutputError
        The file cannot be read or written, is written by another program, or holds something that is no journal
        or another model's.
    """

    def __init__(self, path: Path, model: str) -> None:
        from .watching.lock import lock

        self.path = path
        self._model = model
        self.skipped = 0
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{path}: is no plain file, so it cannot be read again and gone on with", "Name another")
        try:
            # Unbuffered: a line is handed to the system whole, and is there however the process ends.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            lock(self._file)
            self._done = self._read()
        except BlockingIOError as error:
            self.close()
            raise OutputError(
                f"{path}: another mri-edge writes it", "Wait for that one, or name another file"
            ) from error
        except OSError as error:
            self.close()
            raise _cannot_write(path, error) from error
        except OutputError:
            self.close()
            raise

    def remaining(self, sources: Iterable[str | Failure | Pause]) -> Iterator[str | Failure | Pause]:
        """The sources that have no answer yet, each once."""
        for one in sources:
            if isinstance(one, str):
                if one in self._done:
                    self.skipped += 1
                    continue
                self._done.add(one)
            yield one

    def write(self, result: Prediction | Failure) -> None:
        """Append one result. Raises OutputError when the disk is full."""
        line = as_json(result.to_dict()).encode() + b"\n"
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

    def _read(self) -> set[str]:
        """The files that have an answer; an error may be gone by now, so it is none."""
        done: set[str] = set()
        whole = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    os.truncate(self.path, whole)
                    break
                try:
                    record = json.loads(line)
                    scan, model = record["file"], None if "error" in record else record["model"]
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputError(
                        f"{self.path}: line {number} is no result of mri-edge",
                        "Name a new file, or the one to go on with",
                    ) from error
                if model not in (None, self._model):
                    raise OutputError(
                        f"{self.path}: line {number} is an answer of {model!r}, and this is {self._model!r}",
                        "Name a new file, or the model to go on with",
                    )
                if scan and model:
                    done.add(scan)
                whole += len(line)
        return done


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot write ({error.strerror})", "Name another file")
