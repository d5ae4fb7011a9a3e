"""A replay of golden values finds a difference in each stage, and a damaged record is refused."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_edge.authoring import golden
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.engines import _GPU_PROVIDERS
from mri_edge.engines.onnxruntime import _PROVIDERS
from mri_edge.errors import InputError, ManifestError, UsageError
from mri_edge.inference import replay
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture

DEMO = Path(__file__).resolve().parents[2] / "examples"
NOTICE = DEMO / "NOTICE"


@pytest.fixture
def recorded(tiny_bundle) -> Bundle:
    """The tiny bundle with golden values of two demo scans."""
    golden.record(Bundle.open(tiny_bundle), sorted(DEMO.glob("phantom-*.jpg"))[:2], NOTICE)
    return Bundle.open(tiny_bundle)


def test_an_artifact_without_an_engine_is_named(tiny_bundle, monkeypatch, capfd):
    files = [artifact.file for artifact in Bundle.open(tiny_bundle).manifest.artifacts]
    available = golden.engine_here
    monkeypatch.setattr(golden, "engine_here", lambda entry: None if entry.file == files[-1] else available(entry))
    assert run(["bundle", "record", str(tiny_bundle), str(DEMO / "phantom-1.jpg")]) == 0
    assert capfd.readouterr().err == f"{files[-1]}: not recorded, because its engine is not installed\n"


def shift_pixels(monkeypatch, by: int) -> None:
    load = picture.load

    def shifted(source):
        pixels = load(source).copy()
        pixels[0, 0] = np.clip(pixels[0, 0].astype(int) + by, 0, 255)
        return pixels

    monkeypatch.setattr(picture, "load", shifted)


def shift_answers(monkeypatch, by: float) -> None:
    run = replay.probabilities_of
    monkeypatch.setattr(replay, "probabilities_of", lambda *arguments: run(*arguments) + np.float32(by))


def swap_answers(monkeypatch) -> None:
    run = replay.probabilities_of
    monkeypatch.setattr(replay, "probabilities_of", lambda *arguments: run(*arguments)[:, ::-1])


def test_replay_on_the_recording_machine_agrees(recorded):
    report = replay.replay(recorded)
    assert report.first_difference is None
    assert {check.stage for check in report.checks} == {"hashes", "pixels", "tensor", "probabilities", "label"}
    [own] = [check for check in report.checks if check.stage == "probabilities" and check.engine == "onnxruntime"]
    assert own.status == "same"
    documents = {document.file for document in recorded.manifest.documents}
    assert {"golden.json", "golden.npz", "golden/NOTICE", "golden/phantom-1.jpg"} <= documents


def test_openvino_replays_what_onnxruntime_recorded(recorded):
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    checks = [check for check in replay.replay(recorded).checks if check.engine == "openvino"]
    assert [check.stage for check in checks] == ["probabilities", "label"]
    assert all(check.status in ("same", "near") for check in checks)


def test_without_a_record_only_hashes_are_checked(tiny_bundle):
    report = replay.replay(Bundle.open(tiny_bundle))
    assert [(check.stage, check.status) for check in report.checks] == [("hashes", "same")]


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "golden/phantom-1.jpg"])
def test_after_a_changed_byte_no_later_stage_runs(recorded, file):
    path = recorded.folder / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = replay.replay(Bundle.open(recorded.folder))
    assert (report.first_difference.stage, report.first_difference.subject) == ("hashes", file)
    assert {check.stage for check in report.checks} == {"hashes"}


@pytest.mark.parametrize("by", [1, 2])
def test_another_jpeg_decoder_is_reported_but_not_as_a_difference(recorded, monkeypatch, by):
    shift_pixels(monkeypatch, by)
    report = replay.replay(recorded)
    pixels = [check for check in report.checks if check.stage == "pixels"]
    assert {check.status for check in pixels} == {"near"}
    assert f"up to {by} of 255 apart, at 3 of" in pixels[0].detail
    assert report.first_difference is None


def test_a_difference_in_decoding_is_reported_first_although_later_stages_agree(recorded, monkeypatch):
    shift_pixels(monkeypatch, 3)
    report = replay.replay(recorded)
    assert report.first_difference.stage == "pixels"
    # Later stages start from recorded values, so that only the stage with the fault differs.
    assert {check.status for check in report.checks if check.stage in ("tensor", "probabilities")} <= {
        "same",
        "near",
        "not tried",  # engines that are not installed
    }


def test_pixels_of_lossless_pictures_must_be_equal(tiny_bundle, tmp_path, monkeypatch):
    from PIL import Image

    Image.open(DEMO / "phantom-1.jpg").save(tmp_path / "phantom.png")
    golden.record(Bundle.open(tiny_bundle), [tmp_path / "phantom.png"], NOTICE)
    assert replay.replay(Bundle.open(tiny_bundle)).first_difference is None
    shift_pixels(monkeypatch, 1)
    assert replay.replay(Bundle.open(tiny_bundle)).first_difference.stage == "pixels"


@pytest.fixture
def with_dicom(tiny_bundle) -> Bundle:
    """The tiny bundle with golden values of a DICOM slice in JPEG Lossless."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    pytest.importorskip("gdcm", reason="needs the extra dicom")
    golden.record(Bundle.open(tiny_bundle), [DEMO / "dicom" / "mni152-slice-2-lossless.dcm"], NOTICE)
    return Bundle.open(tiny_bundle)


def test_a_dicom_slice_is_replayed(with_dicom):
    report = replay.replay(with_dicom)
    assert report.first_difference is None
    assert [check.status for check in report.checks if check.stage == "pixels"] == ["same"]


def test_a_changed_window_is_reported(with_dicom, monkeypatch):
    from mri_edge.scans.readers import _dicom_reading

    to_gray = _dicom_reading.to_gray

    def shifted(stored, window, **options):
        return to_gray(stored, replace(window, center=window.center + 16), **options)  # one level of 256

    monkeypatch.setattr(_dicom_reading, "to_gray", shifted)
    first = replay.replay(with_dicom).first_difference
    assert (first.stage, first.subject) == ("pixels", "golden/mni152-slice-2-lossless.dcm")


def test_a_changed_codec_is_reported(with_dicom, monkeypatch):
    from mri_edge.scans.readers import _dicom_reading

    frame_decoder = _dicom_reading.frame_decoder

    def shifted(*arguments):
        decode = frame_decoder(*arguments)
        return lambda index: decode(index) // 32 * 32  # as if two bits too few were read

    monkeypatch.setattr(_dicom_reading, "frame_decoder", shifted)
    assert replay.replay(with_dicom).first_difference.stage == "pixels"


def test_without_the_extra_the_dicom_slice_is_left_out(with_dicom, monkeypatch):
    from mri_edge.scans.readers import dicom

    monkeypatch.setattr(dicom, "find_spec", lambda module: None)
    report = replay.replay(with_dicom)
    assert report.first_difference is None
    [pixels] = [check for check in report.checks if check.stage == "pixels"]
    assert pixels.status == "not tried"
    assert "pip install 'mri-edge[dicom]'" in pixels.detail
    assert report.replayed >= 1


def test_a_resized_pixel_that_differs_by_one_is_reported(recorded, monkeypatch):
    resize = Preprocessing.resize_picture
    monkeypatch.setattr(Preprocessing, "resize_picture", lambda self, pixels: resize(self, pixels) ^ 1)
    assert replay.replay(recorded).first_difference.stage == "tensor"


@pytest.mark.parametrize("provider", _GPU_PROVIDERS)
def test_every_accelerator_has_the_tolerance_of_tensorfloat(provider):
    """A provider is named as the user does, or as ONNX Runtime does."""
    for name in (provider, _PROVIDERS[provider]):
        assert replay.tolerance_of("float32", name) == replay.tolerance_of("float16", "cpu")
    assert replay.tolerance_of("float32", "cpu") < replay.tolerance_of("float16", "cpu")


@pytest.mark.parametrize(
    ("precision", "by", "status"),
    [
        # Both sides of the tolerance of each precision.
        ("float32", 5e-6, "near"),
        ("float32", 5e-5, "differs"),
        ("float16", 1e-3, "near"),
        ("float16", 5e-3, "differs"),
        ("int8", 0.02, "near"),
        ("int8", 0.04, "differs"),
        ("dynamic", 0.01, "near"),
        ("float32", float("nan"), "differs"),
    ],
)
def test_tolerance_of_probabilities_depends_on_the_precision(recorded, monkeypatch, precision, by, status):
    [artifact] = recorded.manifest.artifacts
    manifest = replace(recorded.manifest, artifacts=(replace(artifact, precision=precision),))
    shift_answers(monkeypatch, by)
    report = replay.replay(replace(recorded, manifest=manifest))
    found = [check for check in report.checks if check.stage == "probabilities" and check.engine == "onnxruntime"]
    assert [check.status for check in found] == [status]


def test_a_changed_label_is_reported_with_its_scan(recorded, monkeypatch):
    swap_answers(monkeypatch)
    labels = [check for check in replay.replay(recorded).checks if check.stage == "label"]
    assert all(check.status == "differs" for check in labels)
    assert "golden/phantom-1.jpg: " in labels[0].detail
    assert " in place of " in labels[0].detail


def test_a_failing_engine_is_a_difference(recorded, monkeypatch):
    from mri_edge.errors import EngineError

    def fail(*arguments):
        raise EngineError("it broke")

    monkeypatch.setattr(replay, "probabilities_of", fail)
    first = replay.replay(recorded).first_difference
    assert (first.stage, first.detail) == ("probabilities", "it broke")


def test_recording_again_replaces_the_record(recorded):
    golden.record(recorded, [DEMO / "mni152-slice-1.jpg"], NOTICE)
    again = Bundle.open(recorded.folder)
    files = [document.file for document in again.manifest.documents if document.file.endswith(".jpg")]
    assert files == ["golden/mni152-slice-1.jpg"]
    assert not (recorded.folder / "golden" / "phantom-1.jpg").exists()
    assert replay.replay(again).first_difference is None


def test_a_slim_bundle_keeps_its_golden_values(recorded, tmp_path, capfd):
    from mri_edge.cli import run

    assert run(["bundle", "slim", str(recorded.folder), "--artifact", "model.onnx", "--out", str(tmp_path / "s")]) == 0
    report = replay.replay(Bundle.open(tmp_path / "s"))
    assert report.first_difference is None
    assert "label" in {check.stage for check in report.checks}


def test_wrong_scans_are_refused_and_the_bundle_stays_as_it_was(tiny_bundle, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    before = (tiny_bundle / "manifest.json").read_bytes()
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UsageError, match="different names"):
        golden.record(bundle, [DEMO / "phantom-1.jpg"] * 2, NOTICE)
    with pytest.raises(InputError, match="not PNG"):
        golden.record(bundle, [tmp_path / "text.jpg"], NOTICE)
    with pytest.raises(InputError, match="cannot read"):
        golden.record(bundle, [tmp_path / "absent.jpg"], NOTICE)
    assert (tiny_bundle / "manifest.json").read_bytes() == before


def put(bundle: Bundle, file: str, content: bytes) -> Bundle:
    """Replace a file of the record and list it with its correct hash, as a hostile author would."""
    with rewrite_bundle(bundle) as writer:
        writer.add_document(file, content)
    return Bundle.open(bundle.folder)


def arrays_of(bundle: Bundle) -> dict[str, np.ndarray]:
    with np.load(bundle.folder / "golden.npz") as archive:
        return dict(archive)


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_pickles_in_the_record_are_never_loaded(recorded, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    arrays = arrays_of(recorded)
    arrays["tensors"] = np.array([Bomb()], dtype=object)
    with pytest.raises(ManifestError, match="not a golden record"):
        replay.replay(put(recorded, "golden.npz", packed(arrays)))
    assert not (tmp_path / "opened").exists()


def test_a_record_that_unpacks_to_too_much_is_refused(recorded):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("tensors.npy", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(ManifestError, match="unpacks to"):
        replay.replay(put(recorded, "golden.npz", file.getvalue()))


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": np.zeros((1, 128, 128, 3), np.uint8)},
        {"tensors": np.zeros((2, 128, 128, 3), np.float32)},
        {"probabilities-model.onnx": np.zeros((2, 3), np.float32)},
        {"pixels-0": np.zeros((4,), np.uint8)},
    ],
)
def test_arrays_with_another_shape_or_type_are_refused(recorded, change):
    with pytest.raises(ManifestError, match="golden"):
        replay.replay(put(recorded, "golden.npz", packed({**arrays_of(recorded), **change})))


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"scans": []}, {"scans": ["../outside.jpg"]}, {"scans": 7}, {"engines": {"a": "b"}}],
)
def test_invalid_values_are_refused(recorded, change):
    facts = json.loads((recorded.folder / "golden.json").read_bytes())
    with pytest.raises(ManifestError, match=r"golden\.json"):
        replay.replay(put(recorded, "golden.json", json.dumps({**facts, **change}).encode()))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes there")
def test_a_scan_whose_name_is_not_text_is_refused(tiny_bundle, tmp_path):
    path = tmp_path / os.fsdecode(b"scan-\xff.jpg")
    try:
        path.write_bytes((DEMO / "phantom-1.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UsageError, match="is not text"):
        golden.record(Bundle.open(tiny_bundle), [path], NOTICE)
