"""Commands open no connection and leave no files behind with any engine, as strace sees it, in a new home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from mri_edge.engines import engine_file, offered

RECORD = Path(__file__).resolve().parents[1] / "hostile" / "network_record.py"
SPEC = spec_from_file_location("network_record", RECORD)
record = module_from_spec(SPEC)
sys.modules["network_record"] = record
SPEC.loader.exec_module(record)


@pytest.fixture
def trace(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("no strace, which sees what libraries do by themselves (apt-get install strace)")

    def call(*command: str) -> record.Finding:
        try:
            return record.trace(list(command), tmp_path)
        except PermissionError as error:
            pytest.skip(f"no process may be traced here: {error}")

    return call


@pytest.mark.parametrize("engine", ["-", *offered()])
def test_commands_open_no_connection_and_write_only_where_requested(engine, trace, tmp_path):
    if engine != "-" and (reason := engine_file(engine).missing()):
        pytest.skip(reason)
    chosen = [run for run in record.runs(tmp_path) if run.engine == engine]
    if not chosen:
        pytest.skip(f"the embedded model 'small' has no artifact for {engine}")
    for run in chosen:
        found = trace(str(record.PROGRAM), *run.arguments)
        assert found.code == 0, f"{run.name}: {found.errors}"
        assert found.calls == (), run.name
        assert found.files == (), run.name


@pytest.mark.parametrize(
    ("program", "calls"),
    [
        ("s.connect(('192.0.2.1', 9))", True),
        ("s.sendto(b'', ('192.0.2.1', 53))", True),
        ("s.sendto(b'', ('127.0.0.1', 53))", True),
        ("s.sendto(b'', ('127.0.0.1', 9999))", False),
    ],
)
def test_a_connection_would_be_detected(trace, program, calls):
    program = f"import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.setblocking(False); {program}"
    assert bool(trace(sys.executable, "-c", program).calls) == calls


def test_a_file_in_the_home_folder_would_be_detected(trace, tmp_path):
    program = "import os, threading; t = threading.Thread(target=lambda: open(os.environ['HOME'] + '/id', 'w'))"
    found = trace(sys.executable, "-c", f"{program}; t.start(); t.join(); os.mkdir(os.path.expanduser('~/stats'))")
    home = tmp_path / "home"
    assert found.files == (f"{home}/id", f"{home}/stats/")


@pytest.mark.parametrize("engine", offered())
def test_import_of_an_engines_library_opens_no_socket_and_leaves_no_file(engine, tmp_path):
    """Python's own view, for machines without strace and for processes that import only the library."""
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    program = """
import sys
sockets = []
sys.addaudithook(lambda event, _: sockets.append(event) if event.startswith("socket.") else None)
import mri_edge
from importlib import import_module
import_module(sys.argv[1])
import threading
[thread.join(5) for thread in threading.enumerate() if thread is not threading.main_thread()]
print(sockets)
"""
    environment = {name: value for name, value in os.environ.items() if name not in record.BUILD_SERVER}
    done = subprocess.run(
        [sys.executable, "-c", program, engine_file(engine).MODULE],
        env=environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []
