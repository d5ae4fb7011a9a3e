"""`mri-edge verify` and `mri-edge bundle record`: text, JSON and exit codes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.inference import replay

DEMO = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def recorded(tiny_bundle, capfd) -> Path:
    assert run(["bundle", "record", str(tiny_bundle), str(DEMO / "phantom-1.jpg"), str(DEMO / "phantom-2.jpg")]) == 0
    assert "2 scans recorded" in capfd.readouterr().out
    return tiny_bundle


def test_a_good_bundle_exits_0_and_lists_what_was_compared(recorded, capfd):
    assert run(["verify", str(recorded)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "This device's CPU reproduces the recorded results." in out
    for stage in ("hashes", "pixels", "tensor", "probabilities", "label"):
        assert stage in out


def test_json_has_every_comparison(recorded, capfd):
    assert run(["verify", str(recorded), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["agrees"] is True
    assert found["first_difference"] is None
    assert found["replayed"] >= 1
    assert {check["stage"] for check in found["checks"]} == {"hashes", "pixels", "tensor", "probabilities", "label"}


def test_verify_writes_no_temporary_file(recorded, capfd, monkeypatch, tmp_path):
    # As in a container whose file system is read-only.
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        assert run(["verify", str(recorded)]) == 0
        assert run(["verify"]) == 0
    assert capfd.readouterr().err == ""


def test_a_bundle_without_golden_values_is_reported(tiny_bundle, capfd):
    assert run(["verify", str(tiny_bundle)]) == 0
    assert "no golden values" in capfd.readouterr().out


def test_slim_counts_the_golden_values_in_the_size(recorded, tmp_path, capfd):
    with rewrite_bundle(Bundle.open(recorded)) as writer:
        writer.add_document("golden/large", bytes(2_000_000))
    assert run(["bundle", "slim", str(recorded), "--artifact", "model.onnx", "--out", str(tmp_path / "slim")]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "slim").rglob("*") if path.is_file())
    assert size > 2_000_000
    assert f"({size / 1e6:.1f} MB)" in capfd.readouterr().out


def test_verify_exits_4_if_no_engine_can_replay(recorded, capfd, monkeypatch):
    for module in replay.engine_files().values():
        monkeypatch.setattr(module, "missing", lambda: "not installed")
    assert run(["verify", str(recorded)]) == 4
    out = capfd.readouterr().out
    assert "This device gives" not in out
    assert "NOT REPLAYED" in out
    assert run(["verify", str(recorded), "--json"]) == 4
    found = json.loads(capfd.readouterr().out)
    assert (found["agrees"], found["first_difference"], found["replayed"]) == (False, None, 0)


def test_a_difference_exits_3_and_is_named(recorded, capfd, monkeypatch):
    compute = replay.probabilities_of
    monkeypatch.setattr(replay, "probabilities_of", lambda *arguments: compute(*arguments)[:, ::-1])
    assert run(["verify", str(recorded)]) == 3
    assert "FIRST DIFFERENCE  probabilities, model.onnx in onnxruntime" in capfd.readouterr().out
    assert run(["verify", str(recorded), "--json"]) == 3
    found = json.loads(capfd.readouterr().out)
    assert found["agrees"] is False
    assert found["first_difference"]["stage"] == "probabilities"


def test_a_changed_file_exits_3(recorded, capfd):
    scan = recorded / "golden" / "phantom-1.jpg"
    content = bytearray(scan.read_bytes())
    content[500] ^= 1
    scan.write_bytes(content)
    assert run(["verify", str(recorded)]) == 3
    assert "FIRST DIFFERENCE  hashes, golden/phantom-1.jpg" in capfd.readouterr().out


def test_scans_without_a_notice_do_not_travel(tiny_bundle, tmp_path, capfd):
    scan = tmp_path / "scan.jpg"
    scan.write_bytes((DEMO / "phantom-1.jpg").read_bytes())
    assert run(["bundle", "record", str(tiny_bundle), str(scan)]) == 2
    assert "--notice" in capfd.readouterr().err
    (tmp_path / "mine.txt").write_text("Mine; anyone may have them.")
    assert run(["bundle", "record", str(tiny_bundle), str(scan), "--notice", str(tmp_path / "mine.txt")]) == 0
    assert (tiny_bundle / "golden" / "NOTICE").read_text() == "Mine; anyone may have them."


def test_a_provider_that_does_not_start_exits_4_with_the_reason(recorded, capfd):
    assert run(["verify", str(recorded), "--provider", "directml"]) == 4
    out = capfd.readouterr().out
    assert "provider 'directml'" in out
    assert "NOT REPLAYED" in out


def test_a_named_provider_runs_the_artifacts_and_float32_may_differ_more(recorded, capfd, monkeypatch):
    opened, wanted = replay.open_engine, []

    def on_cpu(*arguments, provider, **options):
        wanted.append(provider)
        return opened(*arguments, provider="cpu", **options)

    compute = replay.probabilities_of
    monkeypatch.setattr(replay, "open_engine", on_cpu)
    monkeypatch.setattr(replay, "probabilities_of", lambda *arguments: compute(*arguments) + np.float32(1e-3))
    assert run(["verify", str(recorded), "--provider", "cuda"]) == 0
    assert "The provider cuda reproduces the recorded results." in capfd.readouterr().out
    assert set(wanted) == {"cuda"}
    assert run(["verify", str(recorded)]) == 3
