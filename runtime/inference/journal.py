"""Keep results in a file that survives a kill: append whole lines, and let the next run continue where they end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mri_edge.bundles.manifest import Artifact
from mri_edge.errors import InputError, OutputError, UsageError

from .prediction import SCHEMA_VERSION, Failure, Prediction, as_json

if TYPE_CHECKING:
    from .series import SeriesPrediction, StudyPrediction

_BEGINNINGS = tuple(  # of every line that a journal appends
    f'{{"schema_version": {SCHEMA_VERSION}, "{key}": '.encode() for key in ("file", "by")
)

Lines = TypeVar("Lines", bound="JsonLines")


class JsonLines:
    """The file of a journal: whole JSON lines, each one result of the same model.

    Opening the file passes its records to ``_add``, and removes a last line that a kill has cut short. Each record is
    written as a whole line by one ``write``, so that the file always ends in a whole line or in one partial line. A
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
    by
        What a result is about: "slice", "series" or "study". A file with other results is refused.
    window
        The option by which values become pictures (``ReadOptions.window_name``). Each line about DICOM or NIfTI holds
        it, and a file with such lines of another window is refused. None: not checked and not written.

    Raises
    ------
    UsageError
        Another program writes the file, it holds answers of another model or another window, or it is not a journal.
    OutputError
        The file cannot be read or written.
    """

    def __init__(self, path: Path, model: str, artifact: Artifact | None, by: str, window: str | None) -> None:
        from mri_edge.storage.lock import lock

        self.path = path
        self._model = model
        self._artifact = artifact
        self._by = by
        self._window = window
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

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self: Lines) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """Check every line, and pass its record to ``_add``."""
        whole = 0  # bytes of whole lines
        cut_short = False
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    # A kill leaves a line that begins as ours do, or a part of that beginning. Any other is foreign.
                    if not any(line.startswith(beginning[: len(line)]) for beginning in _BEGINNINGS):
                        raise self._foreign(number)
                    cut_short = True
                    break
                try:
                    record = json.loads(line)
                    self._check(record, number)
                    self._add(record)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise self._foreign(number) from error
                whole += len(line)
        if cut_short:  # only after every other line has been checked
            os.truncate(self.path, whole)

    def _check(self, record: dict[str, Any], number: int) -> None:
        """Raise KeyError if a record is no result of mri-edge, UsageError if another model, kind or window made it."""
        if record["schema_version"] != SCHEMA_VERSION:
            raise KeyError("schema_version")
        if "error" in record:
            return
        by = record.get("by", "slice")
        if by != self._by:
            raise UsageError(
                f"{self.path}: line {number} is a result by {by}, but this run gives results by {self._by}",
                f"Name a new file, or run with --by {by}",
            )
        window = record.get("window_option")
        if window is not None and self._window not in (None, window):
            raise UsageError(
                f"{self.path}: line {number} is an answer with --window {window}, "
                f"but this run has --window {self._window}",
                f"Name a new file, or run with --window {window}",
            )
        model, artifact, digest = record["model"], record["artefact"], record["model_hash"]
        ours = self._artifact
        if model != self._model:
            found, wanted = repr(model), repr(self._model)
        elif ours is not None and artifact == ours.file and digest != ours.sha256[:12]:
            found, wanted = f"{model!r} ({digest})", f"{self._model!r} ({ours.sha256[:12]})"
        else:
            return
        raise UsageError(
            f"{self.path}: line {number} is an answer of {found}, but the model is {wanted}",
            "Name a new file, or the model that wrote this one",
        )

    def _add(self, record: dict[str, Any]) -> None:
        """Take note of a record. Raises KeyError if something is missing in it."""
        raise NotImplementedError

    def _append(self, record: dict[str, Any]) -> None:
        """Write one line. Raises OutputError when the disk is full."""
        if self._window is not None and _has_values(record):
            record = record | {"window_option": self._window}
        line = as_json(record).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot write ({error.strerror})", "Free some space and run again"
            ) from error
        if written != len(line):
            raise OutputError(f"{self.path}: the disk is full", "Free some space and run again: it continues from here")

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"{self.path}: line {number} is not a result of mri-edge, so this file is not changed",
            "Name a new file, or the one to continue",
        )


class Journal(JsonLines):
    """A journal with one result for each frame of each scan. Failed scans are tried again: the cause may be gone.

    Parameters and errors are those of ``JsonLines``.

    Attributes
    ----------
    skipped
        Number of scans that ``remaining`` left out because they have an answer.
    """

    def __init__(self, path: Path, model: str, artifact: Artifact | None = None, window: str | None = None) -> None:
        self._done: set[str] = set()  # scans that are complete, or that ``remaining`` has yielded
        self._frames: dict[str, set[int]] = {}  # which frames have an answer, of scans that have several
        self._failures: dict[tuple[str, int], dict[str, Any]] = {}
        self.skipped = 0
        super().__init__(path, model, artifact, "slice", window)

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
        self._append(record)

    def _add(self, record: dict[str, Any]) -> None:
        scan, index, frames = record["file"], record.get("index", 0), record.get("frames", 1)
        if "error" in record:
            self._failures[scan, index] = record
            return
        if not scan:
            return
        self._failures.pop((scan, index), None)
        if frames > 1:
            answered = self._frames.setdefault(scan, set())
            answered.add(index)
            if len(answered) < frames:
                return
        self._done.add(scan)


class SeriesJournal(JsonLines):
    """A journal with one result for each series or study.

    A series is known by its slices (``SeriesPrediction.identity``), so that a series which has grown is classified
    again. One with failed slices is tried again, and so is one that was skipped; the same outcome is not written twice.

    Parameters and errors are those of ``JsonLines``.
    """

    def __init__(self, path: Path, model: str, artifact: Artifact, by: str, window: str | None = None) -> None:
        self._done: set[str] = set()
        self._problems: dict[str, list[Any]] = {}  # by identity or file: what was wrong in the latest record
        super().__init__(path, model, artifact, by, window)

    def has(self, identity: str) -> bool:
        """Whether this series or study has a complete answer."""
        return identity in self._done

    def write(self, result: SeriesPrediction | StudyPrediction | Failure) -> None:
        """Append one result, unless it has the same problems as the latest one.

        Raises OutputError when the disk is full.
        """
        record = result.to_dict()
        key, problems = _key_and_problems(record)
        if problems and self._problems.get(key) == problems:
            return
        self._problems[key] = problems
        self._append(record)

    def _add(self, record: dict[str, Any]) -> None:
        key, problems = _key_and_problems(record)
        self._problems[key] = problems
        if not problems:
            self._done.add(key)


def _has_values(record: dict[str, Any]) -> bool:
    """Whether a result is about a format that holds values, which a window turned into a picture."""
    members = record["series"] if record.get("by") == "study" else [record]
    slices = [piece for member in members for piece in member.get("slices", [member])]
    return any("dicom" in piece or "nifti" in piece for piece in slices)


def _key_and_problems(record: dict[str, Any]) -> tuple[str, list[Any]]:
    """Return what identifies a record of a series or study, and its failures and skipped series."""
    if "error" in record:
        return f"file {record['file']}", [record["error"]]
    series = record["series"] if record["by"] == "study" else [record]
    failures = [piece["error"] for member in series for piece in member["slices"] if "error" in piece]
    # A study is complete without the series that were skipped; a series that was skipped has no answer.
    skipped = [] if record["by"] == "study" else [member["skipped"] for member in series if "skipped" in member]
    return record["id"], failures + skipped


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot write ({error.strerror})", "Name another file")
