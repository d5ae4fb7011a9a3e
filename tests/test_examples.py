"""The demo scans are the output of their script, and the program reads them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.scans.readers import picture

CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLES = CHECKOUT / "examples"
DICOM = EXAMPLES / "dicom" / "mni152-slice-2.dcm"


def test_script_draws_the_committed_scans(tmp_path: Path) -> None:
    pytest.importorskip("nilearn", reason="the template is inside the nilearn wheel (group 'dev')")
    script = runpy.run_path(str(CHECKOUT / "scripts" / "make_demo_scans.py"))
    script["main"](tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in EXAMPLES.glob("*.jpg"))
    for name in drawn:
        new, old = (np.asarray(Image.open(folder / name), np.int16) for folder in (tmp_path, EXAMPLES))
        assert new.shape == old.shape
        # Another libjpeg or SciPy may round differently. Then a few DCT coefficients move by one step of quality 92,
        # which is up to 16 gray levels in one 8x8 block, and the picture looks the same.
        assert np.abs(new - old).max() <= 16
        assert np.abs(new - old).mean() <= 0.1


def test_script_writes_the_committed_dicom_file(tmp_path: Path) -> None:
    pytest.importorskip("nilearn", reason="the template is inside the nilearn wheel (group 'dev')")
    pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    script = [sys.executable, str(CHECKOUT / "scripts" / "make_demo_dicom.py")]
    for folder in ("first", "second"):
        subprocess.run([*script, str(tmp_path / folder)], check=True, capture_output=True)
    first, second = sorted(tmp_path.glob("*/*.dcm"))
    assert first.read_bytes() == second.read_bytes()
    new, old = (pydicom.dcmread(path) for path in (first, DICOM))
    # Another SciPy may round differently.
    assert np.abs(new.pixel_array.astype(int) - old.pixel_array).max() <= 16
    new.PixelData = old.PixelData
    assert new == old
    assert new.file_meta == old.file_meta


def test_dicom_file_is_valid() -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("needs dciodvfy (Debian package dicom3tools)")
    done = subprocess.run([program, str(DICOM)], check=False, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.jpg")), ids=lambda path: path.stem)
def test_demo_scan_is_an_8_bit_gray_image_with_a_dark_border(path: Path) -> None:
    pixels = picture.load(path)
    assert pixels.shape == (256, 256, 3)
    assert pixels.strides[2] == 0  # a gray image has one channel in memory
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert border.mean() < 10
    assert pixels[64:192, 64:192].mean() > 40


def test_notice_contains_the_terms_of_the_template() -> None:
    notice = " ".join((EXAMPLES / "NOTICE").read_text(encoding="utf-8").split())
    for name in ("McConnell Brain Imaging Centre", "Montreal Neurological Institute", "McGill University"):
        assert name in notice
    assert "Permission to use, copy, modify, and distribute" in notice
