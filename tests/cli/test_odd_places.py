"""`mri-edge predict` as a real process with undecodable names, full disks and closed streams."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SCAN = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"
PROGRAM = Path(sys.executable).with_name("mri-edge")
# A line feed, a byte that is no UTF-8, what colours a terminal, a quote and a comma.
NAMES = (b"new\nline.jpg", b"bad\xff.jpg", b"\x1b[31mred.jpg", b'a,"b.jpg')

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="such names and streams are POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in NAMES:
        try:
            (folder / os.fsdecode(name)).write_bytes(SCAN.read_bytes())
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
    return folder


def _predict(
    bundle: Path, *arguments: object, prefix: Sequence[str] = (), **options: object
) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"LC_ALL": "C.UTF-8"}  # strict: elsewhere Python lets odd bytes through
    command = [*prefix, PROGRAM, "predict", "--model", bundle, *arguments]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
    return subprocess.run(command, check=False, **settings)


def test_table_has_one_line_for_every_name(tiny_bundle, folder):
    done = _predict(tiny_bundle, folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode().splitlines()) == 2 + len(NAMES) + 1
    for shown in ("new\\nline.jpg", "bad\\udcff.jpg", "\\x1b[31mred.jpg"):
        assert shown in done.stdout.decode()


def test_csv_can_be_read_back(tiny_bundle, folder):
    done = _predict(tiny_bundle, folder, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert [Path(row["file"]).name for row in rows] == sorted(
        os.fsdecode(name).replace("\udcff", "\\udcff") for name in NAMES
    )
    assert all(row["label"] for row in rows)


def test_json_names_can_be_opened_again(tiny_bundle, folder):
    done = _predict(tiny_bundle, folder, "--json")
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert {os.fsencode(Path(row["file"]).name) for row in rows} == set(NAMES)
    assert all(Path(row["file"]).is_file() for row in rows)


def test_resume_knows_odd_names_again(tiny_bundle, folder, tmp_path):
    journal = tmp_path / "out.jsonl"
    for _ in range(2):
        assert _predict(tiny_bundle, folder, "--resume", journal).returncode == 0
    assert len(journal.read_text().splitlines()) == len(NAMES)


def test_list_on_stdin_may_hold_any_bytes(tiny_bundle, folder):
    names = [os.fsencode(folder / os.fsdecode(name)) for name in NAMES if b"\n" not in name]
    done = _predict(tiny_bundle, "-", "--json", input=b"\n".join([*names, b"a\0b.jpg"]))
    assert done.returncode == 1
    assert [b'"label"' in line for line in done.stdout.splitlines()] == [True, True, True, False]
    assert len(done.stderr.splitlines()) == 1
    assert b"Traceback" not in done.stderr


def test_an_unreadable_folder_does_not_affect_other_scans(tiny_bundle, tmp_path, as_user):
    for name in ("a/1.jpg", "b/1.jpg", "c/1.jpg"):
        (tmp_path / "all" / name).parent.mkdir(parents=True)
        (tmp_path / "all" / name).write_bytes(SCAN.read_bytes())
    (tmp_path / "all" / "a" / "0.jpg").symlink_to("0.jpg")  # a link to itself
    (tmp_path / "all" / "b").chmod(0)
    done = _predict(tiny_bundle, "all", "-r", "--json", cwd=tmp_path, prefix=as_user)
    (tmp_path / "all" / "b").chmod(0o700)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [(row["file"], "label" in row) for row in rows] == [
        *(("all/a/0.jpg", False), ("all/a/1.jpg", True), ("all/b", False), ("all/c/1.jpg", True))
    ]
    words = done.stderr.decode().splitlines()
    assert [line.split(": ", 1)[1].partition(" (")[0] for line in words] == [
        *("all/a/0.jpg: cannot read", "all/b: cannot list the folder")
    ]


LONG = "x" * 300
BARRED = {
    "predict": (["predict", "barred/1.jpg"], 1),
    "predict a long name": (["predict", LONG], 1),
    "predict --resume": (["predict", SCAN, "--resume", "barred/r.jsonl"], 6),
    "info": (["info", "barred/bundle"], 3),
    "info of a long name": (["info", LONG], 3),
    "watch": (["watch", "barred/in", "--out", "out", "--once"], 2),
    "watch into": (["watch", "barred", "--out", "out", "--once"], 2),
    "bundle pack": (["bundle", "pack", "small", "--out", "barred/small.mribundle"], 6),
    "bundle pack to a long name": (["bundle", "pack", "small", "--out", LONG], 6),
    "bundle unpack": (["bundle", "unpack", "barred/small.mribundle", "--out", "out"], 3),
    "bundle unpack into": (["bundle", "unpack", "none.mribundle", "--out", "barred"], 2),
    "bundle slim": (["bundle", "slim", "small", "--artifact", "int8.onnx", "--out", "barred/device"], 6),
    "bundle record": (["bundle", "record", "small", "barred/1.jpg"], 2),
}


def test_folders_without_permission_are_reported_in_one_line(tmp_path, as_user):
    (tmp_path / "barred").mkdir(mode=0)
    program = """
import json, sys
from mri_edge.cli import run
for name, (arguments, _) in json.load(sys.stdin).items():
    print(name, file=sys.stderr)
    print(json.dumps([name, run(arguments)]), flush=True)
"""
    done = subprocess.run(
        [*as_user, sys.executable, "-c", program],
        cwd=tmp_path,
        input=json.dumps(BARRED, default=str),
        capture_output=True,
        text=True,
        check=False,
    )
    codes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert codes == [[name, code] for name, (_, code) in BARRED.items()], done.stderr
    assert len([line for line in done.stderr.splitlines() if line not in BARRED]) == len(BARRED)


@pytest.mark.parametrize("home", [None, "barred"])
def test_without_a_home_folder_there_is_no_profile(tiny_bundle, tmp_path, as_user, home):
    (tmp_path / "barred").mkdir(mode=0)
    if home is None:  # a number without an account, as containers have it: nobody knows its home
        program = "import os, pwd, sys; pwd.getpwuid = lambda uid: pwd.getpwnam('no such account')"
    else:
        program = "import sys"
    program += "; from mri_edge.cli import run; sys.exit(run(sys.argv[1:]))"
    named = {"HOME", "XDG_CACHE_HOME", "MRI_EDGE_PROFILE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in named}
    environment |= {} if home is None else {"HOME": str(tmp_path / home)}
    command = [*as_user, sys.executable, "-c", program, "predict", SCAN, "--model", tiny_bundle]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_scans_of_a_slow_list_are_answered_as_they_arrive(tiny_bundle, tmp_path, form):
    """A user who names one scan and waits gets its answer, however large the batch is."""
    command = [PROGRAM, "predict", "-", form, "--model", tiny_bundle]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for number in range(3):
            process.stdin.write(f"{SCAN}\n".encode())
            process.stdin.flush()
            if form == "--csv" and number == 0:
                assert process.stdout.readline().startswith(b"file,")
            assert SCAN.name.encode() in process.stdout.readline()
        process.stdin.write(f"{tmp_path / 'missing.jpg'}".encode())  # a last line without its end
        process.stdin.close()
        assert b"missing.jpg" in process.stderr.read()
        assert process.wait() == 1


@pytest.mark.parametrize("scans", [["-"], [SCAN, SCAN.parent, "missing.jpg"]], ids=["a slow list", "files"])
def test_results_go_to_the_pipe_beside_a_progress_bar_on_the_screen(tiny_bundle, scans):
    screen, end = os.openpty()
    command = [PROGRAM, "predict", *scans, "--json", "--model", tiny_bundle]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=end) as process:
        os.close(end)
        drawn: list[bytes] = []
        reader = threading.Thread(target=lambda: drawn.extend(_pieces(screen)))
        reader.start()
        if scans == ["-"]:
            process.stdin.write(f"{SCAN}\n".encode())
            process.stdin.flush()
        assert json.loads(process.stdout.readline())["file"] == str(SCAN)
        process.stdin.close()
        rest = process.stdout.read().splitlines()
        assert process.wait() == (0 if scans == ["-"] else 1)
        reader.join()
    os.close(screen)
    assert len(rest) == (0 if scans == ["-"] else 1 + len(list(SCAN.parent.glob("*.jpg"))))
    seen = b"".join(drawn)
    assert b"predict" in seen
    assert b'"label"' not in seen
    assert (b"missing.jpg" in seen) == (scans != ["-"])


def _pieces(screen: int) -> Iterator[bytes]:
    """Return what is written to a terminal until its last writer closes it, which Linux reports as an error."""
    with contextlib.suppress(OSError):
        while piece := os.read(screen, 4096):
            yield piece


def test_names_in_pieces_are_put_together(tiny_bundle):
    command = [PROGRAM, "predict", "-", "--json", "--model", tiny_bundle]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for piece in (str(SCAN)[:5], str(SCAN)[5:], f"\r\n{SCAN}\n\n"):
            process.stdin.write(piece.encode())
            process.stdin.flush()
            time.sleep(0.1)  # longer than the program waits for the rest
        process.stdin.close()
        answers = [json.loads(line) for line in process.stdout]
        assert process.wait() == 0
    assert [answer["file"] for answer in answers] == [str(SCAN)] * 2


@pytest.mark.parametrize("command", [["predict", str(SCAN), "--json"], ["predict", str(SCAN)], ["--help"], ["info"]])
def test_a_full_disk_is_reported_in_one_line(command):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, *command], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    assert b"cannot write the output" in done.stderr


def test_journal_that_cannot_be_read_again_is_refused(tiny_bundle):
    done = _predict(tiny_bundle, SCAN, "--resume", "/dev/full")
    assert done.returncode == 2
    assert b"not a regular file" in done.stderr
