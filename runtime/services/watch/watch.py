"""Watch a folder: each scan that has arrived whole is classified, its result written, and then it is moved.

The order makes it safe to end at any moment: the result is whole and on disk before the scan leaves the
folder, and a scan that has its result, by the hash of its content, is only moved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mri_edge.errors import EngineError, InputError, MriEdgeError, OutputError, first_line
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import NOTICE, Failure, Prediction
from mri_edge.scans.readers.picture import may_pass
from mri_edge.services.systemd import notify
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.lock import locked

from .arrivals import Arrival, Arrivals, stamp_of
from .in_progress import AtHand
from .outbox import Outbox, Record

_PATIENCE = 5  # a scan that cannot be read may still be on its way: it is given this many times longer
_TRIES = 3  # how often a scan may end the program before it is put aside
_RETRY_S = 30.0  # longest wait for a disk, and for a scan that may not be read
_REFUSED = 3  # so many scans in a row that cannot be put away are a matter of the disk: leave the rest for later
_REMIND_S = 600.0
_SLICE_S = 0.2  # a sleep looks this often whether it shall stop


class Watch:
    """One watched folder.

    Parameters
    ----------
    folder
        Where scans arrive; subfolders are left alone.
    outbox
        Where results and scans go. It is made, and both folders are locked, when ``records`` begins.
    settle_s
        See ``Arrivals``.
    tell
        Takes words for people: what waits, and why.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        outbox: Outbox,
        *,
        settle_s: float = 2.0,
        heatmap: bool = False,
        tell: Callable[[str], None] = lambda words: None,
    ) -> None:
        if heatmap:
            from mri_edge.inference.heatmap import require_activation

            require_activation(classifier)
        self.failed = 0
        self._classifier = classifier
        self._outbox = outbox
        self._heatmap = heatmap
        self._tell = tell
        self._arrivals = Arrivals(folder, settle_s)
        self._stopped = False
        self._told: dict[str, str] = {}
        self._stuck: set[str] = set()
        self._refused: set[str] = set()
        self._trouble: tuple[int | None, float] | None = None
        self._alive_told = 0.0

    def stop(self) -> None:
        """End ``records`` after the scan at hand; may be called from a signal handler."""
        self._stopped = True

    def records(self, *, every_s: float = 1.0, once: bool = False) -> Iterator[Record]:
        """Yield the result of each scan as it has been written and the scan moved, until ``stop``.

        ``once`` ends when nothing is left that will become whole.

        Raises
        ------
        UsageError
            Another program watches one of the folders.
        OutputError
            Only with ``once``: a folder cannot be read or written. Otherwise that is waited out.
        EngineError
            The engine failed; this concerns every scan.
        """
        with ExitStack() as locks:
            prepared = False
            while not self._stopped:
                try:
                    if not prepared:
                        self._prepare(locks)
                        prepared = True
                    left = yield from self._pass(once)
                except OutputError as error:
                    if once:
                        raise
                    self._tell_trouble(error)
                    self._sleep(_RETRY_S / 10)
                    continue
                if once and not left:
                    return
                self._sleep(every_s)

    def check_model(self) -> None:
        """Answer a blank picture. Raises EngineError, so that a fault of the model is never taken for a scan's."""
        preprocessing = self._classifier.bundle.manifest.preprocessing
        try:
            self._classifier.predict(np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8))
        except MriEdgeError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self._classifier.bundle.folder}: the model fails at a blank picture ({first_line(error)})",
                "No scan is at fault: copy or export the bundle again",
            ) from error

    def _prepare(self, locks: ExitStack) -> None:
        """Lock both folders and make what is missing of the output; the watched one first, which is never made."""
        folder, out = self._arrivals.folder, self._outbox.folder
        with ExitStack() as taken:
            self._arrivals.look()
            self._hold(folder, taken)
            self._outbox.make()
            if os.path.realpath(out) != os.path.realpath(folder):
                self._hold(out, taken)
            self._outbox.clear()
            self._at_hand = AtHand(out)
            locks.push(taken.pop_all())
        self._tell(
            f"watching {folder}, results in {self._outbox.results}; {self._classifier.bundle.manifest.title}. {NOTICE}"
        )

    def _hold(self, folder: Path, locks: ExitStack) -> None:
        if not locks.enter_context(locked(Path(os.path.realpath(folder)))):
            self._tell_once(f"{folder}/", f"{folder}: no locks on this file system; see that no other watch works here")

    def _pass(self, once: bool) -> Generator[Record, None, bool]:
        """Take what is whole now. Returns whether anything is left to wait for."""
        whole = [one for one in self._arrivals.look() if one.path.name not in self._stuck]
        left = bool(whole) or self._arrivals.pending > 0
        self._tell_strangers()
        refused_in_a_row = 0
        for arrival in sorted(whole, key=lambda one: self._at_hand.is_suspect(one.path.name)):
            if self._stopped or refused_in_a_row == _REFUSED:
                break
            self._alive()
            try:
                record = self._take(arrival)
            except InputError as error:
                self._tell_once(arrival.path.name, str(error))
                if once:
                    self.failed += 1
                    self._stuck.add(arrival.path.name)
                else:
                    self._put_off(arrival)
                continue
            except OutputError as error:  # it may be this scan alone: the others shall not wait for it
                if once:
                    raise
                self._tell_trouble(error)
                self._refused.add(arrival.path.name)
                self._put_off(arrival)
                refused_in_a_row += 1
                continue
            refused_in_a_row = 0
            self._refused.discard(arrival.path.name)
            if record is not None:
                self.failed += "error" in record
                yield record
        if self._trouble is not None and not self._refused:
            self._tell("going on")
            self._trouble = None
        return left

    def _put_off(self, arrival: Arrival) -> None:
        """Try a scan again later, each time twice as late, up to a limit."""
        self._arrivals.postpone(arrival, arrival.still_s + min(max(1.0, arrival.still_s), _RETRY_S))

    def _take(self, arrival: Arrival) -> Record | None:
        """Result, then move; None for a scan that changed or went away meanwhile, or is given more time.

        Raises
        ------
        InputError
            This one scan may not be read, or something is in the way of its result.
        OutputError
            The disk.
        """
        scan = arrival.path
        if stamp_of(scan) != arrival.stamp:
            return None
        try:
            sha256 = sha256_of(scan)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _stays(f"{scan}: cannot read ({error.strerror})") from error
        kept, record = self._outbox.place(scan.name, sha256)
        if record is None or "error" in record:  # what failed may have failed for a reason that is gone
            record = self._judge(arrival, kept, sha256)
            if record is None or stamp_of(scan) != arrival.stamp:
                return None
            self._outbox.write(kept, record)
        if stamp_of(scan) != arrival.stamp:
            return None
        self._outbox.move(scan, kept, failed="error" in record)
        return record

    def _judge(self, arrival: Arrival, kept: str, sha256: str) -> Record | None:
        """The record of a scan, noted as at hand meanwhile; None if it is given more time."""
        times = self._at_hand.begin(arrival.path.name, sha256)
        try:
            record = self._answer(arrival, kept, sha256, times)
        except (MriEdgeError, KeyboardInterrupt):  # in order; what else ends the program is counted
            self._at_hand.end(sha256)
            raise
        self._at_hand.end(sha256)
        return record

    def _answer(self, arrival: Arrival, kept: str, sha256: str, times: int) -> Record | None:
        result = self._predict(arrival.path) if times < _TRIES else _put_aside(arrival.path, times)
        longer = _PATIENCE * self._arrivals.settle_s
        if isinstance(result, Failure) and arrival.still_s < longer:
            self._arrivals.postpone(arrival, longer)
            return None
        record = result.to_dict() | {"sha256": sha256}
        record["moved_to"] = f"{'failed' if isinstance(result, Failure) else 'done'}/{kept}"
        if isinstance(result, Prediction) and result.pixels is not None and result.activation is not None:
            from mri_edge.inference.heatmap import overlay

            picture = overlay(result.pixels, result.activation, result)
            self._outbox.write_heatmap(kept, picture)
            record["heatmap"] = f"heatmaps/{kept}.png"
        record["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return record

    def _predict(self, scan: Path) -> Prediction | Failure:
        try:
            return replace(self._classifier.predict(scan, keep_pixels=self._heatmap), file=os.fspath(scan))
        except InputError as error:
            if may_pass(error.__cause__):
                raise _stays(error.problem) from error
            return Failure(os.fspath(scan), error)

    def _tell_strangers(self) -> None:
        self._told = {name: words for name, words in self._told.items() if self._arrivals.has(name)}
        self._refused = {name for name in self._refused if self._arrivals.has(name)}
        for name in sorted(self._arrivals.strangers):
            path = self._arrivals.folder / name
            self._tell_once(name, f"{path}: left alone, {_why_not(path)}")

    def _tell_once(self, name: str, words: str) -> None:
        if self._told.get(name) != words:
            self._told[name] = words
            self._tell(words)

    def _tell_trouble(self, error: MriEdgeError) -> None:
        reason = getattr(error.__cause__, "errno", None)  # not the words: they name another scan each time
        now = time.monotonic()
        if self._trouble is None or reason != self._trouble[0] or now - self._trouble[1] > _REMIND_S:
            self._tell(f"{error.problem}. Scans stay where they are; tried again until it works")
            self._trouble = (reason, now)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            self._alive()
            time.sleep(min(left, _SLICE_S))

    def _alive(self) -> None:
        now = time.monotonic()
        if now - self._alive_told >= 1:
            self._alive_told = now
            notify("WATCHDOG=1")


def _why_not(path: Path) -> str:
    if path.is_symlink():
        return "it is a link"
    if path.exists() and not path.is_file():
        return "it is a pipe, a socket or a device"
    return "its name is none of a picture's"


def _stays(problem: str) -> InputError:
    return InputError(problem, "It stays where it is and is tried again")


def _put_aside(scan: Path, times: int) -> Failure:
    return Failure(
        os.fspath(scan),
        InputError(
            f"{scan}: the program ended {times} times in a row while this scan was at hand",
            "It may crash a decoder or need more memory than there is; see the system's log",
            code="crashed",
            value=times,
            limit=_TRIES,
        ),
    )
