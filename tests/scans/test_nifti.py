"""NIfTI volumes become frames in radiological view; nibabel is the second opinion on values and orientation."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mri_edge import Classifier
from mri_edge.cli import run
from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.files import is_transient
from mri_edge.scans.frame import Frame
from mri_edge.scans.intensity import Window
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.readers import _nifti_data, nifti
from mri_edge.scans.series import group

nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")

CHECKOUT = Path(__file__).parents[2]
# From RAS+ voxels of a canonical volume to the 48 ways to store it: an order of the axes, and which are reversed.
STORED = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def _bytes(image: Any, *, compressed: bool = False) -> bytes:
    content: bytes = image.to_bytes()
    return gzip.compress(content, 1) if compressed else content


def _image(values: NDArray[Any], affine: NDArray[Any] | None = None, version: int = 1, **fields: float) -> Any:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    for name, value in fields.items():
        image.header[name] = value
    return image


def _ramp(shape: tuple[int, int, int] = (12, 14, 10), dtype: str = "int16") -> NDArray[Any]:
    """Return a volume in RAS+ in which every voxel differs."""
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype)


def _axial(canonical: NDArray[Any]) -> NDArray[Any]:
    """Return the slices of a RAS+ volume in radiological view, from the feet up: (Z, Y, X)."""
    return canonical[::-1, ::-1].transpose(2, 1, 0)


def _levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return (np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def _read(source: Any) -> list[Frame]:
    return list(readers.read(source))


def _gray(frames: list[Frame]) -> NDArray[np.uint8]:
    for frame in frames:
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.strides[2] == 0  # one channel in memory
    return np.stack([frame.pixels[..., 0] for frame in frames])


def _by_position(frames: list[Frame]) -> list[Frame]:
    return sorted(frames, key=lambda frame: frame.metadata["nifti"]["position"])


@pytest.mark.parametrize(("axes", "signs"), STORED)
def test_every_stored_orientation_gives_the_same_pictures(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    canonical = _ramp()
    orientation = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)], float)
    stored = nibabel.orientations.apply_orientation(canonical, orientation)
    affine = nibabel.orientations.inv_ornt_aff(orientation, canonical.shape)
    # The origin is off center, so that a position with a wrong sign would be found.
    shift = np.eye(4)
    shift[:3, 3] = 5, -7, 11
    frames = _read(_bytes(_image(stored, shift @ affine, cal_min=0, cal_max=1679)))
    assert [frame.index for frame in frames] == list(range(10))
    frames = _by_position(frames)
    np.testing.assert_array_equal(_gray(frames), _levels(_axial(canonical), 0, 1679))
    assert [frame.metadata["nifti"]["position"] for frame in frames] == [11 + index for index in range(10)]
    assert {frame.metadata["nifti"]["plane"] for frame in frames} == {"axial"}


@given(
    dtype=st.sampled_from(DTYPES),
    version=st.sampled_from((1, 2)),
    big=st.booleans(),
    compressed=st.booleans(),
    slope=st.sampled_from((0.0, 1.0, 0.25, -3.0)),
    intercept=st.sampled_from((0.0, -100.0)),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_values_are_those_of_nibabel(
    dtype: str, version: int, big: bool, compressed: bool, slope: float, intercept: float, shape: tuple[int, int, int]
) -> None:
    values = (np.random.default_rng(1).integers(0, 120, shape)).astype(np.dtype(dtype))
    image = _image(values, version=version)
    header = image.header.as_byteswapped(">") if big else image.header
    header["scl_slope"], header["scl_inter"] = slope, intercept if slope else 0
    content = io.BytesIO()
    header["vox_offset"] = 352 if version == 1 else 544
    content.write(header.binaryblock + bytes(4))
    content.write(values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes(order="F"))
    stored = gzip.compress(content.getvalue()) if compressed else content.getvalue()

    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    real = kind.from_bytes(content.getvalue()).get_fdata()
    frames = _read(stored)
    window = frames[0].metadata["nifti"]["window"]
    low, high = (window["center"] + side * window["width"] / 2 for side in (-1, 1))
    expected = np.percentile(real, [1, 99.5], method="inverted_cdf")
    if expected[1] > expected[0]:
        np.testing.assert_allclose([low, high], expected, atol=(np.ptp(real) or 1) / 1000)
    gray = _gray(_by_position(frames)).astype(int)
    np.testing.assert_allclose(gray, _levels(_axial(real), low, high), atol=1)


def test_thick_slices_are_shown_in_the_plane_of_acquisition() -> None:
    values = _ramp((6, 14, 12))
    frames = _read(_bytes(_image(values, np.diag([5.0, 1, 1, 1]), cal_min=0, cal_max=1007)))
    assert [frame.metadata["nifti"]["plane"] for frame in frames] == ["sagittal"] * 6
    # The face looks to the left and the head is on top.
    np.testing.assert_array_equal(_gray(frames), _levels(values[:, ::-1, ::-1].transpose(0, 2, 1), 0, 1007))
    frames = _read(_bytes(_image(values.transpose(1, 0, 2), np.diag([1.0, 5, 1, 1]), cal_min=0, cal_max=1007)))
    assert {frame.metadata["nifti"]["plane"] for frame in frames} == {"coronal"}
    # Front to back in the file is back to front here: y grows to the front in RAS+.
    np.testing.assert_array_equal(_gray(frames), _levels(values[:, ::-1, ::-1].transpose(0, 2, 1), 0, 1007))


def test_unequal_spacings_become_square_pixels() -> None:
    frames = _read(_bytes(_image(_ramp((12, 14, 10)), np.diag([1.0, 1.4, 1.2, 1]))))
    assert {frame.pixels.shape for frame in frames} == {(20, 12, 3)}
    assert {frame.metadata["nifti"]["plane"] for frame in frames} == {"axial"}


@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 1), (12, 14, 1, 1, 1)])
def test_one_slice_is_one_frame(shape: tuple[int, ...]) -> None:
    [frame] = _read(_bytes(_image(np.arange(168, dtype=np.int16).reshape(shape))))
    assert frame.pixels.shape == (14, 12, 3)
    assert (frame.index, frame.count) == (0, 1)


def test_volume_without_an_orientation_is_read_as_nibabel_reads_it() -> None:
    image = _image(_ramp(), cal_min=0, cal_max=1679)
    image.header["sform_code"] = image.header["qform_code"] = 0
    content = _bytes(image)  # to_bytes sets the codes again
    content = content[:252] + bytes(4) + content[256:]
    frames = _read(content)
    assert {warning.code for frame in frames for warning in frame.warnings} == {"no_orientation"}
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content)).get_fdata()
    np.testing.assert_array_equal(_gray(_by_position(frames)), _levels(_axial(canonical), 0, 1679))


def test_display_range_of_the_header_is_the_window_unless_it_hides_the_scan() -> None:
    values = _ramp()
    [window] = {tuple(f.metadata["nifti"]["window"].items()) for f in _read(_bytes(_image(values, cal_max=800)))}
    assert dict(window) == {"center": 400, "width": 800, "function": "LINEAR_EXACT", "from": "file"}
    for low, high in ((0, 1), (5000, 9000), (9, 9), (9, 3), (np.nan, 5), (0, np.inf)):
        frame = _read(_bytes(_image(values, cal_min=low, cal_max=high)))[0]
        assert frame.metadata["nifti"]["window"]["from"] == "percentiles"
        usable = bool(np.isfinite(high) and np.isfinite(low) and high > low)
        assert [warning.code for warning in frame.warnings] == ["fallback_window"] * usable


@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_display_range_is_kept_beside_a_bright_voxel(kind: str) -> None:
    values = _ramp(dtype=kind)
    values[3, 3, 3] = 30_000
    frames = _read(_bytes(_image(values, cal_max=1000)))
    assert {frame.metadata["nifti"]["window"]["from"] for frame in frames} == {"file"}
    assert not any(frame.warnings for frame in frames)


def test_options_choose_the_window() -> None:
    content = _bytes(_image(_ramp(), cal_max=800))

    def window(options: ReadOptions) -> tuple[float, float, str]:
        used = next(iter(readers.read(content, options))).metadata["nifti"]["window"]
        return used["center"], used["width"], used["from"]

    assert window(ReadOptions("file")) == (400, 800, "file")
    assert window(ReadOptions("auto")) == (843.5, 1655, "percentiles")
    assert window(ReadOptions("5,10")) == (5, 10, "option")  # used although it shows nothing
    fallback = Window(7, 70, origin="percentiles")
    assert window(ReadOptions("auto", fallback=fallback)) == (7, 70, "percentiles")


@pytest.mark.parametrize("highest", [1.0, 0.25])
def test_a_window_for_small_values_shows_what_the_display_range_shows(highest: float) -> None:
    values = (_ramp(dtype="float32") / _ramp().max() * highest).astype(np.float32)
    expected = _gray(_read(_bytes(_image(values, cal_max=highest))))
    assert len(np.unique(expected)) > 100
    chosen = list(readers.read(_bytes(_image(values)), ReadOptions(f"{highest / 2},{highest}")))
    np.testing.assert_array_equal(_gray(chosen), expected)
    sigmoid = next(iter(readers.read(_bytes(_image(values)), ReadOptions(Window(0.5, 1, "SIGMOID")))))
    assert sigmoid.metadata["nifti"]["window"]["function"] == "SIGMOID"


def test_facts_describe_the_frames_without_reading_voxels() -> None:
    for affine in (np.eye(4), np.diag([5.0, 1, 1, 1]), np.diag([1.0, -1.5, 1.2, 1])[[0, 2, 1, 3]]):
        content = _bytes(_image(_ramp(), affine))
        frames = _read(content)
        assert list(nifti.slice_facts(content)) == [frame.metadata["_facts"] for frame in frames]
        [series] = group(nifti.slice_facts(content))
        expected = [frame.metadata["nifti"]["position"] for frame in _by_position(frames)]
        np.testing.assert_allclose(series.positions, expected, atol=2e-3)
        assert series.plane == frames[0].metadata["nifti"]["plane"]
    [refused] = nifti.slice_facts(_bytes(_image(np.zeros((4, 5, 6, 3), np.int16))))
    assert "holds 3 volumes" in str(refused.refusal)
    with pytest.raises(InputError, match="it ends inside its header"):
        list(nifti.slice_facts(VOLUME[:300]))


@pytest.mark.parametrize("outlier", [1e4, 1e9, 1e30, -1e30, 3e38])
def test_one_outlier_does_not_turn_a_volume_of_floats_black(outlier: float) -> None:
    values = _ramp(dtype="float32")
    expected = _gray(_read(_bytes(_image(values))))
    values[0, 0, 0] = outlier
    values[1, 0, 0] = np.nan
    values[2, 0, 0] = np.inf
    values[3, 0, 0] = -np.inf
    gray = _gray(_read(_bytes(_image(values))))
    same = np.abs(gray.astype(int) - expected) <= 1
    assert same.mean() > 0.99
    [frame] = [frame for frame in _read(_bytes(_image(values))) if frame.index == 0]
    bottom = frame.pixels[-1, :, 0]  # the first row of the file; x = 0 is at the right
    assert bottom[::-1][1:4].tolist() == [0, 255, 0]


def test_volume_with_few_bright_voxels_keeps_its_range() -> None:
    values = np.zeros((20, 20, 20), np.float32)
    values[10, 10, :10] = np.linspace(10, 100, 10)
    gray = _gray(_read(_bytes(_image(values))))
    np.testing.assert_allclose(sorted(set(gray.ravel().tolist())), np.linspace(0, 255, 11), atol=1)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_volume_that_holds_nothing_is_black_and_every_slice_gets_a_warning(value: float) -> None:
    content = _bytes(_image(np.full((120, 120, 4), value, np.float32)))
    assert {int(gray) for gray in _gray(_read(content)).ravel()} <= {0, 255}
    with Classifier.load("small") as classifier:
        predictions = list(classifier.predict_frames(content))
    assert [warning.code for prediction in predictions for warning in prediction.warnings].count("blank") == 4


def _patched(content: bytes, offset: int, kind: str, *values: Any) -> bytes:
    patched = bytearray(content)
    struct.pack_into(kind, patched, offset, *values)
    return bytes(patched)


VOLUME = _bytes(_image(_ramp()))
REFUSED = {
    "several volumes": (_bytes(_image(np.zeros((4, 5, 6, 3), np.int16))), "unsupported", "holds 3 volumes"),
    "RGB": (_patched(VOLUME, 70, "<h", 128), "unsupported", "RGB voxels are not supported"),
    "RGBA": (_patched(VOLUME, 70, "<h", 2304), "unsupported", "RGBA voxels are not supported"),
    "complex": (_patched(VOLUME, 70, "<h", 32), "unsupported", "complex voxels are not supported"),
    "bits": (_patched(VOLUME, 70, "<h", 1), "unsupported", "1-bit voxels are not supported"),
    "unknown type": (_patched(VOLUME, 70, "<h", 3), "unsupported", "voxels of the data type 3 are not supported"),
    "labels": (_patched(VOLUME, 68, "<h", 1002), "unsupported", "a map of labels (intent code 1002) and no scan"),
    "statistics": (_patched(VOLUME, 68, "<h", 3), "unsupported", "a statistical map (intent code 3) and no scan"),
    "vectors": (_patched(VOLUME, 68, "<h", 1007), "unsupported", "a map of vectors or matrices"),
    "pair": (_patched(VOLUME, 344, "4s", b"ni1\0"), "unsupported", "a NIfTI pair of .hdr and .img"),
    "Analyze": (_patched(VOLUME, 344, "4s", b"\0\0\0\0"), "unsupported", "Analyze 7.5 is not supported"),
    "text": (b"some text " * 50, "unsupported", "not NIfTI, although its name says so"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "unsupported", "Git LFS pointer"),
    "empty": (b"", "damaged", "the file is empty"),
    "row": (_patched(VOLUME, 40, "<8h", 1, 9, 1, 1, 1, 1, 1, 1), "unsupported", "a row of 9 voxels and no scan"),
    "no dimension": (_patched(VOLUME, 40, "<h", 0), "damaged", "it declares 0 dimensions"),
    "negative size": (_patched(VOLUME, 42, "<h", -3), "damaged", "its size is -3 x 14 x 10 voxels"),
    "huge": (_patched(VOLUME, 42, "<3h", 32767, 32767, 9), "too_large", "32767 x 32767 x 9 voxels"),
    "wide": (_patched(VOLUME, 42, "<3h", 32767, 8192, 1), "too_large", "8192 x 32767 pixels"),
    "offset in the header": (_patched(VOLUME, 108, "<f", 4), "damaged", "its voxels begin at byte 4"),
    "no offset": (_patched(VOLUME, 108, "<f", np.nan), "damaged", "its voxels begin at byte nan"),
    "far offset": (_patched(VOLUME, 108, "<f", 1e9), "damaged", "its voxels begin at byte 1e+09"),
    "end of the header": (VOLUME[:300], "damaged", "it ends inside its header"),
    "end of the voxels": (VOLUME[:-1], "damaged", "it ends after 3,359 of 3,360 bytes of voxels"),
    "end of the compression": (gzip.compress(VOLUME)[:-900], "damaged", "it ends after"),
    "wrong checksum": (gzip.compress(VOLUME)[:-8] + bytes(8), "damaged", "its compression is broken"),
    "no checksum": (gzip.compress(VOLUME)[:-8], "damaged", "its compression ends without a checksum"),
    "broken compression": (gzip.compress(VOLUME)[:500] + bytes(3000), "damaged", "its compression ends without"),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_readable_scan_is_refused(tmp_path: Path, kind: str, compressed: bool) -> None:
    content, code, message = REFUSED[kind]
    if compressed and content[:2] != nifti.GZIP and kind != "empty":
        content = gzip.compress(content)
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        _read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_other_sources_are_refused(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none.nii", "no such file"),
        (tmp_path, "is a folder, not a scan"),
        (f"{tmp_path}\0.nii", "cannot read"),
        (np.zeros((3, 3)), "must be a path or the bytes of a file"),
    ):
        with pytest.raises(InputError, match=message):
            list(nifti.read(source))


def test_lack_of_memory_is_an_error_of_the_scan_for_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    (tmp_path / "brain.nii").write_bytes(VOLUME)
    monkeypatch.setattr(nifti, "to_gray", short_of_memory)
    for source in (VOLUME, tmp_path / "brain.nii"):
        with pytest.raises(InputError) as caught:
            _read(source)
        assert caught.value.code == "out_of_memory"
        assert is_transient(caught.value.__cause__)


def test_missing_nibabel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel.nifti1", None)
    with pytest.raises(
        InputError, match=r"needs nibabel, which is not installed. Install it: pip install 'mri-edge\[nifti\]'"
    ):
        _read(VOLUME)


def test_a_header_that_cannot_be_read_for_lack_of_nibabel_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brain.nii").write_bytes(VOLUME)
    monkeypatch.setitem(sys.modules, "nibabel.nifti1", None)
    with pytest.raises(InputError, match="needs nibabel"):
        list(nifti.slice_facts(str(tmp_path / "brain.nii")))


def test_nibabel_is_not_imported_for_pictures() -> None:
    code = (
        "import sys; from mri_edge.scans import readers; "
        "readers.load('examples/phantom-1.jpg'); sys.exit('nibabel' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("compressed", [False, True])
def test_volumes_are_recognized_by_their_content(tmp_path: Path, version: int, compressed: bool) -> None:
    content = _bytes(_image(_ramp(), version=version), compressed=compressed)
    path = tmp_path / "IM0001"
    path.write_bytes(content)
    assert readers.recognizes(path)
    assert len(_read(path)) == len(_read(content)) == 10
    swapped = nibabel.Nifti1Header(content[:348], check=False) if version == 1 and not compressed else None
    if swapped is not None:
        assert nifti.recognizes(swapped.as_byteswapped(">").binaryblock, "")
    for other in (b"", b"\x1f\x8b\x08", gzip.compress(b"text" * 200), bytes(600), b"\x5c\x01\0\0" + bytes(344)):
        assert not nifti.recognizes(other[:512], "")


def test_gzip_streams_in_a_row_are_one_file() -> None:
    pieces = [gzip.compress(VOLUME[start : start + 500]) for start in range(0, len(VOLUME), 500)]
    np.testing.assert_array_equal(_gray(_read(b"".join(pieces) + bytes(100))), _gray(_read(VOLUME)))


def _peak(content: bytes) -> int:
    """Return the bytes that reading takes at most, beside the file."""
    list(itertools.islice(readers.read(VOLUME), 1))  # import everything
    tracemalloc.start()
    try:
        for _ in readers.read(content):
            pass
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_gzip_bomb_is_not_decompressed_beyond_the_declared_size() -> None:
    bomb = gzip.compress(VOLUME + bytes(64 << 20))
    assert _peak(bomb) < 8 << 20
    with pytest.raises(InputError, match="it goes on after its voxels"):
        _read(bomb)
    np.testing.assert_array_equal(_gray(_read(gzip.compress(VOLUME + bytes(5000)))), _gray(_read(VOLUME)))


def test_declared_size_is_not_allocated_before_the_voxels_arrive() -> None:
    huge = gzip.compress(_patched(VOLUME, 42, "<3h", 16384, 16384, 1))
    assert _peak(huge) < 32 << 20
    with pytest.raises(InputError, match="16384 x 16384 pixels"):
        _read(huge)
    tall = gzip.compress(_patched(VOLUME, 42, "<3h", 1000, 1000, 200))
    assert _peak(tall) < 32 << 20
    with pytest.raises(InputError, match="it ends after"):
        _read(tall)


def test_many_gzip_streams_are_refused() -> None:
    with pytest.raises(InputError, match="made of too many gzip streams"):
        _read(gzip.compress(VOLUME[:400]) + gzip.compress(b"", 1) * 100_001)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_stays_that_of_a_few_planes(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nifti_data, "_MAX_KEPT", 1 << 20)
    values = np.random.default_rng(0).integers(0, 3000, (128, 128, 300)).astype(np.float32)  # 20 MB
    assert _peak(_bytes(_image(values), compressed=compressed)) < 7 << 20


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_header_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(VOLUME)
    fields = nibabel.Nifti1Header.template_dtype.fields
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=6, unique=True)):
        dtype, offset = fields[name][:2]
        value = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
        if dtype.base.kind == "f" and data.draw(st.booleans()):
            value = np.full(dtype.shape or 1, data.draw(st.floats(width=32)), dtype.base).tobytes()
        content[offset : offset + dtype.itemsize] = value
    try:
        frames = _read(bytes(content))
    except InputError:
        return
    assert all(frame.pixels.dtype == np.uint8 and frame.pixels.ndim == 3 for frame in frames)


def test_predict_writes_a_valid_result_for_every_slice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'test-runtime'")
    (tmp_path / "IM0001").write_bytes(_bytes(_image(_ramp((120, 110, 3))), compressed=True))
    assert run(["predict", str(tmp_path), "--json", "--model", "small"]) == 0
    schema = json.loads((CHECKOUT / "runtime" / "inference" / "result.schema.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for record in records:
        jsonschema.validate(record, schema)
    assert [(record["index"], record["frames"]) for record in records] == [(0, 3), (1, 3), (2, 3)]
    assert [record["nifti"]["position"] for record in records] == [0, 1, 2]
    assert not any(key.startswith("_") for record in records for key in record)
