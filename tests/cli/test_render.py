"""``mri-edge render``: the network's input as a picture, and the steps that led to it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.scans import readers

pytest.importorskip("pydicom")
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

sys.path.insert(0, str(Path(__file__).parents[1] / "scans"))
import dicom_data
import dicom_samples

EXAMPLE = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR2_UNCR.dcm", None])
def test_the_picture_is_the_input_of_the_network(tmp_path: Path, name: str | None) -> None:
    scan = EXAMPLE if name is None else dicom_data.named(name)
    assert run(["render", str(scan), "-o", str(tmp_path / "x.png"), "--model", "small"]) == 0
    preprocessing = Bundle.open("small").manifest.preprocessing
    expected = preprocessing.resize_picture(readers.load(scan))
    np.testing.assert_array_equal(_pixels(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("name", ["MR_small.dcm", "emri_small.dcm", None])
def test_an_explanation_is_a_page_with_both_pictures(tmp_path: Path, name: str | None) -> None:
    scan = EXAMPLE if name is None else dicom_data.named(name)
    assert run(["render", str(scan), "-o", str(tmp_path / "x.png"), "--explain", "--model", "small"]) == 0
    page = _pixels(tmp_path / "x.png")
    assert page.shape[1] == 996
    assert page.shape[0] > 550  # two panels, and the caption


def test_the_window_changes_the_picture_and_warnings_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = str(dicom_data.named("MR_small.dcm"))
    for name, window in (("a.png", "file"), ("b.png", "600,400")):
        assert run(["render", scan, "-o", str(tmp_path / name), "--window", window]) == 0
    assert not np.array_equal(_pixels(tmp_path / "a.png"), _pixels(tmp_path / "b.png"))
    assert "warning: computed from other images" in capsys.readouterr().err


def test_warnings_are_those_of_a_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = tmp_path / "inverted.png"
    Image.fromarray(255 - _pixels(EXAMPLE)).save(scan)
    with Classifier.load("lite") as classifier:
        warnings = {str(warning) for warning in classifier.predict(scan).warnings if warning.code != "unlike_training"}
    assert any("bright at the border" in warning for warning in warnings)
    assert run(["render", str(scan), "-o", str(tmp_path / "x.png"), "--model", "lite"]) == 0
    printed = capsys.readouterr().err.splitlines()
    assert {line.partition("warning: ")[2] for line in printed} == warnings


def test_a_frame_is_chosen_by_its_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = str(dicom_data.named("emri_small.dcm"))
    for index in ("0", "9"):
        assert run(["render", scan, "-o", str(tmp_path / f"{index}.png"), "--index", index]) == 0
    assert not np.array_equal(_pixels(tmp_path / "0.png"), _pixels(tmp_path / "9.png"))
    assert run(["render", scan, "-o", str(tmp_path / "x.png"), "--index", "10"]) == 2
    assert "10 frames, 0 to 9" in capsys.readouterr().err


def test_a_frame_after_a_damaged_one_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = dicom_samples.make(np.stack([np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)] * 3))
    dataset.compress(RLELossless)
    fragments = list(generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = encapsulate([bytes(len(fragments[0])), *fragments[1:]])
    scan, target = tmp_path / "scan.dcm", tmp_path / "x.png"
    scan.write_bytes(dicom_samples.save(dataset))
    assert run(["render", str(scan), "-o", str(target), "--index", "0"]) == 1
    assert "RLE" in capsys.readouterr().err
    assert not target.exists()
    assert run(["render", str(scan), "-o", str(target), "--index", "2"]) == 0
    assert target.exists()


def test_the_scan_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = tmp_path / "scan.jpg"
    scan.write_bytes(EXAMPLE.read_bytes())
    (tmp_path / "link.png").symlink_to(scan)
    for target in (scan, tmp_path / "link.png"):
        assert run(["render", str(scan), "-o", str(target)]) == 2
        assert "is the scan itself" in capsys.readouterr().err
    assert scan.read_bytes() == EXAMPLE.read_bytes()


def test_refusals_have_their_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = str(dicom_data.named("CT_small.dcm"))
    target = tmp_path / "x.png"
    assert run(["render", scan, "-o", str(target)]) == 1
    assert "--any-modality" in capsys.readouterr().err
    assert run(["render", scan, "-o", str(target), "--any-modality"]) == 0
    assert run(["render", scan, "-o", str(target), "--any-modality", "--window", "wide"]) == 2
    assert run(["render", scan, "-o", str(tmp_path / "no" / "x.png"), "--any-modality"]) == 6
