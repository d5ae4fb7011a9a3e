"""Skipped files of a folder are reported, files that could block are never opened, and no CSV cell is a formula."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mri_edge.cli import run
from mri_edge.scans import files

EXAMPLES = Path(__file__).parents[2] / "examples"
SCAN = (EXAMPLES / "phantom-1.jpg").read_bytes()
PROGRAM = Path(sys.executable).with_name("mri-edge")

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX")

DICOMDIR = bytes(128) + b"DICM\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"


@pytest.fixture
def predict(tiny_bundle, tmp_path):
    """Run predict in a process that may take 60 seconds: (exit code, stdout, stderr)."""

    def call(*arguments: object, **options: object) -> tuple[int, str, str]:
        command = [PROGRAM, "predict", "--model", tiny_bundle, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False, **options)
        return done.returncode, done.stdout.decode(), done.stderr.decode()  # with the line ends as they are

    return call


def fill(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_skipped_files_of_a_folder_are_reported(predict, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    fill(scans, **{"x.jpg": SCAN, "a.avi": b"", "b.avi": b""})
    code, out, err = predict("scans", "--json")
    assert code == 0
    assert [json.loads(line)["file"] for line in out.splitlines()] == ["scans/x.jpg"]
    assert err == "mri-edge: scans: 2 files skipped: .avi (a.avi, b.avi)\n"


def test_every_kind_is_counted_once_for_the_folder(predict, tmp_path):
    scans = tmp_path / "scans"
    (scans / "sub").mkdir(parents=True)
    fill(scans, **{"x.jpg": SCAN, "c.mgz": b"", "DICOMDIR": DICOMDIR, "notes.txt": b"", ".DS_Store": b""})
    fill(scans, **{"DICOMDIR.old": DICOMDIR, "empty": b"", "Thumbs.db": b"", "n\x1b[31m.txt": b""})
    fill(scans / "sub", **{f"{index}.txt": b"" for index in range(5)})
    code, _, err = predict("scans")
    assert code == 0
    [line] = err.splitlines()
    for words in (
        "8 files skipped: ",
        "2 DICOMDIR (DICOMDIR, DICOMDIR.old)",
        "1 .mgz (c.mgz)",
        "1 hidden (.DS_Store)",
        "2 .txt (n\\x1b[31m.txt, notes.txt)",
        "1 no suffix (empty)",
        "1 .db (Thumbs.db)",
        "; 1 subfolder skipped (see --recursive)",
    ):
        assert words in line
    [line] = predict("scans", "--recursive")[2].splitlines()
    assert "13 files skipped: " in line
    assert "7 .txt (n\\x1b[31m.txt, notes.txt, 0.txt, …)" in line
    assert "subfolder" not in line


def test_nothing_is_reported_about_a_folder_of_pictures_alone(predict, tmp_path):
    (tmp_path / "scans").mkdir()
    fill(tmp_path / "scans", **{"x.jpg": SCAN})
    assert predict("scans")[::2] == (0, "")


def test_the_error_for_a_folder_without_a_picture_lists_its_contents(predict, tmp_path):
    (tmp_path / "scans").mkdir()
    fill(tmp_path / "scans", **{"a.avi": b"", "b.avi": b""})
    code, out, err = predict("scans")
    assert (code, out) == (1, "")
    assert "no scans in it. 2 files skipped: .avi (a.avi, b.avi). Scans end in .jpg" in err
    assert len(err.splitlines()) == 1


@posix
@pytest.mark.parametrize("form", ["scans", "scans/*", "-r"])
def test_pipes_sockets_and_devices_in_a_folder_are_never_opened(predict, tmp_path, form):
    scans = tmp_path / "scans"
    scans.mkdir()
    fill(scans, **{"a.jpg": SCAN, "c.jpg": SCAN})
    os.mkfifo(scans / "b.jpg")
    (scans / "zero.png").symlink_to("/dev/zero")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(scans / "s.png"))
        code, out, err = predict(*(["scans", "-r"] if form == "-r" else [form]), "--json")
    assert code == 0
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["a.jpg", "c.jpg"]
    [line] = err.splitlines()
    assert "3 files skipped: 1 pipe (b.jpg), 1 socket (s.png), 1 device (zero.png)" in line


@posix
def test_a_pipe_that_is_named_is_read(predict, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    sender = threading.Thread(target=lambda: (tmp_path / "pipe.jpg").write_bytes(SCAN))
    sender.start()
    code, out, _ = predict("pipe.jpg", "--json")
    sender.join()
    assert (code, json.loads(out)["file"]) == (0, "pipe.jpg")


@pytest.fixture
def short_wait(monkeypatch):
    """Wait a tenth of a second for data from a pipe or a terminal."""
    assert files._WAIT_S <= 10
    monkeypatch.setattr(files, "_WAIT_S", 0.1)


@posix
def test_a_pipe_without_a_writer_is_given_up(tiny_bundle, tmp_path, capfd, short_wait):
    pipe, scan = tmp_path / "pipe.jpg", tmp_path / "a.jpg"
    os.mkfifo(pipe)
    scan.write_bytes(SCAN)
    assert run(["predict", "--model", str(tiny_bundle), str(pipe), str(scan), "--json"]) == 1
    failure, answer = map(json.loads, capfd.readouterr().out.splitlines())
    assert failure["code"] == "not_a_file"
    assert "no data arrived on this pipe" in failure["error"]
    assert "label" in answer


@posix
@pytest.mark.parametrize("place", ["/dev/stdin", "/dev/fd/0", "<(cat a.jpg)"])
def test_streams_that_the_shell_opened_are_read(tiny_bundle, tmp_path, place):
    if not Path("/bin/bash").exists():
        pytest.skip("needs bash")
    fill(tmp_path, **{"a.jpg": SCAN})
    program = f'(sleep 1; cat a.jpg) | "{PROGRAM}" predict --model "{tiny_bundle}" --json {place}'
    done = subprocess.run(["/bin/bash", "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert b"label" in done.stdout


@posix
def test_a_socket_is_not_a_picture(predict, tmp_path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(tmp_path / "s.jpg"))
        code, out, err = predict("s.jpg", "--json")
    assert (code, json.loads(out)["code"]) == (1, "not_a_file")
    assert err == "mri-edge: s.jpg: is a socket, not a picture\n"


@posix
def test_a_terminal_that_is_named_is_given_up(tiny_bundle, capfd, short_wait):
    screen, end = os.openpty()
    code = run(["predict", "--model", str(tiny_bundle), os.ttyname(end), "--json"])
    os.close(screen)
    os.close(end)
    failure = json.loads(capfd.readouterr().out)
    assert (code, failure["code"]) == (1, "not_a_file")
    assert "no data arrived on this device" in failure["error"]


# --- cells


FORMULAS = [
    *("=HYPERLINK(1).jpg", "+1.jpg", "-1.jpg", "@SUM(1).jpg", "\tx.jpg", "\rx.jpg", "\nx.jpg", "＝1.jpg", "＋1.jpg"),
    *("'=1.jpg", "'plain.jpg", "plain.jpg", "a=b.jpg"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="such names are POSIX")
def test_no_cell_is_a_formula_and_every_name_can_be_restored(predict, tmp_path):
    fill(tmp_path, **dict.fromkeys(FORMULAS, SCAN))
    (tmp_path / "=bad.jpg").write_text("no picture")
    code, out, _ = predict("--csv", "--", *FORMULAS, "=bad.jpg", "=missing.jpg")
    assert code == 1
    rows = list(csv.reader(io.StringIO(out, newline="")))
    cells = [cell for row in rows for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋"))] == []
    names = [row[0] for row in rows[1:]]
    assert [name.removeprefix("'") for name in names] == [*FORMULAS, "=bad.jpg", "=missing.jpg"]
    assert names[-3] == "a=b.jpg"
    assert [row[-2][:6] for row in rows[-2:]] == ["'=bad.", "'=miss"], "messages begin with the file's name"


def test_labels_are_cells_too(tiny_bundle, tmp_path, capfd):
    from dataclasses import replace

    from mri_edge.authoring.writer import rewrite_bundle
    from mri_edge.bundles.bundle import Bundle

    fill(tmp_path, **{"a.jpg": SCAN})
    bundle = Bundle.open(tiny_bundle)
    training = replace(bundle.manifest.training, classes={"=1+1": ["no"], "@yes": ["yes"]})
    with rewrite_bundle(bundle) as writer:
        writer.update(labels=("=1+1", "@yes"), training=training)
    assert run(["predict", "--model", str(tiny_bundle), "--csv", str(tmp_path / "a.jpg")]) == 0
    _, row = csv.reader(io.StringIO(capfd.readouterr().out))
    assert row[1] in ("'=1+1", "'@yes")


# --- control characters


CONTROL = ["a\x1b[31m.jpg", "b\x9b31m.jpg", "c\x07.jpg", "d\u202egpj.jpg", "e\nmri-edge: all well.jpg", "f\r.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="such names are POSIX")
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"], ["--resume", "out.jsonl"]], ids=" ".join)
def test_no_name_reaches_the_terminal_as_a_command(tiny_bundle, tmp_path, form):
    fill(tmp_path, **dict.fromkeys(CONTROL[::2], SCAN), **dict.fromkeys(CONTROL[1::2], b"no picture"))
    screen, end = os.openpty()
    command = [PROGRAM, "predict", "--model", tiny_bundle, *form, ".", "missing\x1b[1m.jpg"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=end, stderr=end, env=environment)
    os.close(end)
    shown = b"".join(_pieces(screen)).decode()
    os.close(screen)
    assert process.wait() == 1
    assert [letter for letter in shown if not letter.isprintable() and letter not in "\r\n"] == []
    assert not any(line.startswith("mri-edge: all well") for line in shown.splitlines())
    if form == ["--json"]:
        names = {json.loads(line)["file"] for line in shown.splitlines() if line.startswith("{")}
        assert names == {f"./{name}" for name in CONTROL} | {"missing\x1b[1m.jpg"}


def _pieces(screen: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # Linux reports the closed terminal as an error
        while piece := os.read(screen, 4096):
            yield piece


@pytest.mark.skipif(sys.platform == "win32", reason="such names are POSIX")
@pytest.mark.parametrize(
    "command",
    [
        ["info", "b\x9b31m\x07"],
        ["predict", "x.jpg", "-v", "--model", "b\x9b31m\x07"],
        ["predict", "--model", "\x9b31m\x07none", "x.jpg"],
        ["predict", "--engine", "\x9b31m\x07", "x.jpg"],
        ["predict", "--threads", "\x9b31m\x07", "x.jpg"],
        ["\x9b31m\x07"],
        ["b\x9b31m\x07"],
        ["watch", "i\x9b31m\x07\nn", "--out", "o\x9b31m\x07", "--once", "--settle", "0", "--model", "b\x9b31m\x07"],
    ],
    ids=lambda words: words[0].strip("\x9b31m\x07") or "no command",
)
def test_no_name_of_a_bundle_or_an_option_acts_on_the_terminal(tiny_bundle, tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    tiny_bundle.rename("b\x9b31m\x07")
    Path("i\x9b31m\x07\nn").mkdir()
    fill(tmp_path, **{"x.jpg": SCAN})
    fill(tmp_path / "i\x9b31m\x07\nn", **{"a\x9b31m\x07.jpg": SCAN, "b\x9b31m\x07.txt": b""})
    run(command)
    out, err = capfd.readouterr()
    assert out + err
    # click removes color codes from output that is not to a terminal, so these are other codes.
    assert [letter for letter in out + err if not letter.isprintable() and letter != "\n"] == []


# --- an interrupted run


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("resume", [False, True])
def test_ctrl_c_prints_how_to_continue(tiny_bundle, tmp_path, resume):
    command = [PROGRAM, "predict", "-", "--json", "--model", tiny_bundle]
    if resume:
        command = [PROGRAM, "predict", "-", "--resume", tmp_path / "out.jsonl", "--model", tiny_bundle]
    fill(tmp_path, **{"a.jpg": SCAN})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(f"{tmp_path / 'a.jpg'}\n".encode())
        process.stdin.flush()
        if resume:
            while not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes():
                time.sleep(0.01)
        else:
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        assert process.wait() == 130
    assert len(err.splitlines()) == 1
    assert ("Run the same command again to continue" if resume else "With --resume FILE") in err
