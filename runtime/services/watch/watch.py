"""Watch a folder: classify each scan that has arrived completely, write its result, then move the scan away.

This order makes it safe to end at any moment. The result is on disk before the scan leaves the folder, and a scan that
has its result already, under its name and with the hash of its content, is only moved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from mri_edge.errors import InputError, MriEdgeError, OutputError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import NOTICE, Failure, Prediction, frame_name
from mri_edge.inference.preparing import failures_after
from mri_edge.scans.files import is_transient
from mri_edge.services.in_progress import MAX_CRASHES, InProgress, crashed
from mri_edge.services.systemd import Heartbeat
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.lock import locked

from .arrivals import Arrival, Arrivals, claimed, stamp_of
from .outbox import MAX_BYTES, Outbox, Record

_PATIENCE = 5  # multiple of the settling time that a scan gets if it cannot be read, as it may still be arriving
_RETRY_S = 30.0  # longest time between two attempts to use a disk or to read a scan
_MAX_UNMOVED = 3  # if this many scans in a row cannot be moved, the disk is the cause, and the others wait
_REMIND_S = 600.0  # time after which a lasting problem is reported again
_SLEEP_S = 0.2  # longest sleep before checking whether to stop


class Watch:
    """One watched folder.

    Parameters
    ----------
    folder
        Where scans arrive; its subfolders are ignored.
    outbox
        Where results and scans go. It is created, and both folders are locked, when ``records`` starts.
    settle_s
        See ``Arrivals``.
    report
        Called with a message about each scan that has to wait, and about each problem.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        outbox: Outbox,
        *,
        settle_s: float = 2.0,
        heatmap: bool = False,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        if heatmap:
            from mri_edge.inference.heatmap.score import required_score

            self._score = required_score(classifier)
        self.failed = 0
        self._classifier = classifier
        self._outbox = outbox
        self._heatmap = heatmap
        self._report = report
        self._arrivals = Arrivals(folder, settle_s)
        self._stopped = False
        self._reported: dict[str, str] = {}  # the last message about each file
        self._stuck: set[str] = set()  # scans that ``once`` does not try again
        self._unmoved: set[str] = set()  # scans that could not be moved
        self._problem: tuple[int | None, float] | None = None  # error number and time of the last report
        self._beat = Heartbeat()

    def stop(self) -> None:
        """End ``records`` after the current scan or frame. May be called from a signal handler."""
        self._stopped = True

    def records(self, *, every_s: float = 1.0, once: bool = False) -> Iterator[Record]:
        """Yield the result of each frame after it was written and its scan moved, until ``stop``.

        With ``once`` it ends when no scan is left that may become complete.

        Raises
        ------
        UsageError
            Another program watches one of the folders.
        OutputError
            Only with ``once``: a folder cannot be read or written. Otherwise this is retried.
        EngineError
            The engine failed; this concerns every scan.
        """
        with ExitStack() as locks:
            prepared = False
            while not self._stopped:
                try:
                    if prepared and self._problem is not None and self._outbox.was_emptied():
                        locks.close()  # the lock file in it is gone too
                        prepared = False
                    if not prepared:
                        self._prepare(locks)
                        prepared = True
                    scans_left = yield from self._process_arrivals(once)
                except OutputError as error:
                    if once:
                        raise
                    self._report_problem(error)
                    self._sleep(_RETRY_S / 10)
                    continue
                if once and not scans_left:
                    return
                self._sleep(every_s)

    def _prepare(self, locks: ExitStack) -> None:
        """Lock both folders, and create the output folder. The watched folder is first, because it is never created."""
        folder, out = self._arrivals.folder, self._outbox.folder
        with ExitStack() as taken:
            self._arrivals.paths()
            self._lock(folder, taken)
            self._outbox.make()
            if os.path.realpath(out) != os.path.realpath(folder):
                self._lock(out, taken)
            self._outbox.clear()
            self._in_progress = InProgress(out)
            locks.push(taken.pop_all())
        title = self._classifier.bundle.manifest.title
        self._report(f"watching {folder}, results in {self._outbox.results}; {title}. {NOTICE}")

    def _lock(self, folder: Path, locks: ExitStack) -> None:
        if not locks.enter_context(locked(Path(os.path.realpath(folder)))):
            message = f"{folder}: this file system has no locks; make sure that no other watch uses the folder"
            self._report_once(f"{folder}/", message)

    def _process_arrivals(self, once: bool) -> Generator[Record, None, bool]:
        """Process the scans that are complete now. Returns whether any scan is left to wait for."""
        arrivals = [arrival for arrival in self._arrivals.look() if arrival.path.name not in self._stuck]
        scans_left = bool(arrivals) or self._arrivals.pending > 0
        self._report_unrecognized()
        unmoved_in_a_row = 0
        for arrival in sorted(arrivals, key=lambda arrival: self._in_progress.is_suspect(arrival.path.name)):
            if self._stopped or unmoved_in_a_row == _MAX_UNMOVED:
                break
            self._heartbeat()
            try:
                records = self._process(arrival)
            except _Stopped:
                break
            except InputError as error:
                self._report_once(arrival.path.name, str(error))
                if once:
                    self.failed += 1
                    self._stuck.add(arrival.path.name)
                else:
                    self._postpone(arrival)
                continue
            except OutputError as error:  # it may affect only this scan: the others should not wait for it
                if once:
                    raise
                self._report_problem(error)
                self._unmoved.add(arrival.path.name)
                self._postpone(arrival)
                unmoved_in_a_row += 1
                continue
            unmoved_in_a_row = 0
            self._unmoved.discard(arrival.path.name)
            self.failed += any("error" in record for record in records)
            yield from records
        if self._problem is not None and not self._unmoved:
            self._report("the watch continues")
            self._problem = None
        return scans_left

    def _postpone(self, arrival: Arrival) -> None:
        """Try a scan again later; the time between attempts doubles up to a limit."""
        self._arrivals.postpone(arrival, arrival.unchanged_s + min(max(1.0, arrival.unchanged_s), _RETRY_S))

    def _process(self, arrival: Arrival) -> list[Record]:
        """Write the results of a scan, then move it. Returns no record if it changed, is gone or may still be arriving.

        Raises
        ------
        InputError
            This scan cannot be read or is too large, or another file has the name of its result.
        OutputError
            The disk is full, or something else is wrong with it.
        _Stopped
            ``stop`` was called before all frames of the scan were classified.
        """
        scan = arrival.path
        if stamp_of(scan) != arrival.stamp:
            return []
        _check_size(arrival)
        try:
            sha256 = sha256_of(scan, self._beat_unless_stopped)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _retried(f"{scan}: cannot read ({error.strerror})") from error
        kept, record = self._outbox.place(scan.name, sha256, self._beat_unless_stopped)
        records = [record] if record is not None else []
        if record is None or "error" in record:  # the cause of an error may be gone
            records = self._classify(arrival, kept, sha256)
            if not records or stamp_of(scan) != arrival.stamp:
                return []
            for record in records:
                self._outbox.write(_result_name(self._outbox, kept, record), record)
        if stamp_of(scan) != arrival.stamp:
            return []
        with claimed(arrival, sha256) as claim:
            if claim is None:
                return []
            failed = any("error" in record for record in records)
            self._outbox.move(claim, kept, failed=failed, name=scan, beat=self._heartbeat)
        return records

    def _classify(self, arrival: Arrival, kept: str, sha256: str) -> list[Record]:
        """Return the records of a scan; none if it may still be arriving. It is marked as in progress meanwhile."""
        crashes = self._in_progress.begin(arrival.path.name, sha256)
        try:
            records = self._records_of(arrival, kept, sha256, crashes)
        except (MriEdgeError, KeyboardInterrupt, _Stopped):  # an orderly end; any other one counts as a crash
            self._in_progress.end(sha256)
            raise
        self._in_progress.end(sha256)
        return records

    def _records_of(self, arrival: Arrival, kept: str, sha256: str, crashes: int) -> list[Record]:
        source = os.fspath(arrival.path)
        given_up = Failure(source, crashed(source, "scan", crashes))
        results = self._predict(arrival.path) if crashes < MAX_CRASHES else iter([given_up])
        records, failed = [], False
        for result in results:
            failed = failed or isinstance(result, Failure)
            records.append(
                result.to_dict() | {"sha256": sha256, "moved_to": ""} | self._heatmap_of(result, kept, sha256)
            )
        patience = _PATIENCE * self._arrivals.settle_s
        if failed and arrival.unchanged_s < patience:
            self._arrivals.postpone(arrival, patience)
            return []
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return [record | {"moved_to": f"{'failed' if failed else 'done'}/{kept}", "time": now} for record in records]

    def _heatmap_of(self, result: Prediction | Failure, kept: str, sha256: str) -> Record:
        """Write the heatmap of a frame, if there is one, and return the key that names it."""
        if not isinstance(result, Prediction) or result.pixels is None or result.heatmap is None:
            return {}
        from mri_edge.inference.heatmap.picture import draw

        name = _result_name(self._outbox, kept, result.to_dict() | {"sha256": sha256})
        self._outbox.write_heatmap(name, draw(result.pixels, result.heatmap, result, self._score))
        return {"heatmap": f"heatmaps/{name}.png"}

    def _predict(self, scan: Path) -> Iterator[Prediction | Failure]:
        index, frames = 0, 1
        try:
            for prediction in self._classifier.predict_frames(scan, explain=self._heatmap, keep_pixels=self._heatmap):
                self._heartbeat()  # the heatmaps of many frames take longer than systemd waits
                yield replace(prediction, source=os.fspath(scan))
                index, frames = prediction.index + 1, prediction.frames
                if self._stopped and index < frames:  # a service manager does not wait minutes for the others
                    raise _Stopped
        except InputError as error:
            if is_transient(error.__cause__):
                raise _retried(error.problem) from error
            yield Failure(os.fspath(scan), error, index, frames)
            yield from failures_after(error, os.fspath(scan), index, frames)

    def _report_unrecognized(self) -> None:
        self._reported = {name: message for name, message in self._reported.items() if self._arrivals.has(name)}
        self._unmoved = {name for name in self._unmoved if self._arrivals.has(name)}
        for name in sorted(self._arrivals.unrecognized):
            path = self._arrivals.folder / name
            self._report_once(name, f"{path}: ignored, {_why_ignored(path)}")

    def _report_once(self, name: str, message: str) -> None:
        if self._reported.get(name) != message:
            self._reported[name] = message
            self._report(message)

    def _report_problem(self, error: MriEdgeError) -> None:
        number = getattr(error.__cause__, "errno", None)  # messages differ, because each names another scan
        now = time.monotonic()
        if self._problem is None or number != self._problem[0] or now - self._problem[1] > _REMIND_S:
            self._report(f"{error.problem}. Scans stay where they are, and the watch tries again until it works")
            self._problem = (number, now)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            self._heartbeat()
            time.sleep(min(left, _SLEEP_S))

    def _heartbeat(self) -> None:
        self._beat()

    def _beat_unless_stopped(self) -> None:
        self._heartbeat()
        if self._stopped:
            raise _Stopped


class _Stopped(Exception):
    """``stop`` was called while a file was read, or between its frames."""


def _check_size(arrival: Arrival) -> None:
    """Raise InputError for a file that is too large to be a scan: its hash, for its result, would take minutes."""
    size = arrival.stamp[0]
    if size > MAX_BYTES:
        raise InputError(
            f"{arrival.path}: too large, {size / 1e6:,.0f} MB",
            f"The limit is {MAX_BYTES / 1e6:,.0f} MB. It stays where it is",
            code="too_large",
            value=size,
            limit=MAX_BYTES,
        )


def _result_name(outbox: Outbox, kept: str, record: Record) -> str:
    """Return the name of a result: that of its scan, or for one of several frames a free one with the frame's index."""
    frames = record.get("frames", 1)
    return kept if frames == 1 else outbox.place_result(frame_name(kept, record["index"], frames), record["sha256"])


def _why_ignored(path: Path) -> str:
    if os.path.islink(path):
        return "it is a link"
    if os.path.exists(path) and not os.path.isfile(path):
        return "it is a pipe, a socket or a device"
    return "no reader recognizes it"


def _retried(problem: str) -> InputError:
    return InputError(problem, "It stays where it is, and the watch tries again later")
