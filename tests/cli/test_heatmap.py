"""`predict --heatmap` writes one picture for each scan into one folder, or refuses with a message."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def explaining_bundle(tiny_bundle: Path) -> Path:
    """The tiny bundle with an artifact that gives the activation too."""
    onnx = pytest.importorskip("onnx", reason="the artifact is built with onnx (group 'dev')")
    explanation = pytest.importorskip("mri_edge.export.onnx.explanation")
    bundle = Bundle.open(tiny_bundle)
    [artifact] = bundle.manifest.artifacts
    model = explanation.with_explanation(onnx.load(tiny_bundle / artifact.file), label=1)
    with rewrite_bundle(bundle) as writer:
        writer.path(artifact.file).write_bytes(model.SerializeToString())
        writer.add_artifact(artifact)
    return tiny_bundle


def test_overlays_lie_flat_and_are_announced(explaining_bundle, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path("scans", folder).mkdir(parents=True)
        Path("scans", folder, "x.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    Path("scans", "broken.jpg").write_text("no picture")
    command = ["predict", "scans", "-r", "--heatmap", "why", "--model", str(explaining_bundle), "--json"]
    assert run(command) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1] == "mri-edge: 2 heatmaps written to why/"
    first, second = (json.loads(line) for line in out.splitlines() if "label" in line)
    assert (first["file"], first["heatmap"]) == ("scans/a/x.jpg", "why/x.jpg.png")
    assert second["file"] == "scans/b/x.jpg"
    assert re.fullmatch(r"why/x\.[0-9a-f]{12}\.jpg\.png", second["heatmap"])
    pictures = {str(path) for path in Path("why").rglob("*")}
    assert pictures == {first["heatmap"], second["heatmap"]}
    assert run(command) == 1  # the same pictures again, not more of them
    assert {str(path) for path in Path("why").rglob("*")} == pictures
    capfd.readouterr()
    page = np.asarray(Image.open("why/x.jpg.png"))
    assert page.shape[2] == 3
    assert page.shape[0] > 384, "the scan, and words below it"
    assert np.ptp(page.astype(int), axis=2).max() > 60, "the heat is drawn in colour on the grey scan"


def test_a_thin_scan_is_not_enlarged_beyond_memory(explaining_bundle, tmp_path, capfd):
    Image.fromarray(np.full((2, 5000), 90, np.uint8)).save(tmp_path / "thin.png")
    scan, model = str(tmp_path / "thin.png"), str(explaining_bundle)
    assert run(["predict", scan, "--heatmap", str(tmp_path), "--model", model]) == 0
    capfd.readouterr()
    assert Image.open(tmp_path / "thin.png.png").width == 5000


def test_two_scans_never_share_a_picture(explaining_bundle, tmp_path, monkeypatch, capfd):
    here = tmp_path / "sub"
    names = ["../x.jpg", "x.jpg", "_up/x.jpg", "__up/x.jpg", str(tmp_path / "x.jpg"), f"_root{tmp_path}/x.jpg"]
    for name in names:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    monkeypatch.chdir(here)
    command = ["predict", "--heatmap", "../why", "--model", str(explaining_bundle), "--json"]
    assert run([*command, *names]) == 0
    drawn = [json.loads(line)["heatmap"] for line in capfd.readouterr().out.splitlines()]
    # Six names, of five scans: ../x.jpg is the same file as the one that is named from the root.
    assert len(set(drawn)) == 5
    assert drawn[0] == drawn[4]
    assert {str(path) for path in Path("../why").rglob("*")} == set(drawn)
    # Nor in another run, in another order, from another folder.
    monkeypatch.chdir(tmp_path)
    command[2] = "why"
    assert run([*command, "sub/x.jpg", "x.jpg"]) == 0
    again = [json.loads(line)["heatmap"] for line in capfd.readouterr().out.splitlines()]
    assert [f"../{path}" for path in again] == [drawn[1], drawn[0]]


@pytest.mark.parametrize("content", [b"my notes", None], ids=["a file", "a picture"])
def test_a_foreign_file_is_not_overwritten(explaining_bundle, tmp_path, capfd, content):
    scan, mine = tmp_path / "x.jpg", tmp_path / "x.jpg.png"
    scan.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    if content is None:
        Image.new("L", (9, 9)).save(mine)
    else:
        mine.write_bytes(content)
    before = mine.read_bytes()
    assert run(["predict", str(scan), "--heatmap", str(tmp_path), "--model", str(explaining_bundle)]) == 0
    assert "1 heatmap written" in capfd.readouterr().err
    assert mine.read_bytes() == before
    assert len(list(tmp_path.glob("x.*.jpg.png"))) == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode without control characters")
@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "ü" * 120 + ".jpg", "a\nb.jpg", "\udce9.jpg"])
def test_odd_names(explaining_bundle, tmp_path, capfd, name):
    scan = tmp_path / name
    scan.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    why = tmp_path / "why"
    assert run(["predict", str(scan), "--heatmap", str(why), "--model", str(explaining_bundle), "--json"]) == 0
    [picture] = why.iterdir()
    assert json.loads(capfd.readouterr().out)["heatmap"] == str(picture)


def test_a_scan_that_can_be_read_only_once_gets_a_heatmap(explaining_bundle, tmp_path, monkeypatch, capfd):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    sender = threading.Thread(target=lambda: Path("pipe.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes()))
    sender.start()
    assert run(["predict", "pipe.jpg", "--heatmap", "why", "--model", str(explaining_bundle)]) == 0
    sender.join()
    assert Path("why/pipe.jpg.png").is_file()


def test_an_unwritable_folder_is_reported(explaining_bundle, tmp_path, capfd):
    (tmp_path / "file").touch()
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path / "file" / "why"), "--model", str(explaining_bundle)]) == 6
    assert "cannot make the folder" in capfd.readouterr().err
