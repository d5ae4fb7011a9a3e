"""The options of `mri-edge node`: what is refused before anything is opened, and the status."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from mri_edge.cli import run
from mri_edge.commands.services import node
from mri_edge.services.dicom.spool import Spool

pytest.importorskip("pynetdicom", reason="needs the extra node")
pytest.importorskip("highdicom", reason="needs the extra node")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--bind", "192.0.2.1"], "--bind 192.0.2.1 needs --allow"),
        (["--allow", "SCANNER"], "--allow takes an AE title, @, and an IP address"),
        (["--send-to", "PACS"], "--send-to takes AET@HOST:PORT"),
        (["--aet", "a title that is too long"], "an AE title has 1 to 16"),
        (["--as", "pdf"], "--as must be sr, sc"),
        (["--commit"], "--commit is for archives"),
        (["--commit", "--send-to", "https://pacs.example/dicom-web"], "--commit is for archives"),
        (
            ["--commit", "--send-to", "PACS@192.0.2.1:104", "--allow", "SCANNER@192.0.2.2"],
            "--allow does not name it. Add --allow PACS@ADDRESS",
        ),
        (
            ["--commit", "--send-to", "PACS@192.0.2.1:104"],
            "--allow does not name it. Add --allow PACS@ADDRESS",
        ),
        (["--tls-ca", __file__], "--tls-ca needs --tls-cert and --tls-key"),
        (["--tls-ca", __file__, "--send-to", "PACS@192.0.2.1:104"], "--tls-ca needs --tls-cert and --tls-key"),
        (["--json"], "--json is for --status"),
        (["--model", "vgg16", "--tls-cert", __file__], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", __file__, "--tls-key", __file__], "cannot be used"),
        (["--status"], "is not the spool of a node"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(
    arguments: list[str], problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "spool"
    assert run(["node", "--spool", str(spool), "--port", "0", "--model", "small", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1
    assert not spool.exists()


def test_a_missing_extra_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> Any:
        return None if name == "pynetdicom" else util.find_spec(name)

    monkeypatch.setattr(node, "find_spec", find)
    assert run(["node", "--spool", str(tmp_path / "spool")]) == 2
    assert "pip install 'mri-edge[node]'" in capfd.readouterr().err


def test_a_port_or_a_spool_that_is_taken_ends_the_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    from mri_edge.storage.lock import locked

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["node", "--spool", str(tmp_path / "spool"), "--model", "small", "--port", port]) == 2
    assert "cannot listen" in capfd.readouterr().err
    with locked(tmp_path / "spool"):
        assert run(["node", "--spool", str(tmp_path / "spool"), "--model", "small", "--port", "0"]) == 2
    assert "another mri-edge uses this folder" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(["node", "--spool", str(tmp_path / "file" / "spool"), "--model", "small", "--port", "0"]) == 6


def test_the_status_of_a_node_that_does_not_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Spool(tmp_path).make()
    assert run(["node", "--status", "--spool", str(tmp_path)]) == 0
    out, _ = capfd.readouterr()
    assert "unknown, not running" in out
    assert "outbox       0 results" in out
    assert run(["node", "--status", "--json", "--spool", str(tmp_path)]) == 0
    assert json.loads(capfd.readouterr().out)["running"] is False


def test_the_help_imports_no_network_library() -> None:
    program = "import sys; from mri_edge.cli import run; run(['node', '--help']); print({'pynetdicom', 'pydicom', "
    program += "'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
