"""The rules of the node for instances, answers, addresses and deliveries, each tested alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom", reason="needs the extra node")

from mri_edge.errors import OutputError, UsageError
from mri_edge.scans.readers import _dicom_file
from mri_edge.services.dicom import addresses, delivery
from mri_edge.services.dicom.addresses import DicomAddress, WebAddress, parse_destination, parse_sender
from mri_edge.services.dicom.answers import Answer, Answers, marker
from mri_edge.services.dicom.counters import Counters
from mri_edge.services.dicom.delivery import Delivery, Refused, Unreachable
from mri_edge.services.dicom.spool import Spool, digest_of, short_hash
from mri_edge.services.dicom.status import as_text, survey, write_state
from mri_edge.services.dicom.stow import AUTHORIZATION, StowArchive
from mri_edge.services.dicom_results.objects import ResultObject

sys.path.insert(0, str(Path(__file__).parents[1] / "scans"))
import dicom_samples

SYNTAX = "1.2.840.10008.1.2.1"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def spool(tmp_path: Path, clock: Clock) -> Spool:
    messages: list[str] = []
    opened = Spool(tmp_path / "spool", report=messages.append, clock=clock)
    opened.messages = messages  # type: ignore[attr-defined]
    opened.make()
    return opened


def store(spool: Spool, instance: str, series: str = "1.2.3", **values: Any) -> str:
    dataset = dicom_samples.make(**{"SOPInstanceUID": instance, "SeriesInstanceUID": series, **values})
    return spool.store(instance, SYNTAX, b"", dicom_samples.save(dataset))


def instances(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.rglob("*.dcm"))


# --- instances


def test_instances_are_sorted_into_series_and_keep_their_place_after_a_restart(spool: Spool, clock: Clock) -> None:
    for instance, series in (("1.1", "5.1"), ("1.2", "5.1"), ("1.3", "5.2")):
        assert store(spool, instance, series) == "stored"
    assert spool.sort() == 3
    assert spool.sort() == 0
    first, second = (short_hash("1.2", series) for series in ("5.1", "5.2"))
    assert set(spool.open) == {first, second}
    assert [path.name.partition("-")[0] for path in spool.files(first)] == sorted(map(short_hash, ("1.1", "1.2")))
    (spool.incoming / ".half.dcm.1234.part").write_bytes(b"x")
    clock.now += 50
    again = Spool(spool.folder, clock=clock)
    again.recover()
    assert again.files(first) == spool.files(first)
    assert again.open[first].seen == clock.now  # it settles anew
    assert [path.name for path in spool.incoming.iterdir()] == []


def test_a_series_settles_anew_with_each_new_instance_but_not_with_a_duplicate(spool: Spool, clock: Clock) -> None:
    store(spool, "1.1")
    spool.sort()
    clock.now += 10
    assert store(spool, "1.1") == "stored"  # the first one has left ``incoming``
    spool.sort()
    (series,) = spool.open.values()
    assert series.seen == 1000
    store(spool, "1.2")
    spool.sort()
    assert series.seen == 1010
    assert len(instances(spool.folder)) == 2


def test_an_instance_that_waits_already_is_not_written_again(spool: Spool) -> None:
    assert [store(spool, "1.1"), store(spool, "1.1")] == ["stored", "duplicate"]
    assert len(instances(spool.incoming)) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_other_content_is_kept_apart_and_does_not_open_a_series(spool: Spool, closed: bool) -> None:
    store(spool, "1.1")
    spool.sort()
    (key,) = spool.open
    if closed:
        spool.close(key)
    for _ in range(2):
        store(spool, "1.1", PatientName="Another")
        store(spool, "1.1")
        spool.sort()
    assert instances(spool.conflicts / key) == [short_hash("1.1")]
    assert len(instances(spool.done if closed else spool.series)) == 1
    assert set(spool.open) == (set() if closed else {key})
    (message,) = spool.messages  # type: ignore[attr-defined]
    assert "sent again with other content" in message
    assert "Another" not in message


def test_a_late_instance_opens_its_series_with_the_earlier_ones(spool: Spool) -> None:
    store(spool, "1.1")
    spool.sort()
    (key,) = spool.open
    before = digest_of(spool.files(key))
    spool.close(key)
    assert not spool.open
    store(spool, "1.2")
    spool.sort()
    assert len(spool.files(key)) == 2
    assert digest_of(spool.files(key)) != before
    assert list(spool.done.iterdir()) == []


def test_a_series_is_moved_to_what_its_folder_holds_already(spool: Spool) -> None:
    for _ in range(2):
        store(spool, "1.1")
        spool.sort()
        (key,) = spool.open
        spool.close(key)
        assert instances(spool.done / key) == [short_hash("1.1")]
        (spool.done / key / "notes.txt").write_text("x")
        next((spool.done / key).glob("*.dcm")).unlink()
    assert [path.name for path in (spool.done / key).iterdir()] == ["notes.txt"]


def test_a_series_whose_folder_was_removed_does_not_hold_up_others(spool: Spool) -> None:
    store(spool, "1.1", "5.1")
    store(spool, "1.2", "5.2")
    spool.sort()
    removed = short_hash("1.2", "5.1")
    shutil.rmtree(spool.series / removed)
    assert [spool.forget_if_removed(key) for key in sorted(spool.open, key=removed.__ne__)] == [True, False]
    assert removed not in spool.open
    store(spool, "1.1", "5.1")
    spool.sort()
    shutil.rmtree(spool.series / removed)
    store(spool, "1.1", "5.1")  # it is no duplicate: the first one is gone
    store(spool, "1.3", "5.1")
    spool.sort()
    assert instances(spool.series / removed) == sorted(map(short_hash, ("1.1", "1.3")))
    assert len(spool.files(removed)) == 2


def test_series_on_a_disk_that_is_not_mounted_are_not_forgotten(spool: Spool, tmp_path: Path) -> None:
    store(spool, "1.1")
    spool.sort()
    (key,) = spool.open
    spool.series.rename(tmp_path / "elsewhere")
    assert not spool.forget_if_removed(key)
    with pytest.raises(OutputError):
        spool.close(key)
    assert key in spool.open


def test_a_series_that_cannot_be_read_ends_the_node_in_one_line(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    (spool.series / "s").mkdir()

    def deny(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr("mri_edge.services.dicom.spool.os.scandir", deny)
    with pytest.raises(OutputError, match=r"series/s: cannot be read \(Permission denied\). Give it to the user"):
        Spool(spool.folder).recover()


def test_an_unreadable_header_is_set_aside_without_a_word_of_it(spool: Spool) -> None:
    spool.store("1.9", SYNTAX, b"", dicom_samples.SECRET.encode() * 9)
    store(spool, "1.1", SeriesInstanceUID=None)
    spool.sort()
    assert instances(spool.failed) == [short_hash("1.9")]
    assert len(spool.open) == 1  # without the identifier of a series it is one of its own
    assert dicom_samples.SECRET not in "".join(spool.messages)  # type: ignore[attr-defined]


@pytest.mark.parametrize("broken", ["read", "move"])
def test_a_file_that_cannot_be_read_or_moved_stays_and_does_not_hold_up_others(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """An I/O error or too many open files: the instance was acknowledged, and may be readable later."""
    store(spool, "1.1", "5.1")
    (stuck,) = spool.incoming.iterdir()
    store(spool, "1.2", "5.2")
    target, name = (_dicom_file, "open_scan") if broken == "read" else (os, "replace")
    original = getattr(target, name)

    def failing(path: Any, *others: Any) -> Any:
        if Path(path) == stuck:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *others)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"cannot be read or moved \(Input/output"):
        patch.setattr(target, name, failing)
        spool.sort()
    assert [path.name for path in spool.incoming.iterdir()] == [stuck.name]
    assert short_hash("1.2", "5.2") in spool.open
    assert spool.sort() == 1
    assert instances(spool.failed) == []
    assert instances(spool.series / short_hash("1.2", "5.1")) == [short_hash("1.1")]


# --- answers


def objects(*names: str) -> list[ResultObject]:
    return [ResultObject(name, "1.2", "1.3", "1.4", f"2.25.{number}", b"x") for number, name in enumerate(names)]


@pytest.fixture
def answers(spool: Spool) -> Answers:
    return Answers(spool.outbox, spool.sent)


def test_the_latest_answer_is_found_wherever_it_is(answers: Answers, spool: Spool) -> None:
    assert answers.of("s") == []
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm", "sc-1.dcm"))
    (waiting,) = answers.waiting()
    answers.deliver(waiting, "A", ["A"])
    assert [path.name for path in spool.sent.iterdir()] == ["s-1"]
    answers.write("s", 2, "two", [{"label": "tumour"}], ["a problem"], [])
    latest, first = answers.of("s")
    assert (latest.number, latest.instances, latest.objects) == (2, "two", ())
    assert (first.number, first.reports) == (1, waiting.reports)
    assert [report.instance for report in waiting.reports] == ["2.25.0"]
    record = json.loads((spool.sent / "s-2" / "answer.json").read_text())
    assert (record["results"], record["problems"]) == ([{"label": "tumour"}], ["a problem"])
    assert "not a medical device" in record["notice"]


def test_a_report_keeps_the_slices_that_it_is_about(answers: Answers, spool: Spool) -> None:
    (report,) = objects("sr-1.dcm")
    answers.write("s", 1, "one", [], [], [replace(report, slices=("1.1#0", "1.2#0"))])
    (answer,) = answers.of("s")
    assert [report.slices for report in answer.reports] == [{"1.1#0", "1.2#0"}]
    path = spool.outbox / "s-1" / "answer.json"
    record = json.loads(path.read_text())
    del record["objects"][0]["slices"]  # as an earlier version wrote it
    path.write_text(json.dumps(record))
    (answer,) = answers.of("s")
    assert [(report.instance, report.slices) for report in answer.reports] == [("2.25.0", frozenset())]


def test_answers_are_found_beyond_those_that_were_deleted(answers: Answers, spool: Spool) -> None:
    for number in (1, 2, 9, 10):
        answers.write("s", number, str(number), [], [], objects("sr-1.dcm"))
    answers.write("s-t", 50, "other", [], [], [])
    for name in ("s-1", "s-9"):
        shutil.rmtree(spool.outbox / name)
    assert [answer.number for answer in answers.of("s")] == [10, 2]
    assert answers.next_number("s") == 11


def test_an_answer_leaves_the_outbox_when_every_archive_has_it(answers: Answers, spool: Spool) -> None:
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm"))
    (answer,) = answers.waiting()
    answers.deliver(answer, "A", ["A", "B"])
    assert list(answers.waiting()) == [answer]
    answers.deliver(answer, "B", ["A", "B"])
    assert list(answers.waiting()) == []


def test_a_half_written_answer_does_not_count(answers: Answers, spool: Spool) -> None:
    (spool.outbox / ".s-1.new-0123abcd").mkdir()
    (spool.outbox / "s-2").mkdir()
    assert answers.of("s") == []
    assert answers.next_number("s") == 3  # the folder is in the way of another one
    assert list(answers.waiting()) == []
    answers.recover()
    assert [path.name for path in spool.outbox.iterdir()] == ["s-2"]


# --- deliveries


class FakeArchive:
    """Does what ``script`` says at each connection or object: an exception, or None."""

    name = "A"

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.sent: list[str] = []
        self.connections = 0

    def start(self, delivery: Delivery, waiting: Iterator[Answer]) -> None:
        pass

    def forget(self) -> Iterator[Answer]:
        return iter(())

    @contextmanager
    def connect(self) -> Iterator[FakeArchive]:
        self.connections += 1
        yield self

    def send(self, answer: Answer) -> bool:
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        self.sent.append(answer.folder.name)
        return True


@pytest.fixture
def deliver(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Return a function that delivers until the outbox is empty, and returns the messages."""
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(delivery, "_LOOK_S", 0.02)
    running: list[Delivery] = []

    def run(archive: FakeArchive) -> list[str]:
        messages: list[str] = []
        thread = Delivery(answers, archive, [archive.name], Counters(), messages.append, longest_pause_s=0.05)
        running.append(thread)
        thread.start()
        end = threading.Event()
        for _ in range(600):
            if not list(answers.waiting()):
                break
            end.wait(0.05)
        assert not list(answers.waiting())
        thread.stop()
        thread.join(timeout=30)
        return messages

    yield run
    for thread in running:
        thread.stop()


def test_one_connection_carries_all_results(answers: Answers, deliver: Callable[..., list[str]]) -> None:
    for number in range(5):
        answers.write(f"s{number}", 1, "one", [], [], objects("sr-1.dcm"))
    archive = FakeArchive()
    assert deliver(archive) == []
    assert sorted(archive.sent) == [f"s{number}-1" for number in range(5)]
    assert archive.connections == 1


def test_an_unreachable_archive_is_tried_until_it_answers(answers: Answers, deliver: Callable[..., list[str]]) -> None:
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm"))
    messages = deliver(FakeArchive(*(Unreachable("cannot be reached"),) * 6, RuntimeError("odd"), None))
    assert len([message for message in messages if "cannot be reached" in message]) == 1
    assert "RuntimeError while sending" in messages[1]
    assert messages[-1] == "A: takes results again"


def test_a_refused_result_does_not_block_the_next(answers: Answers, deliver: Callable[..., list[str]]) -> None:
    for name in ("a", "b"):
        answers.write(name, 1, "one", [], [], objects("sr-1.dcm"))
    archive = FakeArchive(Refused("status 0xC000"), None, Refused("status 0xC000"))
    messages = deliver(archive)
    assert sorted(archive.sent) == ["a-1", "b-1"]
    assert len([message for message in messages if "refused the result" in message]) == 1


def test_answers_that_are_not_sent_now_are_not_read_again(
    answers: Answers, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("refused", "requested", "delivered", "due"):
        answers.write(name, 1, "one", [], [], objects("sr-1.dcm"))
    marker(spool.outbox / "requested-1", "A", "requested").touch()
    for state in ("requested", "delivered"):
        marker(spool.outbox / "delivered-1", "A", state).touch()
    found = {answer.folder.name: answer for answer in answers.waiting()}
    thread = Delivery(answers, FakeArchive(), ["A"], Counters(), lambda message: None)
    thread.refuse(found["refused-1"], "no")
    read: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.parent.name) or original(path))
    assert [answer.folder.name for answer in thread._due()] == ["due-1"]
    assert sorted(read) == ["delivered-1", "due-1"]


def test_pauses_double_up_to_a_limit() -> None:
    pause = delivery._Pause(10.0)
    seconds = []
    for _ in range(6):
        pause.grow()
        seconds.append(pause.seconds)
    assert seconds == [1, 2, 4, 8, 10, 10]


# --- STOW-RS


class Web:
    """A DICOMweb service that answers with ``status`` and ``content``, or stores and names what it gets."""

    def __init__(self) -> None:
        self.status, self.content = 200, b""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                web.requests.append((self.path, dict(self.headers), body))
                self.send_response(web.status)
                if web.status == 302:
                    self.send_header("Location", f"{web.url}/elsewhere")
                self.send_header("Content-Length", str(len(web.content)))
                self.end_headers()
                self.wfile.write(web.content)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    opened = Web()
    yield opened
    opened.stop()


@pytest.fixture
def answer(answers: Answers) -> Answer:
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm", "sc-1.dcm"))
    (written,) = answers.waiting()
    return written


def response(stored: int, failed: int | None = None, known: Sequence[int] = ()) -> bytes:
    """Return a response about objects that are stored, that failed, and that the archive knows, each with a reason."""

    def item(number: int, *reasons: int) -> dict[str, Any]:
        named = {"00081155": {"vr": "UI", "Value": [f"2.25.{number}"]}}
        return named | ({"00081197": {"vr": "US", "Value": [*reasons]}} if reasons else {})

    content: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": [item(number) for number in range(stored)]}}
    if failed is not None or known:
        failures = [item(0, 0xA700)] * (failed or 0) + [item(stored + place, one) for place, one in enumerate(known)]
        content["00081198"] = {"vr": "SQ", "Value": failures} if failures else {"vr": "SQ"}
    return json.dumps(content).encode()


def test_stow_sends_all_objects_of_an_answer_at_once(web: Web, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTHORIZATION, "Bearer abc")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy would see the objects
    web.content = response(2, failed=0)  # Orthanc's response has an empty sequence of failures
    assert StowArchive(WebAddress(web.url)).send(answer)
    ((path, headers, body),) = web.requests
    assert path == "/dicom-web/studies"
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert headers["Authorization"] == "Bearer abc"
    assert body.count(b"Content-Type: application/dicom\r\n\r\nx\r\n") == 2


@pytest.mark.parametrize(
    ("status", "content", "error", "reason"),
    [
        (200, response(1), Refused, "1 of 2 objects as stored"),
        (200, response(0), Refused, "0 of 2"),
        (200, response(1, failed=1), Refused, "1 of 2 objects (0xA700)"),
        (200, b"<html>", Refused, "cannot be read"),
        (200, b"[]", Refused, "cannot be read"),
        (409, b"", Refused, "409"),
        (409, response(0, failed=2), Refused, "2 of 2 objects (0xA700)"),
        (409, response(0, known=[0x0111]), Refused, "1 of 2 objects as stored"),
        (401, b"", Unreachable, "401: see MRI_EDGE_STOW_AUTHORIZATION"),
        (403, b"", Unreachable, "403: see MRI_EDGE_STOW_AUTHORIZATION"),
        (503, b"", Unreachable, "503"),
        (302, b"", Unreachable, "302"),
    ],
)
def test_stow_believes_only_a_response_that_names_every_object(
    web: Web, answer: Answer, status: int, content: bytes, error: type[Exception], reason: str
) -> None:
    web.status, web.content = status, content
    with pytest.raises(error, match=reason.replace("(", r"\(").replace(")", r"\)")):
        StowArchive(WebAddress(web.url)).send(answer)
    assert len(web.requests) == 1  # no redirection was followed


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (202, response(1, known=[0x0111])),
        (409, response(0, known=[0x0111, 0x0111])),
        (409, response(0, known=[45070] * 2)),
    ],
)
def test_stow_counts_what_the_archive_has_already_as_stored(
    web: Web, answer: Answer, status: int, content: bytes
) -> None:
    web.status, web.content = status, content
    assert StowArchive(WebAddress(web.url)).send(answer)


@pytest.mark.parametrize(("value", "sent"), [("Bearer abc\n", "Bearer abc"), ("Bearer a\nb", None), ("Bearer ü", None)])
def test_a_value_that_is_no_header_is_refused_at_the_start(
    web: Web, answer: Answer, monkeypatch: pytest.MonkeyPatch, value: str, sent: str | None
) -> None:
    monkeypatch.setenv(AUTHORIZATION, value)
    if sent is None:
        with pytest.raises(UsageError, match=AUTHORIZATION):
            StowArchive(WebAddress(web.url))
        return
    web.content = response(2)
    StowArchive(WebAddress(web.url)).send(answer)
    assert web.requests[0][1]["Authorization"] == sent


def test_stow_without_a_server_is_unreachable(answer: Answer) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        StowArchive(WebAddress("http://127.0.0.1:9/dicom-web")).send(answer)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_stow_response_has_a_limit_as_a_whole(answer: Answer, before: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(before)
                for _ in range(300):
                    connection.sendall(b"H")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        archive = StowArchive(WebAddress(f"http://127.0.0.1:{server.getsockname()[1]}"), timeout_s=0.5)
        with pytest.raises(Unreachable, match="timed out"):
            archive.send(answer)
        assert time.monotonic() - start < 15


# --- storage commitment


class Reported:
    """The state of commitments that a delivery sees."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def delivered(self, answer: Answer) -> None:
        self.said.append(f"{answer.folder.name} delivered")

    def refuse(self, answer: Answer, reason: str) -> None:
        self.said.append(f"{answer.folder.name}: {reason}")


class Report:
    """An N-EVENT-REPORT about a transaction and the instances that were stored."""

    def __init__(self, transaction: str, *instances: str) -> None:
        from pydicom import Dataset

        self.event_information = Dataset()
        self.event_information.TransactionUID = transaction
        self.event_information.ReferencedSOPSequence = []
        for instance in instances:
            item = Dataset()
            item.ReferencedSOPInstanceUID = instance
            self.event_information.ReferencedSOPSequence.append(item)


@pytest.mark.parametrize(
    ("stored", "said"),
    [(["2.25.0", "2.25.1"], "s-1 delivered"), (["2.25.0"], "s-1: it did not store every object"), ([], "s-1: it did")],
)
def test_a_commitment_counts_only_for_every_object_and_once(answer: Answer, stored: list[str], said: str) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra node")
    from mri_edge.services.dicom.cstore import CStoreArchive

    archive = CStoreArchive(DicomAddress("A", "127.0.0.1", 104), "MRIEDGE", commit=True, confirm_s=0)
    answer.marker(archive.name, "requested").write_text('{"transaction": "2.25.77"}')
    reported = Reported()
    archive.start(reported, iter([answer]))  # type: ignore[arg-type]
    assert archive.receive(Report("2.25.78", *stored))[0] == 0x0110
    assert archive.receive(object())[0] == 0x0110
    assert reported.said == []
    assert archive.receive(Report("2.25.77", *stored))[0] == 0
    assert archive.receive(Report("2.25.77", *stored))[0] == 0x0110
    (message,) = reported.said
    assert message.startswith(said)


def test_without_a_commitment_in_time_an_answer_is_sent_again(answer: Answer) -> None:
    pytest.importorskip("pynetdicom", reason="needs the extra node")
    from mri_edge.services.dicom.cstore import CStoreArchive

    archive = CStoreArchive(DicomAddress("A", "127.0.0.1", 104), "MRIEDGE", commit=True, confirm_s=-1)
    marker = answer.marker(archive.name, "requested")
    marker.write_text('{"transaction": "2.25.77"}')
    archive.start(Reported(), iter([answer]))  # type: ignore[arg-type]
    assert list(archive.forget()) == [answer]
    assert not marker.exists()
    assert list(archive.forget()) == []
    marker.write_text("half")  # a kill cut it off
    archive.start(Reported(), iter([answer]))  # type: ignore[arg-type]
    assert not marker.exists()


# --- addresses


@pytest.mark.parametrize(
    ("text", "aet", "address", "allowed"),
    [
        ("SCANNER@10.1.2.3", "SCANNER", "10.1.2.3", True),
        ("SCANNER@10.1.2.3", "SCANNER", "10.1.2.4", False),
        ("SCANNER@10.1.2.3", "OTHER", "10.1.2.3", False),
        ("*@10.1.0.0/16", "OTHER", "10.1.200.1", True),
        ("MR 1@10.1.2.3/24", "MR 1", "10.1.2.99", True),
        ("*@fd00::/8", "A", "fd00::1%eth0", True),
        ("*@10.0.0.0/8", "A", "::ffff:10.0.0.1", True),
        ("A@B@10.0.0.1", "A@B", "10.0.0.1", True),
    ],
)
def test_senders(text: str, aet: str, address: str, allowed: bool) -> None:
    assert parse_sender(text).allows(aet, address) == allowed


@pytest.mark.parametrize(
    "text", ["", "SCANNER", "@10.0.0.1", "A@10.0.0.300", "A@host", "A\\B@10.0.0.1", "A" * 17 + "@::1"]
)
def test_a_wrong_sender_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sender(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("PACS@10.1.2.4:104", DicomAddress("PACS", "10.1.2.4", 104)),
        ("MY PACS@pacs.example:2762/tls", DicomAddress("MY PACS", "pacs.example", 2762, tls=True)),
        ("PACS@[fd00::1]:104", DicomAddress("PACS", "fd00::1", 104)),
        ("https://pacs.example/dicom-web/", WebAddress("https://pacs.example/dicom-web")),
    ],
)
def test_destinations(text: str, address: Any) -> None:
    assert parse_destination(text) == address
    assert parse_destination(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:104", "ftp://x", "https://u:p@x/"),
        *("https://", "http://[::1/", "http://[x]/", "http://x:70000/", "http://x:0/", "http://x:a/", "http://x y/"),
        *("http://x/\r\nHost: y", "http://\u00e4/", "http://x/\x00", "https://u:p@x:70000/"),
    ],
)
def test_a_wrong_destination_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_destination(text)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    ("senders", "bind"),
    [([], "127.0.0.1"), (["A@10.1.2.3"], "0.0.0.0"), (["A@10.1.2.3", "B@fd00::/8"], "::"), (["*@::1/128"], "::")],  # noqa: S104
)
def test_the_node_listens_where_its_senders_are(senders: list[str], bind: str) -> None:
    assert addresses.default_bind([parse_sender(sender) for sender in senders]) == bind


@pytest.mark.parametrize(("bind", "senders"), [("10.1.2.3", []), ("::", []), ("host", [])])
def test_the_node_is_not_open_to_others_unless_somebody_is_named(bind: str, senders: list[Any]) -> None:
    with pytest.raises(UsageError):
        addresses.check_bind(bind, senders)
    addresses.check_bind("127.0.0.1", [])
    addresses.check_bind("::1", [])
    if bind != "host":
        addresses.check_bind(bind, [parse_sender("*@10.0.0.0/8")])


# --- status


def test_the_status_counts_what_is_on_disk(spool: Spool, answers: Answers) -> None:
    store(spool, "1.1")
    spool.sort()
    store(spool, "1.2", "5.2")
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm"))
    counters = Counters()
    counters.add("instances", "stored", 2)
    thread = Delivery(answers, FakeArchive(), ["A"], counters, lambda message: None)
    thread.problem = "cannot be reached"
    write_state(spool.folder, "MRIEDGE@127.0.0.1:11112", [thread], counters, 3)
    found = survey(spool.folder)
    assert (found["incoming"], found["series_waiting"], found["outbox"]) == (1, 1, 1)
    assert found["running"] is True
    assert found["destinations"]["A"]["waiting"] == 1
    text = as_text(found)
    assert "MRIEDGE@127.0.0.1:11112, running" in text
    assert "A  1 result waiting, the oldest for" in text
    assert "cannot be reached, next attempt in" in text
    metrics = (spool.folder / "metrics.prom").read_text()
    assert 'mri_edge_node_instances_total{outcome="stored"} 2\n' in metrics
    assert 'mri_edge_node_destination_waiting{destination="A"} 1\n' in metrics
    assert "mri_edge_node_associations_open 3\n" in metrics


def test_the_status_names_a_refused_answer_as_long_as_it_waits(spool: Spool, answers: Answers) -> None:
    thread = Delivery(answers, FakeArchive(), ["A"], Counters(), lambda message: None)
    for name in ("a", "b"):
        answers.write(name, 1, "one", [], [], objects("sr-1.dcm"))
    first, second = answers.waiting()

    def problem() -> str | None:
        write_state(spool.folder, "n", [thread], Counters(), 0)
        found: str | None = survey(spool.folder)["destinations"]["A"]["problem"]
        return found

    assert problem() is None
    thread.refuse(first, "HTTP status 409")
    thread.refuse(second, "its response cannot be read")
    assert problem() == "refused the result b-1: its response cannot be read"
    shutil.rmtree(second.folder)
    assert problem() == "refused the result a-1: HTTP status 409"
    assert "refused the result a-1: HTTP status 409, next attempt in " in as_text(survey(spool.folder))
    thread.delivered(first)
    assert problem() is None


def test_no_state_is_written_into_an_empty_mount_point(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is not mounted"):
        write_state(tmp_path, "n", [], Counters(), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "5", "{}", '{"destinations": 5}', '{"destinations": {"a": 5}}', '{"time": "x"}'),
        '{"node": "n", "process": 1e999, "time": 0, "associations": 0, "destinations": {}, "counts": []}',
        '{"node": "n", "process": 1, "time": 0, "associations": 0, "destinations": {}, "counts": [5]}',
    ],
)
def test_a_damaged_state_is_no_state(spool: Spool, content: str) -> None:
    (spool.folder / "state.json").write_text(content)
    found = survey(spool.folder)
    assert found["running"] is False
    assert "unknown, not running" in as_text(found)


def test_a_clock_that_was_set_back_gives_no_negative_age(spool: Spool, answers: Answers) -> None:
    answers.write("s", 1, "one", [], [], objects("sr-1.dcm"))
    later = time.time() + 86_400
    os.utime(spool.outbox / "s-1" / "answer.json", (later, later))
    thread = Delivery(answers, FakeArchive(), ["A"], Counters(), lambda message: None)
    write_state(spool.folder, "n", [thread], Counters(), 0)
    assert survey(spool.folder)["destinations"]["A"]["oldest_s"] == 0


def test_metrics_can_be_read_by_prometheus(spool: Spool, answers: Answers) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus-client")
    counters = Counters()
    counters.add("associations", 'odd "name"\n')
    write_state(spool.folder, "n", [], counters, 0)
    families = {
        family.name for family in parser.text_string_to_metric_families((spool.folder / "metrics.prom").read_text())
    }
    assert {"mri_edge_node_outbox", "mri_edge_node_associations"} <= families


def test_a_folder_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the spool of a node"):
        survey(tmp_path)
