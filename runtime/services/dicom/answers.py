"""Keep the answers for series on disk, with their DICOM objects, until each archive has them.

An answer is a folder ``SERIES-NUMBER`` in ``outbox/``, or in ``sent/`` once nothing is left to send. It appears there
as a whole: before that the series has no answer, afterwards it has exactly this one. A series gets another answer, with
the next number, only if it gets more instances.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mri_edge.errors import OutputError
from mri_edge.inference.prediction import NOTICE, as_json
from mri_edge.services.dicom_results.objects import ResultObject
from mri_edge.services.dicom_results.origin import Predecessor
from mri_edge.storage.atomic import atomic_folder, atomic_write, sync_folder

RECORD = "answer.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """An answer on disk.

    Attributes
    ----------
    folder
        ``SERIES-NUMBER``, with the record ``answer.json`` and the objects.
    number
        From 1: a series that got more instances has several answers.
    instances
        Hash over the instances that were classified.
    objects
        What there is to send: file, study, series, sop_class and instance of each object, and the slices of a report.
    """

    folder: Path
    number: int
    instances: str
    objects: tuple[dict[str, Any], ...]

    @property
    def reports(self) -> list[Predecessor]:
        """The structured reports among the objects."""
        return [
            Predecessor(
                **{key: found[key] for key in ("study", "series", "sop_class", "instance")},
                slices=found.get("slices", frozenset()),  # answers of earlier versions have none
            )
            for found in self.objects
            if found["file"].startswith("sr-")
        ]

    def marker(self, destination: str, state: str) -> Path:
        """As the function ``marker``, for this answer."""
        return marker(self.folder, destination, state)


def marker(folder: Path, destination: str, state: str) -> Path:
    """Return the file that says that an answer is "delivered" to an archive, or "requested" to be committed."""
    return folder / f"{hashlib.sha256(destination.encode()).hexdigest()[:16]}.{state}"


class Answers:
    """The folders ``outbox/`` and ``sent/`` of a spool."""

    def __init__(self, outbox: Path, sent: Path) -> None:
        self._outbox = outbox
        self._sent = sent

    def recover(self) -> None:
        """Remove answers that a kill left half-written. Call it while nobody else writes."""
        for folder in (self._outbox, self._sent):
            for path in folder.glob(".*.new-*"):
                shutil.rmtree(path, ignore_errors=True)

    def of(self, key: str) -> list[Answer]:
        """Return the answers for a series that nobody deleted, the last one first."""
        found = (self._find(key, number) for number in sorted(self._numbers(key), reverse=True))
        return [answer for answer in found if answer is not None]

    def next_number(self, key: str) -> int:
        """Return a number above those of all folders of a series, also of those that are no answers any more."""
        return max(self._numbers(key), default=0) + 1

    def write(
        self,
        key: str,
        number: int,
        instances: str,
        results: Sequence[dict[str, Any]],
        problems: Sequence[str],
        objects: Sequence[ResultObject],
    ) -> None:
        """Write an answer as a whole; it is on disk when this returns. Raises OutputError."""
        parent = self._outbox if objects else self._sent
        record = {
            "schema_version": _SCHEMA_VERSION,
            "number": number,
            "instances": instances,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "results": list(results),
            "problems": list(problems),
            "objects": [
                {
                    "file": item.name,
                    "study": item.study,
                    "series": item.series,
                    "sop_class": item.sop_class,
                    "instance": item.instance,
                    "slices": item.slices,
                }
                for item in objects
            ],
            "notice": NOTICE,
        }
        with atomic_folder(parent / f"{key}-{number}") as folder:
            for item in objects:
                (folder / item.name).write_bytes(item.content)
            (folder / RECORD).write_text(as_json(record, indent=2) + "\n", encoding="utf-8")

    def waiting(self, skip: Callable[[Path], bool] = lambda folder: False) -> Iterator[Answer]:
        """Yield the answers in the outbox, the oldest first, without those whose folders are to be skipped."""
        entries = []
        with suppress(FileNotFoundError), os.scandir(self._outbox) as found:
            for entry in found:
                with suppress(OSError):
                    if not entry.name.startswith("."):
                        entries.append((entry.stat().st_mtime, entry.path))
        for _, path in sorted(entries):
            if not skip(Path(path)) and (answer := _read(Path(path))) is not None:
                yield answer

    def deliver(self, answer: Answer, destination: str, destinations: Sequence[str]) -> None:
        """Note that an archive has an answer, and move the answer to ``sent/`` if all archives have it.

        Raises
        ------
        OutputError
            The disk is full.
        """
        atomic_write(answer.marker(destination, "delivered"), "")
        with suppress(OSError):
            answer.marker(destination, "requested").unlink(missing_ok=True)
        if all(answer.marker(name, "delivered").exists() for name in destinations):
            try:
                os.rename(answer.folder, self._sent / answer.folder.name)
            except FileNotFoundError:  # the thread of another archive has moved it
                return
            except OSError as error:
                raise OutputError(f"{answer.folder}: cannot be moved ({error.strerror})", "Free some space") from error
            sync_folder(self._sent)

    def _numbers(self, key: str) -> set[int]:
        names = [path.name for parent in (self._outbox, self._sent) for path in parent.glob(f"{key}-*")]
        return {int(digits) for name in names if (digits := name.removeprefix(f"{key}-")).isdecimal()}

    def _find(self, key: str, number: int) -> Answer | None:
        # It may move from the outbox to ``sent`` between two looks, but never back.
        for parent in (self._outbox, self._sent, self._sent):
            if (answer := _read(parent / f"{key}-{number}")) is not None:
                return answer
        return None


def _read(folder: Path) -> Answer | None:
    """Return the answer in a folder; None if it is gone or is no answer."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        objects = tuple(
            {name: frozenset(value) if name == "slices" else str(value) for name, value in found.items()}
            for found in record["objects"]
        )
        return Answer(folder, int(record["number"]), str(record["instances"]), objects)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
