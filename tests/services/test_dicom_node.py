"""`mri-edge node` with real peers: nothing that it acknowledged is lost, and no series gets two results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra node")
pytest.importorskip("pynetdicom", reason="needs the extra node")
pytest.importorskip("highdicom", reason="needs the extra node")

CHECKOUT = Path(__file__).resolve().parents[2]
from benchmarks.node import campaign, fuzz, peers
from mri_edge.services.dicom.spool import short_hash

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the node is for POSIX systems")
SR, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.7"


def program(path: str, package: str) -> str:
    """The path of a program; skips if it is not installed. pynetdicom has programs of the same names."""
    if not os.access(path, os.X_OK):
        pytest.skip(f"needs {path} (Debian package {package})")
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peers.make_bundle(tmp_path_factory.mktemp("node") / "bundle")


@pytest.fixture
def make_node(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., peers.NodeProcess]]:
    """Return a function that makes a node with options. What still runs at the end is killed."""
    made: list[peers.NodeProcess] = []

    def make(*options: object, port: int | None = None) -> peers.NodeProcess:
        made.append(peers.NodeProcess(tmp_path, bundle, *options, port=port))
        return made[-1]

    yield make
    for node in made:
        if node.process is not None and node.process.poll() is None:
            node.end(signal.SIGKILL)


@pytest.fixture
def archive() -> Iterator[peers.FakeArchive]:
    node_port = peers.free_port()
    opened = peers.FakeArchive(node_port=node_port)
    opened.node_port = node_port  # type: ignore[attr-defined]
    yield opened
    opened.stop()


def send(port: int, *datasets: Any, **options: Any) -> list[int | None]:
    """Send data sets over one association, and return the status of each."""
    association = peers.associate(port, **options)
    assert association.is_established
    statuses = [association.send_c_store(dataset).get("Status") for dataset in datasets]
    association.release()
    return statuses


def series(number: int, slices: int, **values: Any) -> list[Any]:
    return [peers.instance(number, index, size=64, **values) for index in range(slices)]


# --- from a series to its report


def test_a_series_gets_one_report_and_messages_name_nobody(make_node, archive) -> None:
    node = make_node("--settle", 1, "--send-to", archive.address)
    node.start()
    assert send(node.port, *series(1, 4)) == [0, 0, 0, 0]
    peers.wait_for(lambda: list((node.spool / "sent").glob("*-1/answer.json")), "the report is delivered")
    assert archive.reported_series() == ["2.25.20001"]
    (report,) = archive.received
    assert (report.SOPClassUID, str(report.PatientID)) == (SR, peers.SECRET)
    assert "PredecessorDocumentsSequence" not in report
    assert node.end() == 0
    assert not list((node.spool / "series").iterdir())
    text = node.log.read_text() + "".join(str(path) for path in node.spool.rglob("*"))
    text += "".join(path.read_text() for path in node.spool.glob("*.*") if path.is_file())
    text += "".join(path.read_text() for path in (node.spool / "sent").rglob("*.json"))
    for secret in (peers.SECRET, "Zzyzx", "19700101"):
        assert secret not in text
    assert "2.25." not in node.log.read_text()
    assert "research use only" in node.log.read_text().lower()


def test_the_same_instance_again_changes_nothing_and_another_content_is_kept(make_node, archive) -> None:
    node = make_node("--settle", 1, "--send-to", archive.address)
    node.start()
    slices = series(1, 3)
    assert send(node.port, *slices, slices[0]) == [0, 0, 0, 0]
    peers.wait_for(lambda: archive.received, "the report")
    changed = peers.instance(1, 0, size=64, PatientName="Another^Name")
    assert send(node.port, slices[1], changed, changed) == [0, 0, 0]
    peers.wait_for(lambda: list((node.spool / "conflicts").rglob("*.dcm")), "the other content is kept")
    # A later series gets its report, so the node had time to give the first one a second report.
    send(node.port, *series(2, 2))
    peers.wait_for(lambda: "2.25.20002" in archive.reported_series(), "the second report")
    assert archive.reported_series() == ["2.25.20001", "2.25.20002"]
    assert len(list((node.spool / "conflicts").rglob("*.dcm"))) == 1
    assert len(node.files()) == 3 + 2 + 1
    log = node.log.read_text()
    assert log.count("sent again with other content") == 1


def test_late_slices_get_a_new_report_that_names_the_earlier_one(make_node, archive) -> None:
    node = make_node("--settle", 1, "--send-to", archive.address)
    node.start()
    slices = series(1, 5)
    send(node.port, *slices[:3])
    peers.wait_for(lambda: len(archive.received) == 1, "the first report")
    send(node.port, slices[3])
    (second,) = peers.wait_for(lambda: list((node.spool / "sent").glob("*-2")), "the second report is delivered")
    # Neither an answer that was deleted nor one without a report interrupts the chain.
    first, third, fourth = (second.with_name(f"{second.name[:-2]}-{number}") for number in (1, 3, 4))
    shutil.rmtree(first)
    third.mkdir()
    record = json.loads((second / "answer.json").read_text())
    (third / "answer.json").write_text(json.dumps(record | {"number": 3, "instances": "others", "objects": []}))
    send(node.port, slices[4])
    peers.wait_for(fourth.is_dir, "the last report is delivered")
    assert len(archive.received) == 3
    for earlier, later, count in zip(archive.received, archive.received[1:], (4, 5), strict=False):
        (study,) = later.PredecessorDocumentsSequence
        (reference,) = study.ReferencedSeriesSequence
        (predecessor,) = reference.ReferencedSOPSequence
        assert study.StudyInstanceUID == earlier.StudyInstanceUID
        assert reference.SeriesInstanceUID == earlier.SeriesInstanceUID
        assert predecessor.ReferencedSOPInstanceUID == earlier.SOPInstanceUID
        assert later.SOPInstanceUID != earlier.SOPInstanceUID
        evidence = later.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert len(evidence) == count


ONE_PART_POSITIVE = """
import sys
from dataclasses import replace
from mri_edge.cli import main
from mri_edge.services.dicom import node
combine = node.combine

def combine_parts(*arguments):
    for result in combine(*arguments):
        first_echo = min(facts.echo or 0 for facts in result.series.slices) < 20
        yield replace(result, label="tumour" if first_echo else "no tumour")

node.combine = combine_parts
main(sys.argv[1:])
"""


def test_a_report_names_only_an_earlier_one_on_the_same_part_of_a_series(make_node, archive) -> None:
    """Two echoes have one series identifier. The negative one never had a report, and must not get one later."""
    node = make_node("--settle", 1, "--send-to", archive.address)
    node.start(program=(sys.executable, "-c", ONE_PART_POSITIVE))
    echoes = [
        [peers.instance(1, 10 * echo + number, size=64, EchoTime=10 * echo) for number in range(4)] for echo in (1, 2)
    ]
    send(node.port, *echoes[0][:3], *echoes[1][:3])
    peers.wait_for(lambda: archive.received, "the report on the first echo")
    send(node.port, *(echo[3] for echo in echoes))
    peers.wait_for(lambda: list((node.spool / "sent").glob("*-2")), "the second answer is delivered")
    first, second = archive.received
    (study,) = second.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    evidence = second.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    expected = {str(dataset.SOPInstanceUID) for dataset in echoes[0]}
    assert {str(item.ReferencedSOPInstanceUID) for item in evidence} == expected


def test_a_series_that_cannot_be_moved_does_not_hold_up_others(make_node, archive) -> None:
    soon = "import sys; from mri_edge.cli import main; from mri_edge.services.dicom import node; node._MOVE_S = 0.2"
    node = make_node("--settle", 0.5, "--send-to", archive.address)
    node.start(program=(sys.executable, "-c", f"{soon}; main(sys.argv[1:])"))
    in_the_way = node.spool / "done" / short_hash("2.25.30001", "2.25.20001")
    in_the_way.write_text("x")
    send(node.port, *series(1, 2))
    peers.wait_for(lambda: "cannot be moved" in node.log.read_text(), "the problem is reported")
    send(node.port, *series(2, 2))
    peers.wait_for(lambda: len(archive.received) == 2, "the report on the other series")
    assert list((node.spool / "series").iterdir()) == [node.spool / "series" / in_the_way.name]
    in_the_way.unlink()
    peers.wait_for(lambda: not list((node.spool / "series").iterdir()), "the first series is moved")
    assert len(archive.received) == len(node.answers()) == 2
    assert node.log.read_text().count("cannot be moved") == 1


@pytest.mark.parametrize("mount_point", [True, False])
def test_a_disk_that_is_not_mounted_does_not_end_the_node(make_node, archive, mount_point: bool) -> None:
    soon = "import sys; from mri_edge.cli import main; from mri_edge.services.dicom import node; "
    soon += "node.STATE_S = node._RETRY_S = 0.2; main(sys.argv[1:])"
    node = make_node("--settle", 0.5, "--send-to", archive.address)
    node.start(program=(sys.executable, "-c", soon))
    disk = node.spool.with_name("disk")
    node.spool.rename(disk)
    if mount_point:
        node.spool.mkdir()
    peers.wait_for(lambda: "tries again until it works" in node.log.read_text(), "the problem is reported")
    assert send(node.port, *series(1, 2)) == [0xA700] * 2
    if mount_point:
        shutil.rmtree(node.spool)  # the disk may have gone while the state was written
    disk.rename(node.spool)
    peers.wait_for(lambda: "the node continues" in node.log.read_text(), "the disk is found")
    assert send(node.port, *series(1, 2)) == [0] * 2
    peers.wait_for(lambda: archive.received, "the report")
    assert node.end() == 0


SLOW = """
import sys, time
from mri_edge.cli import main
from mri_edge.services.dicom import node

classify = node.classify_slices
node.STATE_S = 0.2
node.classify_slices = lambda *arguments: (time.sleep(0.3) or piece for piece in classify(*arguments))
main(sys.argv[1:])
"""


def test_the_state_is_written_and_a_stop_is_heard_between_the_slices_of_a_series(make_node) -> None:
    node = make_node("--settle", 0.2)
    node.start(program=(sys.executable, "-c", SLOW))
    send(node.port, *series(1, 40))
    peers.wait_for((node.spool / ".at-hand.json").exists, "the series is being classified")
    for name in ("state.json", "metrics.prom"):
        (node.spool / name).unlink()
        peers.wait_for((node.spool / name).exists, f"{name} is written again")
    assert node.end() == 0
    assert node.answers() == []
    assert not (node.spool / ".at-hand.json").exists()


def test_secondary_captures_and_other_planes_are_received_and_not_classified(make_node, archive) -> None:
    node = make_node("--settle", 1, "--send-to", archive.address)
    node.start()
    capture = peers.instance(1, 0, size=64, SOPClassUID=SECONDARY_CAPTURE)  # scanners write MR as their modality
    assert send(node.port, capture, classes=[SECONDARY_CAPTURE]) == [0]
    assert send(node.port, *series(2, 2, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])) == [0, 0]
    assert send(node.port, *series(3, 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])) == [0, 0]
    peers.wait_for(lambda: len(node.answers()) == 3, "three answers")
    assert archive.received == []
    problems = " | ".join(answer["problems"][0] for answer in node.answers())
    assert all(reason in problems for reason in ("a secondary capture", "a localizer", "sagittal"))
    association = peers.associate(node.port, classes=["1.2.840.10008.5.1.4.1.1.2"])  # CT
    assert not association.accepted_contexts
    association.abort()


# --- archives that are down, refuse, or confirm later


def test_results_wait_for_an_archive_that_is_down(make_node) -> None:
    port = peers.free_port()
    node = make_node("--settle", 0.5, "--send-to", f"ARCHIVE@127.0.0.1:{port}")
    node.start()
    for number in (1, 2, 3):
        send(node.port, *series(number, 2))
    peers.wait_for(lambda: len(list((node.spool / "outbox").glob("*-1"))) == 3, "three results wait")
    peers.wait_for(lambda: "cannot be reached" in node.log.read_text(), "the problem is reported")
    assert node.end() == 0
    node.start()
    archive = peers.FakeArchive(port)
    try:
        peers.wait_for(lambda: not list((node.spool / "outbox").iterdir()), "the outbox is empty")
        assert archive.reported_series() == ["2.25.20001", "2.25.20002", "2.25.20003"]
        assert archive.associations == 1  # one for all results, not one for each
    finally:
        archive.stop()


def test_a_refused_result_is_sent_again_and_does_not_block_others(make_node, archive) -> None:
    archive.status = 0xA900
    node = make_node("--settle", 0.5, "--send-to", archive.address)
    node.start()
    send(node.port, *series(1, 2))
    peers.wait_for(lambda: "status 0xA900" in node.log.read_text(), "the refusal is reported")
    archive.status = 0x0000
    peers.wait_for(lambda: archive.reported_series() == ["2.25.20001"], "it is sent again")
    peers.wait_for(lambda: not list((node.spool / "outbox").iterdir()), "the outbox is empty")


def test_with_commit_a_result_waits_until_the_archive_confirmed_it(make_node, archive) -> None:
    archive.confirms = False
    node = make_node("--settle", 0.5, "--send-to", archive.address, "--commit", port=archive.node_port)
    node.start()
    send(node.port, *series(1, 2))
    peers.wait_for(lambda: list((node.spool / "outbox").glob("*/*.requested")), "the request")
    assert node.end() == 0
    assert len(archive.received) == 1
    # After a restart the request is still known, and the report is taken.
    archive.confirms = True
    node.start()
    send(node.port, *series(2, 2))
    peers.wait_for(lambda: list((node.spool / "sent").glob("*-1")), "the second result is confirmed")
    assert len(list((node.spool / "outbox").glob("*-1"))) == 1  # the first one still waits


# --- kills

KILLED = """
import os, sys
from mri_edge.services.dicom import answers, cstore, delivery, spool

def kill(owner, name, before=False):
    function = getattr(owner, name)
    def killing(*arguments, **options):
        if not before:
            function(*arguments, **options)
        os.kill(os.getpid(), 9)
    setattr(owner, name, killing)

kill(*{
    "stored, not acknowledged": (spool.Spool, "store"),
    "sorted": (spool.Spool, "_sort"),
    "classified, no answer on disk": (answers.Answers, "write", True),
    "answered, not moved": (answers.Answers, "write"),
    "moved, not sent": (cstore._Association, "send", True),
    "sent, not noted": (cstore._Association, "send"),
    "noted, not moved": (answers, "atomic_write"),
    "delivered": (answers.Answers, "deliver"),
}[os.environ["KILL_AT"]])
from mri_edge.cli import main
main(sys.argv[1:])
"""
POINTS = [line.split('"')[1] for line in KILLED.splitlines() if line.startswith('    "')]


@pytest.mark.slow
def test_a_kill_at_any_point_neither_loses_nor_doubles_anything(make_node, archive) -> None:
    node = make_node("--settle", 0.2, "--send-to", archive.address)
    acknowledged: list[str] = []
    for number, point in enumerate(POINTS):
        node.start(program=(sys.executable, "-c", KILLED), may_end=True, KILL_AT=point)
        for dataset in series(number, 2):
            association = peers.associate(node.port, timeout_s=1)
            if association.is_established and association.send_c_store(dataset).get("Status") == 0:
                acknowledged.append(str(dataset.SOPInstanceUID))
            association.abort()
        assert node.process.wait(timeout=60) == -signal.SIGKILL, point
    node.start()
    everything = [dataset for number in range(len(POINTS)) for dataset in series(number, 2)]
    assert set(send(node.port, *everything)) == {0}
    uids = [f"2.25.2{number:04d}" for number in range(len(POINTS))]
    evidence = [short_hash(str(dataset.SOPInstanceUID)) for dataset in everything]

    def complete() -> bool:
        done = sorted(path.name.partition("-")[0] for path in (node.spool / "done").rglob("*.dcm"))
        return done == sorted(evidence) and not list((node.spool / "outbox").iterdir())

    peers.wait_for(complete, "every series has its answer, and the archive has it")
    assert node.end() == 0
    reported = archive.reported_series()
    assert set(reported) == set(uids)
    # A series that was cut by the kill has one report for each set of instances, each of which names the one before.
    answers = node.answers()
    assert len({answer["instances"] for answer in answers}) == len(answers) == len(reported)
    assert acknowledged


@pytest.mark.slow
def test_a_small_campaign_of_kills_with_orthanc() -> None:
    program(shutil.which("Orthanc") or "/usr/sbin/Orthanc", "orthanc")
    assert campaign.main(["--instances", "20", "--kills", "1", "--archive-kills", "1", "--size", "64"]) == 0


def test_a_series_that_crashes_the_program_is_given_up(make_node, archive) -> None:
    crash = KILLED.replace('"sorted"', '"classifies"').replace(
        '(spool.Spool, "_sort")', '(node.Node, "_predict", True)'
    )
    crash = crash.replace("import answers,", "import node, answers,")
    node = make_node("--settle", 0.2, "--send-to", archive.address)
    node.start(program=(sys.executable, "-c", crash), KILL_AT="classifies")
    send(node.port, *series(1, 2))
    assert node.process.wait(timeout=60) == -signal.SIGKILL
    for _ in range(2):
        node.start(program=(sys.executable, "-c", crash), may_end=True, KILL_AT="classifies")
        assert node.process.wait(timeout=60) == -signal.SIGKILL
    node.start()
    peers.wait_for(node.answers, "the series has an answer")
    (answer,) = node.answers()
    assert "ended 3 times in a row while this series" in answer["problems"][0]
    assert archive.received == []


# --- dcmtk and Orthanc


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[peers.Orthanc]:
    program(shutil.which("Orthanc") or "/usr/sbin/Orthanc", "orthanc")
    opened = peers.Orthanc(tmp_path / "orthanc", peers.free_port())
    opened.start()
    yield opened
    opened.end()


def test_dcmtk_sends_and_orthanc_gets_the_report_by_two_ways(make_node, orthanc, tmp_path: Path) -> None:
    storescu, echoscu = program("/usr/bin/storescu", "dcmtk"), program("/usr/bin/echoscu", "dcmtk")
    findscu = program("/usr/bin/findscu", "dcmtk")
    destinations = ["--send-to", orthanc.address]
    if orthanc.has_web:
        destinations += ["--send-to", f"{orthanc.url}/dicom-web"]
    node = make_node("--settle", 1, *destinations)
    node.start()
    here = ["127.0.0.1", str(node.port)]
    subprocess.run([echoscu, "-aec", peers.AET, *here], check=True, timeout=60)
    assert subprocess.run([echoscu, "-aec", "OTHER", *here], check=False, timeout=60, capture_output=True).returncode
    paths = peers.write_series(tmp_path / "scans", 1, 3, size=64)
    subprocess.run([storescu, "-aec", peers.AET, *here, *map(str, paths)], check=True, timeout=60)
    peers.wait_for(lambda: list((node.spool / "sent").glob("*-1")), "both ways are delivered")
    assert orthanc.reported_series() == ["2.25.20001"]
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", "Modality=SR", "-k", "SeriesDescription"]
    found = subprocess.run(
        [findscu, "-S", "-aec", "ORTHANC", *keys, "127.0.0.1", str(orthanc.port)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "AI: research use only" in found.stdout + found.stderr


def test_orthanc_sends_a_series_and_confirms_the_storage_of_the_report(make_node, tmp_path: Path) -> None:
    program(shutil.which("Orthanc") or "/usr/sbin/Orthanc", "orthanc")
    node = make_node("--settle", 1)
    orthanc = peers.Orthanc(tmp_path / "orthanc", node.port)
    node.options += ["--send-to", orthanc.address, "--commit"]
    orthanc.start()
    try:
        node.start()
        for dataset in series(1, 3):
            path = tmp_path / "scan.dcm"
            dataset.save_as(path, enforce_file_format=True)
            request = peers.urllib.request.Request(
                f"{orthanc.url}/instances", path.read_bytes(), {"Content-Type": "application/dicom"}
            )
            peers.urllib.request.urlopen(request, timeout=60).close()
        (name,) = orthanc.get("/series")
        orthanc.get("/modalities/node/store", [name])
        peers.wait_for(lambda: list((node.spool / "sent").glob("*-1/*.delivered")), "the storage is confirmed")
        assert orthanc.reported_series() == ["2.25.20001"]
        assert not list((node.spool / "sent").glob("*/*.requested"))
    finally:
        orthanc.end()


def test_mutated_data_sets_and_pdus_neither_end_the_node_nor_get_lost() -> None:
    assert fuzz.main(["--datasets", "20", "--streams", "10"]) == 0


def test_orthanc_stores_reports_and_captures_by_two_ways(
    orthanc: peers.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mri_edge import Classifier
    from mri_edge.inference.heatmap import series_pictures
    from mri_edge.services.dicom.addresses import parse_destination
    from mri_edge.services.dicom.answers import Answers
    from mri_edge.services.dicom.cstore import CStoreArchive
    from mri_edge.services.dicom.stow import StowArchive
    from mri_edge.services.dicom_results.results import DicomResults

    monkeypatch.setattr(series_pictures, "MOST_HEATMAPS", 1)
    answers = Answers(tmp_path / "outbox", tmp_path / "sent")
    for number in (1, 2):
        paths = peers.write_series(tmp_path / "scans", number, 3, size=64)
        with Classifier.load("small", threads=1) as classifier:
            (result,) = classifier.predict_series([str(path) for path in paths])
            objects = DicomResults(classifier, ("sr", "sc")).of(replace(result, label="tumour"))
        answers.write(f"s{number}", 1, "one", [], [], objects)
    first, second = answers.waiting()
    with CStoreArchive(parse_destination(orthanc.address), peers.AET).connect() as connection:
        assert connection.send(first)
    if orthanc.has_web:
        assert StowArchive(parse_destination(f"{orthanc.url}/dicom-web")).send(second)
    expected = ["2.25.20001", "2.25.20002"][: 1 + orthanc.has_web]
    assert sorted(orthanc.reported_series()) == expected
    captures = orthanc.find("OT")
    assert {str(capture.SOPClassUID) for capture in captures} == {SECONDARY_CAPTURE}
    assert (
        sorted(str(capture.StudyInstanceUID) for capture in captures) == ["2.25.30001", "2.25.30002"][: len(expected)]
    )
