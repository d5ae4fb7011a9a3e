"""`predict --heatmap` writes one picture for each scan into one folder, or refuses with a message."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST
from mri_edge.cli import run
from mri_edge.inference.classifier import Classifier

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_pictures_are_written_into_one_folder_and_counted(tiny_bundle, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path("scans", folder).mkdir(parents=True)
        Path("scans", folder, "x.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    Path("scans", "broken.jpg").write_text("no picture")
    command = ["predict", "scans", "-r", "--heatmap", "why", "--model", str(tiny_bundle), "--json"]
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
    with Image.open("why/x.jpg.png") as opened:
        assert opened.mode == "RGB"
        assert opened.width > 2 * 384
        assert opened.height > 384


def test_picture_of_a_very_wide_scan_is_bounded(tiny_bundle, tmp_path, capfd):
    Image.fromarray(np.full((2, 20_000), 90, np.uint8)).save(tmp_path / "thin.png")
    scan, model = str(tmp_path / "thin.png"), str(tiny_bundle)
    assert run(["predict", scan, "--heatmap", str(tmp_path), "--model", model]) == 0
    capfd.readouterr()
    with Image.open(tmp_path / "thin.png.png") as opened:
        assert opened.width < 2200
        assert opened.height < 800


def test_two_scans_never_share_a_picture(tiny_bundle, tmp_path, monkeypatch, capfd):
    here = tmp_path / "sub"
    names = ["../x.jpg", "x.jpg", "_up/x.jpg", "__up/x.jpg", str(tmp_path / "x.jpg"), f"_root{tmp_path}/x.jpg"]
    for name in names:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    monkeypatch.chdir(here)
    command = ["predict", "--heatmap", "../why", "--model", str(tiny_bundle), "--json"]
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


@pytest.mark.parametrize("by", ["slice", "series"])
def test_a_frame_and_a_file_of_its_name_share_no_picture(tiny_bundle, write_slices, tmp_path, capfd, by):
    volume, alike = write_slices("v.slices", 100, 200), tmp_path / "v.slices-1"
    alike.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    command = ["predict", str(volume), str(alike), "--by", by, "--heatmap", str(tmp_path / "why"), "--json"]
    assert run([*command, "--model", str(tiny_bundle)]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    pieces = [piece for record in records for piece in record.get("slices", [record])]
    assert len({piece["heatmap"] for piece in pieces}) == len(pieces) == 3


@pytest.mark.parametrize("content", [b"my notes", None], ids=["a file", "a picture"])
def test_a_foreign_file_is_not_overwritten(tiny_bundle, tmp_path, capfd, content):
    scan, mine = tmp_path / "x.jpg", tmp_path / "x.jpg.png"
    scan.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    if content is None:
        Image.new("L", (9, 9)).save(mine)
    else:
        mine.write_bytes(content)
    before = mine.read_bytes()
    assert run(["predict", str(scan), "--heatmap", str(tmp_path), "--model", str(tiny_bundle)]) == 0
    assert "1 heatmap written" in capfd.readouterr().err
    assert mine.read_bytes() == before
    assert len(list(tmp_path.glob("x.*.jpg.png"))) == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode without control characters")
@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "ü" * 120 + ".jpg", "a\nb.jpg", "\udce9.jpg", "x." + "y" * 253])
def test_odd_names(tiny_bundle, tmp_path, capfd, name):
    scan = tmp_path / name
    scan.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    why = tmp_path / "why"
    assert run(["predict", str(scan), "--heatmap", str(why), "--model", str(tiny_bundle), "--json"]) == 0
    [picture] = why.iterdir()
    assert json.loads(capfd.readouterr().out)["heatmap"] == str(picture)


def test_a_scan_that_can_be_read_only_once_gets_a_heatmap(tiny_bundle, tmp_path, monkeypatch, capfd):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    sender = threading.Thread(target=lambda: Path("pipe.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes()))
    sender.start()
    assert run(["predict", "pipe.jpg", "--heatmap", "why", "--model", str(tiny_bundle)]) == 0
    sender.join()
    assert Path("why/pipe.jpg.png").is_file()


@pytest.fixture
def set_score(heatmap_score):
    """Return a function that stores a score in the manifest, of the bundle's artifact or of the one with a hash."""

    def store(folder: Path, value: float, sha256: str | None = None) -> None:
        manifest = Bundle.open(folder).manifest
        score = heatmap_score(manifest.artifacts[0], value, sha256=sha256)
        (folder / MANIFEST).write_text(replace(manifest, heatmaps=score).to_json())

    return store


def test_an_artifact_with_a_low_score_is_refused_before_a_scan_is_read(set_score, tiny_bundle, tmp_path, capfd):
    set_score(tiny_bundle, 0.55)
    missing = str(tmp_path / "missing.jpg")
    assert run(["predict", missing, "--heatmap", str(tmp_path / "why"), "--model", str(tiny_bundle)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert (
        "point at the lesion in 0.55 (0.45 to 0.60) of drawn lesions that it called, at least 0.8 is required" in line
    )
    assert "missing.jpg" not in line
    assert not (tmp_path / "why").exists()
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--model", str(tiny_bundle)]) == 0, "without a heatmap the model is used"
    with Classifier.load(tiny_bundle) as classifier:
        assert classifier.predict(scan, explain=True).heatmap is not None, "only the picture is refused"


@pytest.mark.parametrize(
    ("value", "sha256", "quality"),
    [
        (0.95, None, "peak in the lesion: 0.95 (0.85 to 1.00) of drawn lesions that it called"),
        (0.55, "f" * 64, "not measured: mri-edge evaluate --heatmaps"),
    ],
    ids=["scored", "another artifact was scored"],
)
def test_the_caption_says_how_good_the_heatmaps_are(
    set_score, tiny_bundle, tmp_path, monkeypatch, value, sha256, quality
):
    set_score(tiny_bundle, value, sha256)
    texts: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def noted(pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, **options: object) -> None:
        texts.append(text)
        draw_text(pen, position, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path), "--model", str(tiny_bundle)]) == 0
    assert f"heatmaps of this artifact: {quality}" in texts


def test_a_bundle_without_a_score_is_drawn(tiny_bundle, tmp_path):
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path), "--model", str(tiny_bundle)]) == 0
    assert (tmp_path / "phantom-1.jpg.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("options", [["--heatmap", "why"], []], ids=["heatmap", "plain"])
def test_progress_of_a_single_scan_is_shown_on_a_terminal(tiny_bundle, tmp_path, options):
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "mri_edge", "predict", str(EXAMPLES / "phantom-1.jpg"), "--model"]
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(
        [*command, str(tiny_bundle), *options], stdout=follower, stderr=follower, cwd=tmp_path, env=environment
    )
    os.close(follower)
    shown = b""
    while piece := _read(leader):
        shown += piece
    os.close(leader)
    assert process.wait() == 0
    assert (b"0/1" in shown) == bool(options)
    assert b"phantom-1.jpg" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # on Linux, the end of the program
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_whole_pictures(tiny_bundle, tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(40):
        (tmp_path / "scans" / f"{number:02}.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    command = [sys.executable, "-m", "mri_edge", "predict", "scans", "--heatmap", "why", "--model", str(tiny_bundle)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("why/*.png"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    pictures = list((tmp_path / "why").iterdir())
    assert 2 <= len(pictures) < 40
    for picture in pictures:
        with Image.open(picture) as opened:
            opened.load()


def test_an_unwritable_folder_is_reported(tiny_bundle, tmp_path, capfd):
    (tmp_path / "file").touch()
    scan = str(EXAMPLES / "phantom-1.jpg")
    assert run(["predict", scan, "--heatmap", str(tmp_path / "file" / "why"), "--model", str(tiny_bundle)]) == 6
    assert "cannot make the folder" in capfd.readouterr().err
