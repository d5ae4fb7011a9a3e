"""`predict --resume` continues after a kill at any moment without repeating or losing a scan."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Failure, InputError
from mri_edge.cli import run
from mri_edge.errors import UsageError
from mri_edge.inference.journal import Journal

PROGRAM = Path(sys.executable).with_name("mri-edge")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """1,500 small scans."""
    folder = tmp_path / "many"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))
    picture.save(folder / "0000.png")
    for number in range(1, 1500):
        (folder / f"{number:04d}.png").hardlink_to(folder / "0000.png")
    return folder


def lines_of(journal: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def test_killed_runs_together_write_one_result_for_each_scan(tiny_bundle, many, tmp_path):
    journal = tmp_path / "out.jsonl"
    command = [PROGRAM, "predict", many, "--model", tiny_bundle, "--resume", journal]
    kills = 0
    for wanted in (100, 500, 900):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True)
    names = [Path(str(row["file"])).name for row in lines_of(journal)]
    assert kills >= 1, "no run was killed while it worked: the test proved nothing"
    assert names == [f"{number:04d}.png" for number in range(1500)]


def test_an_interrupted_run_leaves_complete_lines_and_reports_the_interruption(tiny_bundle, many, tmp_path):
    journal = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [PROGRAM, "predict", many, "--model", tiny_bundle, "--resume", journal], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert journal.read_bytes().endswith(b"\n")
    assert lines_of(journal)


def test_a_partial_last_line_is_dropped_and_its_scan_repeated(tiny_bundle, many, tmp_path, capfd):
    journal = tmp_path / "out.jsonl"
    first = ["predict", "--model", str(tiny_bundle), "--resume", str(journal), str(many / "000*.png")]
    assert run(first) == 0
    whole = journal.read_text()
    journal.write_text(whole[:-40])
    assert run(first) == 0
    assert [row["file"] for row in lines_of(journal)] == [json.loads(line)["file"] for line in whole.splitlines()]
    assert run(first) == 0
    assert len(lines_of(journal)) == 10
    capfd.readouterr()


RECORD = b'{"schema_version": 1, "file": "a.png", "error": "gone", "hint": "", "code": "missing"}\n'
FOREIGN = {
    "notes": b"dear diary\n",
    "notes whose last line has no end": b"dear diary\ntoday I",
    "one line without an end": b"dear diary",
    "one letter": b"d",
    "a brace": b"[",
    "CSV": b"file,label\r\na.png,yes\r\n",
    "CSV without a last end": b"file,label\na.png,yes",
    "binary": bytes(range(256)) * 3,
    "other JSON lines": b'{"file": "a.png", "model": "x"}\n{"file": "b.png"',
    "one JSON object": b'{\n  "file": "a.png"\n}\n',
    "a later version": b'{"schema_version": 2, "file": "a.png", "error": "gone"}\n',
    "ours, then a note": RECORD + b"look at a.png again",
    "ours, then a list": RECORD + b"[]\n",
    "deeply nested": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_a_journal_is_unchanged(tiny_bundle, many, tmp_path, capfd, content):
    notes = tmp_path / "notes.txt"
    notes.write_bytes(content)
    before = notes.stat()
    assert run(["predict", "--model", str(tiny_bundle), "--resume", str(notes), str(many / "0001.png")]) == 2
    out, err = capfd.readouterr()
    assert "is not a result" in err
    assert (out, len(err.splitlines())) == ("", 1)
    assert notes.read_bytes() == content
    assert notes.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("end", range(1, len(RECORD), 7))
def test_a_journal_of_one_partial_line_is_continued(tiny_bundle, many, tmp_path, end):
    journal = tmp_path / "out.jsonl"
    journal.write_bytes(RECORD[:end])
    assert run(["predict", "--model", str(tiny_bundle), "--resume", str(journal), str(many / "0001.png")]) == 0
    assert [row["file"] for row in lines_of(journal)] == [str(many / "0001.png")]


def test_the_same_failure_is_not_written_again(tiny_bundle, many, tmp_path, capfd):
    journal, bad = tmp_path / "out.jsonl", tmp_path / "bad.png"
    bad.write_text("no picture")
    (tmp_path / "empty").mkdir()
    scans = [str(bad), str(tmp_path / "missing.png"), str(tmp_path / "empty"), str(many / "0001.png")]
    command = ["predict", "--model", str(tiny_bundle), "--resume", str(journal), *scans]
    for _ in range(3):
        assert run(command) == 1
        assert len(capfd.readouterr().err.splitlines()) >= 3, "it is said again, for the run failed again"
        assert [row["file"] for row in lines_of(journal)] == scans
    bad.write_bytes(b"")  # another failure of the same scan is news
    assert run(command) == 1
    assert [row["file"] for row in lines_of(journal)] == [*scans, str(bad)]
    bad.unlink()
    bad.hardlink_to(many / "0000.png")
    assert run(command) == 1
    bad.unlink()
    assert run(command) == 1
    assert [("label" in row, row["file"]) for row in lines_of(journal)][5:] == [(True, str(bad))]


def test_answers_of_a_model_that_was_trained_again_are_not_mixed(tiny_bundle, many, tmp_path, capfd):
    """Both are called "tiny 1", so only the hash of the artifact distinguishes them."""
    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.bundle import Bundle

    journal = tmp_path / "out.jsonl"
    command = ["predict", "--model", str(tiny_bundle), "--resume", str(journal)]
    assert run([*command, str(many / "0001.png")]) == 0
    bundle = Bundle.open(tiny_bundle)
    [artifact] = bundle.manifest.artifacts
    with rewrite_bundle(bundle) as writer:
        content = (tiny_bundle / artifact.file).read_bytes()
        writer.path(artifact.file).write_bytes(content + b"\x72\x00")  # an empty field of another name at its end
        writer.add_artifact(artifact)
    before = journal.read_bytes()
    assert run([*command, str(many / "0002.png")]) == 2
    assert "is an answer of 'tiny 1 (" in capfd.readouterr().err
    assert journal.read_bytes() == before


def test_failed_scans_are_tried_again_and_a_scan_named_twice_has_one_line(tiny_bundle, many, tmp_path, capfd):
    journal, late = tmp_path / "out.jsonl", tmp_path / "late.png"
    command = ["predict", "--model", str(tiny_bundle), "--resume", str(journal), str(many / "0001.png"), str(late)]
    assert run([*command, str(late)]) == 1
    assert ["label" in row for row in lines_of(journal)] == [True, False]
    late.hardlink_to(many / "0000.png")
    capfd.readouterr()
    assert run(command) == 0
    assert capfd.readouterr().err == "mri-edge: 1 scan has a result already\n"
    assert [("label" in row, row["file"]) for row in lines_of(journal)][2:] == [(True, str(late))]


@pytest.mark.parametrize("by", ["slice", "series"])
@pytest.mark.parametrize(
    ("options", "files"),
    [([], ""), (["--heatmap", "why"], "heatmap"), (["--dicom-out", "out"], "DICOM file")],
    ids=["nothing", "heatmap", "DICOM"],
)
def test_files_that_earlier_results_do_not_get_are_named(tmp_path, monkeypatch, capfd, by, options, files):
    if "--dicom-out" in options:
        pytest.importorskip("highdicom", reason="needs the extra dicom-out")
    monkeypatch.chdir(tmp_path)
    scan = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"
    command = ["predict", str(scan), "--model", "small", "--by", by, "--resume", "out.jsonl"]
    assert run(command) == 0
    capfd.readouterr()
    assert run([*command, *options]) == 0
    message = capfd.readouterr().err
    assert " has a result already" in message
    assert (f"Earlier results get no {files}: name a new file in --resume" in message) == bool(files)
    assert not Path("why").exists()


def test_a_second_run_on_a_journal_is_refused_and_removes_nothing(tiny_bundle, many, tmp_path, capfd):
    journal = tmp_path / "out.jsonl"
    with Journal(journal, "tiny 1") as first:
        first.write(Failure("a.png", InputError("gone")))
        assert run(["predict", "--model", str(tiny_bundle), "--resume", str(journal), str(many / "0001.png")]) == 2
        assert "another mri-edge writes it" in capfd.readouterr().err
        first.write(Failure("b.png", InputError("gone")))
    assert [row["file"] for row in lines_of(journal)] == ["a.png", "b.png"]


def test_answers_of_two_models_are_not_mixed(tiny_bundle, many, tmp_path, capfd):
    journal = tmp_path / "out.jsonl"
    with Journal(journal, "other 2") as first:
        first.write(Failure("a.png", InputError("gone")))
    command = ["predict", "--model", str(tiny_bundle), "--resume", str(journal), str(many / "0001.png")]
    assert run(command) == 0  # an error is nobody's answer
    with pytest.raises(UsageError, match=r"line 2 is an answer of 'tiny 1 .*', but the model is 'other 2'"):
        Journal(journal, "other 2")
    assert len(lines_of(journal)) == 2


@pytest.mark.parametrize(("where", "expected"), [("missing/out.jsonl", 6), ("many", 2)])
def test_unwritable_journal(tiny_bundle, many, tmp_path, capfd, where, expected):
    code = run(["predict", "--model", str(tiny_bundle), "--resume", str(tmp_path / where), str(many / "0001.png")])
    assert code == expected
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_results_file_and_forms_exclude_each_other(tiny_bundle, many, tmp_path, capfd):
    code = run(["predict", "--model", str(tiny_bundle), "--json", "--resume", str(tmp_path / "o"), str(many)])
    assert code == 2
    assert "--resume" in capfd.readouterr().err
