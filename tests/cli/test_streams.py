"""Every command reports closed standard streams and broken pipes by its exit code."""

from __future__ import annotations

import json
import os
import pstats
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("mri-edge")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCAN = str(EXAMPLES / "phantom-1.jpg")
PRINTING = [
    ["predict", SCAN],
    ["predict", SCAN, "--json"],
    ["predict", SCAN, "--csv"],
    ["info"],
    ["info", "--json"],
    ["doctor", "--model", "small"],
    ["verify", "small"],
    ["completion", "bash"],
    ["warmup", "--model", "small", "--batch", "1"],
    ["tune", "--model", "small", "--seconds", "0.01", "--batch", "1"],
    ["bench", "small", "--engine", "onnxruntime", "--artifact", "model.int8.onnx", "--scans", SCAN],
    ["--help"],
    ["predict", "--help"],
    ["--version"],
]
PRINTING = [pytest.param(command, id=" ".join(command).replace(SCAN, "SCAN")) for command in PRINTING]
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def shell(words: str, *command: object, **options) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which ``"$@"`` is the command."""
    arguments = ["sh", "-c", words, "sh", *map(str, command)]
    return subprocess.run(arguments, capture_output=True, check=False, timeout=120, **options)


@posix
@pytest.mark.parametrize("command", PRINTING)
def test_closed_stdout_is_an_error_before_the_work(command):
    done = shell('exec "$@" >&-', PROGRAM, *command)
    assert done.returncode == 6
    assert done.stderr.decode().splitlines() == [
        "mri-edge: error: standard output is closed. Write it to a file or to /dev/null"
    ]


@posix
def test_stdout_that_can_only_be_read_is_an_error():
    done = shell('exec "$@" 1</dev/null', PROGRAM, "predict", SCAN, "--json")
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    assert b"cannot write the output" in done.stderr


@pytest.mark.parametrize("command", PRINTING)
def test_a_closed_pipe_is_not_a_failed_input(command, tmp_path):
    """`mri-edge ... | head -1`: exit code 141, as for `cat`, and no error is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"MRI_EDGE_PROFILE_DIR": str(tmp_path)}
    try:
        done = subprocess.run(
            [PROGRAM, *command], stdout=writer, stderr=subprocess.PIPE, env=environment, check=False, timeout=120
        )
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert b"error" not in done.stderr
    assert b"Traceback" not in done.stderr


@posix
def test_head_ends_a_long_list():
    words = f'yes "{SCAN}" | head -5000 | {{ "$@"; echo "code $?" >&2; }} | head -1'
    done = shell(words, PROGRAM, "predict", "-", "--json", "--model", "small")
    assert json.loads(done.stdout)["file"] == SCAN
    assert done.stderr == b"code 141\n"


@posix
@pytest.mark.parametrize("by", ["slice", "series"])
def test_a_scan_in_place_of_a_list_is_not_quoted(by, tmp_path):
    """`cat scan.dcm | mri-edge predict -`: the header names the patient."""
    scan = bytes(128) + b"DICM\x10\0\x10\0PN\x08\0Zyx\nOne\n" + SCAN.encode() + b"\n"
    (tmp_path / "scan").write_bytes(scan)
    done = shell('exec "$@" < ' + str(tmp_path / "scan"), PROGRAM, "predict", "-", "--by", by, "--model", "small")
    assert done.returncode == 1
    assert b"standard input holds binary data, not paths" in done.stderr
    assert b"Zyx" not in done.stderr + done.stdout
    assert b"One" not in done.stderr + done.stdout


@posix
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    words = "ulimit -v 2000000; { echo " + SCAN + '; head -c 4000000000 /dev/zero | tr "\\0" a; } | "$@"'
    done = shell(words, PROGRAM, "predict", "-", "--json", "--model", "small")
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[0]["file"] == SCAN
    assert "a line of more than 65,536 bytes, not paths" in found[1]["error"]
    assert len(done.stderr) < 1000


@posix
def test_closed_stderr_loses_no_result(tmp_path):
    done = shell('exec "$@" 2>&-', PROGRAM, "predict", "--json", SCAN, tmp_path / "missing.jpg")
    assert done.returncode == 1
    assert ["label" in json.loads(line) for line in done.stdout.splitlines()] == [True, False]


@posix
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    """An engine in C++ writes to file descriptor 2, and would write into a journal opened under that number."""
    program = "import sys; from mri_edge import cli; cli._fill_closed_streams(); print(open(sys.argv[1], 'w').fileno())"
    done = shell('exec "$@" <&- 2>&-', sys.executable, "-c", program, tmp_path / "journal.jsonl")
    assert int(done.stdout) > 2


@posix
@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_closed_stdin_names_no_scan(closed):
    done = shell(f'exec "$@" {closed}', PROGRAM, "predict", "-", "--json")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


@posix
def test_closed_stdin_matters_to_nobody_who_does_not_read_it():
    assert shell('exec "$@" <&-', PROGRAM, "predict", SCAN).returncode == 0


def test_a_profiler_writes_what_it_measured(tmp_path):
    profile = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "mri_edge", "predict", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: mri-edge predict" in done.stdout
    assert any(name == "run" and file.endswith("cli.py") for file, _, name in pstats.Stats(str(profile)).stats)
