"""`predict --heatmap`: a picture a scan, in the scan's own subfolder, or a clear no."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from mri_edge.bundle import Bundle
from mri_edge.cli import run
from mri_edge.writing import rewriting
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def explaining_bundle(tiny_bundle: Path) -> Path:
    """The tiny bundle with an artefact that gives the activation too."""
    onnx = pytest.importorskip("onnx", reason="the artefact is built with onnx (extra 'dev')")
    explanation = pytest.importorskip("mri_edge.export.explanation")
    bundle = Bundle.open(tiny_bundle)
    [artefact] = bundle.manifest.artefacts
    model = explanation.explained(onnx.load(tiny_bundle / artefact.file), positive=1)
    with rewriting(bundle) as writer:
        writer.path(artefact.file).write_bytes(model.SerializeToString())
        writer.add_artefact(artefact)
    return tiny_bundle


def test_overlays_keep_the_subfolders_of_their_scans(explaining_bundle, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path("scans", folder).mkdir(parents=True)
        Path("scans", folder, "x.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    Path("scans", "broken.jpg").write_text("no picture")
    assert run(["predict", "scans", "-r", "--heatmap", "why", "--model", str(explaining_bundle)]) == 1
    capfd.readouterr()
    pictures = sorted(str(path.relative_to("why")) for path in Path("why").rglob("*.png"))
    assert pictures == ["scans/a/x.jpg.png", "scans/b/x.jpg.png"]
    page = np.asarray(Image.open("why/scans/a/x.jpg.png"))
    assert page.shape[2] == 3
    assert page.shape[0] > 384, "the scan, and words below it"
    assert np.ptp(page.astype(int), axis=2).max() > 60, "the heat is drawn in colour on the grey scan"


def test_a_thin_scan_is_not_enlarged_beyond_memory(explaining_bundle, tmp_path, capfd):
    Image.fromarray(np.full((2, 5000), 90, np.uint8)).save(tmp_path / "thin.png")
    scan, model = str(tmp_path / "thin.png"), str(explaining_bundle)
    assert run(["predict", scan, "--heatmap", str(tmp_path), "--model", model]) == 0
    capfd.readouterr()
    [picture] = tmp_path.rglob("thin.png.png")
    assert Image.open(picture).width == 5000


def test_two_scans_never_share_a_picture(explaining_bundle, tmp_path, monkeypatch, capfd):
    here = tmp_path / "sub"
    names = ["../x.jpg", "x.jpg", "_up/x.jpg", "__up/x.jpg", str(tmp_path / "x.jpg"), f"_root{tmp_path}/x.jpg"]
    for name in names:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    monkeypatch.chdir(here)
    assert run(["predict", *names, "--heatmap", "../why", "--model", str(explaining_bundle)]) == 0
    capfd.readouterr()
    absolute = tmp_path.relative_to("/").as_posix()
    assert sorted(path.relative_to("../why").as_posix() for path in Path("../why").rglob("*.png")) == sorted(
        [
            *("x.jpg.png", "_up/x.jpg.png", "__up/x.jpg.png", "___up/x.jpg.png"),
            *(f"{root}/{absolute}/x.jpg.png" for root in ("_root", "__root")),
        ]
    )


def test_scan_that_can_be_read_once_alone_is_drawn_too(explaining_bundle, tmp_path, monkeypatch, capfd):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    sender = threading.Thread(target=lambda: Path("pipe.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes()))
    sender.start()
    assert run(["predict", "pipe.jpg", "--heatmap", "why", "--model", str(explaining_bundle)]) == 0
    sender.join()
    assert Path("why/pipe.jpg.png").is_file()


def test_artefact_without_activation_says_which_one_to_take(tiny_bundle, tmp_path, capfd):
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path / "why"), "--model", str(tiny_bundle)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "no class activation" in err
    assert not (tmp_path / "why").exists()


def test_unwritable_folder_is_said(explaining_bundle, tmp_path, capfd):
    (tmp_path / "file").touch()
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path / "file" / "why"), "--model", str(explaining_bundle)]) == 6
    assert "cannot make this folder" in capfd.readouterr().err
