"""Run a DICOM node: receive instances, classify each series once it is complete, and send the results."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mri_edge.device.native import limit_arenas, trim_memory
from mri_edge.errors import InputError, MriEdgeError, OutputError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import NOTICE, Failure, Prediction
from mri_edge.inference.series import Plane, SeriesPrediction, classify_slices, combine, plan, what_ran
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.readers import dicom
from mri_edge.services.dicom_results.objects import ResultObject
from mri_edge.services.dicom_results.origin import Predecessor, slice_keys
from mri_edge.services.dicom_results.results import DicomResults
from mri_edge.services.in_progress import MAX_CRASHES, InProgress, crashed
from mri_edge.services.systemd import Heartbeat
from mri_edge.storage.lock import locked

from .answers import Answer, Answers
from .counters import Counters
from .delivery import Archive, Delivery
from .receiver import Receiver
from .spool import Spool, digest_of, fault
from .status import STATE_S, write_state

_LOOK_S = 0.2, 1.0  # how often received instances are sorted, at a short and at a long settling time
_LONGEST_BUSY_S = 10.0  # after which instances are sorted while others come
_ARENAS = 2  # of glibc's memory
_RETRY_S = 5.0  # time between two attempts to use a disk
_MOVE_S = 60.0  # time between two attempts to move a series away


@dataclass
class _Outcome:
    """The answer for the instances of one series identifier, which may hold several series."""

    results: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    objects: list[ResultObject] = field(default_factory=list)


class _Stopped(Exception):
    """The node ends during a series, which it classifies again at its next start."""


class Node:
    """One node.

    Parameters
    ----------
    spool
        See ``Spool``; it is locked while ``run`` runs.
    receiver
        Called with the node's counters to make its server.
    results
        Makes the objects for an answer.
    archives
        Where results go.
    settle_s
        A series is complete when none of its instances came for this long.
    plane
        As for ``Classifier.predict_series``.
    report
        Called with a message about each series and each problem. No message contains an identifier of a patient.
    """

    def __init__(
        self,
        classifier: Classifier,
        results: DicomResults,
        folder: Path,
        receiver: Callable[[Spool, Counters], Receiver],
        archives: Sequence[Archive] = (),
        *,
        settle_s: float = 30.0,
        plane: Plane = "axial",
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.counters = Counters()
        self.spool = Spool(folder, report=report, count=lambda outcome: self.counters.add("sorted", outcome))
        self.answers = Answers(self.spool.outbox, self.spool.sent)
        self.receiver: Receiver  # ``run`` makes it
        self._classifier = classifier
        self._results = results
        self._make_receiver = receiver
        self._settle_s = settle_s
        self._plane: Plane = plane
        self._report = report
        names = [archive.name for archive in archives]
        self.deliveries = [Delivery(self.answers, archive, names, self.counters, report) for archive in archives]
        self._stopped = threading.Event()
        self._beat = Heartbeat()
        self._written = float("-inf")
        self._problem: str | None = None
        self._ended = 0
        self._received = 0
        self._sorted = float("-inf")

    def stop(self) -> None:
        """End ``run`` at the next slice or heatmap. May be called from a signal handler."""
        self._stopped.set()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Receive, classify and send until ``stop``. ``ready`` is called when the node listens.

        Raises
        ------
        UsageError
            Another program uses the spool, or the port is taken.
        OutputError
            The spool cannot be made.
        EngineError
            The engine failed; this concerns every series.
        """
        spool = self.spool
        limit_arenas(_ARENAS)
        with ExitStack() as stack:
            stack.enter_context(dicom.silenced())  # messages of pydicom quote values
            spool.make()
            if not stack.enter_context(locked(spool.folder)):
                self._report(f"{spool.folder}: this file system has no locks; make sure that no other node uses it")
            spool.recover()
            self.answers.recover()
            self._in_progress = InProgress(spool.folder)
            self.receiver = self._make_receiver(spool, self.counters)
            threads = [threading.Thread(target=self.receiver.serve, name="server", daemon=True), *self.deliveries]
            stack.callback(self._end, threads)
            for thread in threads:
                thread.start()
            self._report(f"{self.receiver.name}: listening, spool {spool.folder}; {self._title}. {NOTICE}")
            gc.freeze()  # what exists now stays, so that it need not be looked through again and again
            ready()
            while not self._stopped.is_set():
                try:
                    self._look()
                    self._solved()
                except OutputError as error:
                    self._wait_for_disk(error)

    @property
    def _title(self) -> str:
        return self._classifier.bundle.manifest.title

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        for delivery in self.deliveries:
            delivery.stop()
        self.receiver.stop()
        for thread in threads:
            thread.join(timeout=5)
        try:
            self._write_state()
        except OutputError as error:
            self._report(str(error))

    def _look(self) -> None:
        """Sort what came, and answer one series if one is complete."""
        self._report_alive()
        key = None
        problem = None
        if not self._is_busy():
            try:
                self.spool.sort(self._beat)
            except OutputError as error:  # what could be sorted is answered all the same
                problem = error
            self._sorted = time.monotonic()
            key = self._complete()
        if key is not None:
            with suppress(_Stopped):
                self._answer(key)
        if problem is not None:
            raise problem
        if key is None:
            self._stopped.wait(min(max(self._settle_s / 10, _LOOK_S[0]), _LOOK_S[1]))

    def _report_alive(self) -> None:
        """Report to systemd, and write the state if it is due. Raises OutputError."""
        self._beat()
        if time.monotonic() - self._written >= STATE_S:
            self._write_state()
            self._free_memory()

    def _is_busy(self) -> bool:
        """Whether instances came since the last look: sorting them now would delay the next ones. Not for long."""
        received, before = self.counters.total("instances"), self._received
        self._received = received
        return received != before and time.monotonic() - self._sorted < min(self._settle_s, _LONGEST_BUSY_S)

    def _complete(self) -> str | None:
        """Return the series that is complete for the longest time, those that crashed the program last; or None."""
        now = time.monotonic()
        settled = [
            key
            for key, series in self.spool.open.items()
            if now - series.seen >= self._settle_s and now >= series.retry_at
        ]
        return min(
            settled, key=lambda key: (self._in_progress.is_suspect(key), self.spool.open[key].seen), default=None
        )

    def _answer(self, key: str) -> None:
        """Write the answer for a series, unless a kill came after it, then move the series away."""
        if self.spool.forget_if_removed(key):
            return
        files = self.spool.files(key)
        instances = digest_of(files)
        earlier = self.answers.of(key)
        if not earlier or earlier[0].instances != instances:
            crashes = self._in_progress.begin(key, instances)
            try:
                outcome = self._outcome(key, files, earlier, crashes)
                number = self.answers.next_number(key)
                self.answers.write(key, number, instances, outcome.results, outcome.problems, outcome.objects)
            except (MriEdgeError, KeyboardInterrupt, _Stopped):  # an orderly end; any other one counts as a crash
                self._in_progress.end(instances)
                raise
            self._in_progress.end(instances)
            for delivery in self.deliveries:
                delivery.wake()
        self._close(key)

    def _close(self, key: str) -> None:
        """Move an answered series away. One that cannot be moved must not hold up the others."""
        series = self.spool.open[key]
        try:
            self.spool.close(key)
        except OutputError as error:
            if not series.retry_at:
                self._report(f"{error.problem}. {error.hint}. The node tries again every {_MOVE_S:.0f} seconds")
            series.retry_at = time.monotonic() + _MOVE_S

    def _outcome(self, key: str, files: Sequence[Path], earlier: Sequence[Answer], crashes: int) -> _Outcome:
        """Classify a series, unless that ended the program too often."""
        outcome = _Outcome()
        if crashes >= MAX_CRASHES:
            self._note(outcome, key, crashed("the series", "series", crashes).problem, "crashed")
            return outcome
        try:
            return self._classify(key, files, earlier)
        except (MriEdgeError, MemoryError, _Stopped):
            raise
        except Exception as error:  # noqa: BLE001 (otherwise it would end the program again at each start)
            self._note(outcome, key, fault(error), "failed")
            return outcome

    def _classify(self, key: str, files: Sequence[Path], earlier: Sequence[Answer]) -> _Outcome:
        outcome = _Outcome()
        for result in self._predict([str(path) for path in files]):
            if isinstance(result, Failure):
                self._note(outcome, key, result.error.problem, "failed")
                continue
            outcome.results.append(result.to_dict())
            if result.skipped is not None:
                self._note(outcome, key, f"not classified: {result.skipped}", "skipped")
                continue
            try:
                objects = self._results.of(result, _reports_on(result, earlier), self._beat_unless_stopped)
            except InputError as error:
                self._note(outcome, key, error.problem, "failed")
                continue
            outcome.objects += objects
            self._note_answer(key, result, objects)
        return outcome

    def _predict(self, paths: Sequence[str]) -> Iterator[SeriesPrediction | Failure]:
        """Classify as ``Classifier.predict_series`` does, with a sign of life for each slice."""
        planned = plan(slice_facts(paths, self._classifier.reading), self._plane)
        slices = self._watched(classify_slices(planned, self._classifier))
        return combine(planned, slices, what_ran(self._classifier))

    def _watched(self, slices: Iterable[Prediction | Failure]) -> Iterator[Prediction | Failure]:
        for piece in slices:
            self._beat_unless_stopped()
            yield piece

    def _beat_unless_stopped(self) -> None:
        """Report between two slices or heatmaps that the node is alive. Raises _Stopped and OutputError."""
        self._report_alive()
        if self._stopped.is_set():
            raise _Stopped

    def _note(self, outcome: _Outcome, key: str, problem: str, kind: str) -> None:
        outcome.problems.append(problem)
        self._report(f"series {key}: {problem}")
        self.counters.add("series", kind)

    def _note_answer(self, key: str, result: SeriesPrediction, objects: Sequence[ResultObject]) -> None:
        label = result.label or "no answer"
        self.counters.add("series", label)
        written = "nothing to send"
        if objects:
            written = "1 object to send" if len(objects) == 1 else f"{len(objects)} objects to send"
        slices = "1 slice" if len(result.slices) == 1 else f"{len(result.slices)} slices"
        failed = f", {result.failed} without an answer" if result.failed else ""
        self._report(f"series {key}: {label}, {slices}{failed}; {written}")

    def _write_state(self) -> None:
        receiver = self.receiver
        write_state(self.spool.folder, receiver.name, self.deliveries, self.counters, receiver.associations)
        self._written = time.monotonic()

    def _free_memory(self) -> None:
        """Free what ended associations hold: their objects refer to each other, and each thread has its own memory."""
        ended = self.counters.total("associations")
        if ended != self._ended:
            self._ended = ended
            gc.collect()
            trim_memory()

    def _wait_for_disk(self, error: OutputError) -> None:
        if self._problem is None:
            self._report(f"{error.problem}. Instances stay where they are, and the node tries again until it works")
            self._problem = error.problem
        end = time.monotonic() + _RETRY_S
        while not self._stopped.wait(0.5) and time.monotonic() < end:
            self._beat()

    def _solved(self) -> None:
        if self._problem is not None:
            self._problem = None
            self._report("the node continues")


def _reports_on(result: SeriesPrediction, earlier: Sequence[Answer]) -> list[Predecessor]:
    """Return the last reports on slices of a result, among the answers for its series identifier, the last one first.

    The numbers of parts may change with more instances, so parts are compared by their slices. The last answer may have
    no report, and then the archive still has those of the one before.
    """
    slices = set(slice_keys(result))
    for answer in earlier:
        if reports := [report for report in answer.reports if not report.slices or slices & report.slices]:
            return reports
    return []
