"""Send answers to one archive, again and again until it has them: a thread for each archive, with growing pauses."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mri_edge.errors import MriEdgeError, first_line

from .answers import Answer, Answers, marker
from .counters import Counters

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
_LOOK_S = 5.0  # how often the outbox is read without a notice
_MAX_REFUSED = 10_000  # answers whose next attempt is remembered; others are tried at once


class Unreachable(Exception):
    """The archive does not answer, or takes nothing at present. Other answers would fail too."""


class Refused(Exception):
    """The archive refused this answer. Others may pass."""


class Connection(Protocol):
    """An open connection to an archive."""

    def send(self, answer: Answer) -> bool:
        """Send the objects of an answer. Returns whether they are delivered; False: a commitment will follow.

        Raises
        ------
        Unreachable, Refused
            As their names say.
        """


class Archive(Protocol):
    """An archive that takes answers. ``name`` is its address as the user wrote it."""

    name: str

    def start(self, delivery: Delivery, waiting: Iterator[Answer]) -> None:
        """Take the delivery to notify of commitments, and the answers that an earlier run may have sent."""

    def connect(self) -> AbstractContextManager[Connection]:
        """Open a connection for any number of answers. Raises Unreachable."""

    def forget(self) -> Iterator[Answer]:
        """Yield answers to send again, because no commitment came in time."""


@dataclass
class _Pause:
    """The time until the next attempt. It doubles with each failure, up to a limit; chance spreads the attempts."""

    longest_s: float
    seconds: float = 0.0
    until: float = 0.0
    reason: str = ""

    def grow(self) -> None:
        self.seconds = min(max(FIRST_PAUSE_S, self.seconds * 2), self.longest_s)
        self.until = time.monotonic() + self.seconds * random.uniform(0.75, 1)


class Delivery(threading.Thread):
    """The thread that sends to one archive.

    Parameters
    ----------
    answers
        The outbox.
    archive
        Where to send.
    destinations
        The names of all archives: an answer leaves the outbox when all have it.
    report
        Called with a message when the archive stops or begins to take answers, and about each refused answer.
    """

    def __init__(
        self,
        answers: Answers,
        archive: Archive,
        destinations: Sequence[str],
        counters: Counters,
        report: Callable[[str], None],
        *,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        super().__init__(name=f"delivery to {archive.name}", daemon=True)
        self.archive = archive
        self.problem: str | None = None
        self._answers = answers
        self._destinations = destinations
        self._counters = counters
        self._report = report
        self._longest_pause_s = longest_pause_s
        self._pause = _Pause(longest_pause_s)
        self._refused: dict[Path, _Pause] = {}  # by the folder of the answer
        self._wake = threading.Event()
        self._ended = threading.Event()

    @property
    def next_attempt_s(self) -> float:
        """Seconds until the archive is tried again; 0 if it takes answers."""
        return max(0.0, self._pause.until - time.monotonic())

    @property
    def refusal(self) -> tuple[str, float] | None:
        """The newest refused answer that waits: what to say of it, and the seconds until it is sent again."""
        for folder, pause in reversed(list(self._refused.items())):
            if folder.exists():  # nobody deleted it
                return f"refused the result {folder.name}: {pause.reason}", max(0.0, pause.until - time.monotonic())
        return None

    def wake(self) -> None:
        """Look at the outbox now."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread after the current answer."""
        self._ended.set()
        self._wake.set()

    def run(self) -> None:
        """Send until ``stop``."""
        started = False
        while not self._ended.is_set():
            try:
                if not started:
                    self.archive.start(self, self._answers.waiting())
                    started = True
                self._send_waiting()
            except Unreachable as error:
                self._fail(str(error))
            except (OSError, MriEdgeError) as error:
                self._fail(first_line(error))
            except Exception as error:  # noqa: BLE001 (an unexpected answer of an archive must not end deliveries)
                self._fail(f"{type(error).__name__} while sending")
            if self.next_attempt_s:
                self._ended.wait(self.next_attempt_s)  # new answers do not shorten a pause
            else:
                self._wake.wait(_LOOK_S)
            self._wake.clear()

    def _send_waiting(self) -> None:
        if self.next_attempt_s:
            return
        for answer in self.archive.forget():
            self._refuse(answer, "the archive did not confirm the storage in time")
        due = self._due()
        first = next(due, None)
        if first is None:
            return
        with self.archive.connect() as connection:
            self._send(connection, first)
            for answer in due:
                if self._ended.is_set():
                    break
                self._send(connection, answer)
        self._pause = _Pause(self._longest_pause_s)
        if self.problem is not None:
            self.problem = None
            self._report(f"{self.archive.name}: takes results again")

    def _due(self) -> Iterator[Answer]:
        for answer in self._answers.waiting(self._is_settled):
            if answer.marker(self.archive.name, "delivered").exists():
                self._answers.deliver(answer, self.archive.name, self._destinations)  # a kill came before its move
            else:
                yield answer

    def _is_settled(self, folder: Path) -> bool:
        """Whether there is nothing to send now. Thousands of answers may wait like this, so they are not read."""
        refused = self._refused.get(folder)
        if refused is not None and refused.until > time.monotonic():
            return True
        name = self.archive.name
        return marker(folder, name, "requested").exists() and not marker(folder, name, "delivered").exists()

    def _send(self, connection: Connection, answer: Answer) -> None:
        try:
            delivered = connection.send(answer)
        except FileNotFoundError:  # it was removed by hand
            return
        except Refused as error:
            self._refuse(answer, str(error))
            return
        self._counters.add("objects_sent", self.archive.name, len(answer.objects))
        if delivered:
            self.delivered(answer)

    def delivered(self, answer: Answer) -> None:
        """Note that the archive has an answer. Another thread may call it. Raises OutputError."""
        self._refused.pop(answer.folder, None)
        self._answers.deliver(answer, self.archive.name, self._destinations)
        self._counters.add("answers_delivered", self.archive.name)

    def refuse(self, answer: Answer, reason: str) -> None:
        """Send an answer again later. Another thread may call it."""
        answer.marker(self.archive.name, "requested").unlink(missing_ok=True)
        self._refuse(answer, reason)

    def _refuse(self, answer: Answer, reason: str) -> None:
        if len(self._refused) >= _MAX_REFUSED:
            self._refused.clear()
        pause = self._refused.setdefault(answer.folder, _Pause(self._longest_pause_s))
        if not pause.seconds:
            name = answer.folder.name
            self._report(f"{self.archive.name}: refused the result {name}: {reason}. It is sent again until it passes")
        pause.reason = reason
        pause.grow()
        self._counters.add("refusals", self.archive.name)

    def _fail(self, problem: str) -> None:
        if self.problem != problem:
            self._report(f"{self.archive.name}: {problem}. Results wait in the outbox and are sent again")
        self.problem = problem
        self._counters.add("failures", self.archive.name)
        self._pause.grow()
