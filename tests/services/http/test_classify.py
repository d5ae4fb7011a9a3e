"""``/v1/classify``: pictures, DICOM, NIfTI, forms, zip files and series give what ``predict --json`` prints."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")

CLASSIFY = "/v1/classify"
SCHEMAS = Path(__file__).resolve().parents[3] / "runtime" / "inference"


def without_times(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: without_times(value) for key, value in result.items() if key != "latency_ms"}
    return [without_times(value) for value in result] if isinstance(result, list) else result


def check_schema(result: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    name = "series" if "by" in result else "result"
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(result)


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def volume(shape: tuple[int, ...] = (40, 48, 12)) -> bytes:
    """Return a NIfTI file with bright slices in the middle."""
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(5).integers(0, 200, shape).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    return bytes(image.to_bytes())


@pytest.mark.parametrize("name", ["phantom-2.jpg", "mni152-slice-1.jpg", "dicom/mni152-slice-2.dcm"])
def test_a_scan_gives_the_object_of_predict(client, small, examples, name):
    if name.endswith(".dcm"):
        pytest.importorskip("pydicom")
    file = (examples / name).read_bytes()
    response = client.post(CLASSIFY, content=file)
    assert response.status_code == 200
    assert without_times(response.json()) == without_times(small.predict(file).to_dict())
    check_schema(response.json())
    form = client.post(CLASSIFY, files={"scan": (name, file)})
    assert without_times(form.json()) == {**without_times(response.json()), "file": name}


def test_several_files_give_a_list_in_the_order_of_their_names(client, small, examples):
    names = ["phantom-3.jpg", "phantom-1.jpg", "phantom-2.jpg"]
    files = [("scan", (name, (examples / name).read_bytes())) for name in names]
    answer = client.post(CLASSIFY, files=[*files, ("scan", ("README.md", b"notes"))]).json()
    assert [result["file"] for result in answer["results"]] == sorted(names)
    assert answer["skipped"] == ["README.md"]
    assert answer["notice"].startswith("Research use only")
    for result in answer["results"]:
        expected = small.predict(examples / result["file"]).to_dict()
        assert without_times(result) == {**without_times(expected), "file": result["file"]}


def test_a_zip_file_is_a_folder(client, examples, zip_of):
    names = ["a/phantom-1.jpg", "b/phantom-2.jpg", "__MACOSX/._x.jpg", ".hidden.jpg", "b/notes.txt"]
    packed = zip_of(
        [(name, (examples / "phantom-1.jpg").read_bytes() if "phantom" in name else b"?") for name in names]
    )
    answer = client.post(CLASSIFY, content=packed).json()
    assert [result["file"] for result in answer["results"]] == names[:2]
    assert answer["skipped"] == ["b/notes.txt"]
    in_form = client.post(CLASSIFY, files={"f": ("x.zip", packed)}).json()
    assert without_times(in_form) == without_times(answer)


def test_a_damaged_file_among_others_is_a_result(client, examples, zip_of):
    good = (examples / "phantom-2.jpg").read_bytes()
    response = client.post(CLASSIFY, content=zip_of([("good.jpg", good), ("bad.jpg", good[:300]), ("worse.png", b"x")]))
    assert response.status_code == 200
    bad, _, worse = response.json()["results"]
    assert bad["code"] == "damaged"
    assert bad["error"].startswith("bad.jpg: ")
    assert worse["error"].startswith("worse.png: ")
    check_schema(bad)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"%PDF-1.7", 415, "unsupported"),
        (b"\xff\xd8\xff\xe0 cut", 422, "damaged"),
        (b"P5\n100000 100000\n255\n" + bytes(100), 413, "too_large"),
    ],
)
def test_a_scan_that_cannot_be_read_has_a_status_and_the_object_of_predict(client, content, status, code):
    response = client.post(CLASSIFY, content=content)
    assert response.status_code == status
    assert response.json()["code"] == code
    check_schema(response.json())


def test_a_damaged_frame_leaves_the_answers_for_the_others(client, examples):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(examples / "dicom" / "mni152-slice-2.dcm")
    dataset.NumberOfFrames, dataset.PixelData = 3, dataset.PixelData * 3
    dataset.compress(pydicom.uid.RLELossless)
    fragments = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
    dataset.PixelData = pydicom.encaps.encapsulate([fragments[0], bytes(100), fragments[2]])
    file = io.BytesIO()
    dataset.save_as(file)
    answer = client.post(CLASSIFY, content=file.getvalue()).json()
    assert [(result["index"], "error" in result) for result in answer["results"]] == [(0, False), (1, True), (2, False)]
    one = client.post(f"{CLASSIFY}?index=2", content=file.getvalue()).json()
    assert (one["index"], "error" in one) == (2, False)
    assert client.post(f"{CLASSIFY}?index=1", content=file.getvalue()).json()["code"] == "damaged"


def test_a_volume_gives_a_result_for_each_slice(client, zip_of):
    file = volume()
    answer = client.post(CLASSIFY, content=file).json()
    assert [result["index"] for result in answer["results"]] == [*range(12)]
    assert all(result["file"] is None and result["frames"] == 12 for result in answer["results"])
    one = client.post(f"{CLASSIFY}?index=7", content=file).json()
    assert without_times(one) == without_times(answer["results"][7])
    named = client.post(f"{CLASSIFY}?index=7", files={"f": ("brain.nii", file)}).json()
    assert named["file"] == "brain.nii"
    assert client.post(f"{CLASSIFY}?index=12", content=file).status_code == 422
    packed = client.post(CLASSIFY, content=zip_of([("brain.nii", file)])).json()
    assert {result["file"] for result in packed["results"]} == {"brain.nii"}


def test_a_series_gives_the_object_of_predict_by_series(client, small, tmp_path):
    file = volume()
    (tmp_path / "brain.nii").write_bytes(file)
    (expected,) = small.predict_series(tmp_path / "brain.nii")
    answer = client.post(f"{CLASSIFY}?by=series&picture=1", files={"f": ("brain.nii", file)}).json()
    pictures = [piece.pop("picture") for piece in answer["slices"]]
    assert picture_of(pictures[0]).size == (40, 48)
    check_schema(answer)
    found, wanted = without_times(answer), without_times(expected.to_dict())
    for record in (found, wanted):
        del record["id"], record["file"]  # a file without identifiers is known by its path
        for piece in record["slices"]:
            assert piece.pop("file").endswith("brain.nii")
    assert found == wanted
    study = client.post(f"{CLASSIFY}?by=study", content=file).json()
    assert study["by"] == "study"
    assert study["series"][0]["score"] == answer["score"]


def test_a_zip_file_of_dicom_slices_is_a_series(client, examples, zip_of):
    pydicom = pytest.importorskip("pydicom")
    files = []
    for number in range(4):
        header = pydicom.dcmread(examples / "dicom" / "mni152-slice-2.dcm")
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        header.ImagePositionPatient = [0, 0, -5 * number]
        content = io.BytesIO()
        header.save_as(content)
        files.append((f"IM{number}", content.getvalue()))
    response = client.post(f"{CLASSIFY}?by=series", content=zip_of(files))
    answer = response.json()
    assert [piece["file"] for piece in answer["slices"]] == ["IM3", "IM2", "IM1", "IM0"]
    assert answer["plane"] == "axial"
    copies = client.post(f"{CLASSIFY}?by=series", content=zip_of([*files, ("COPY", files[0][1])])).json()
    warnings = {warning["code"]: warning["message"] for warning in copies["warnings"]}
    assert "(IM0)" in warnings["copies"]  # the name that the client gave
    several = client.post(f"{CLASSIFY}?by=series", content=zip_of([*files, ("notes.txt", b"?")])).json()
    assert several["skipped"] == ["notes.txt"]
    assert [result["label"] for result in several["results"]] == [answer["label"]]


def test_a_heatmap_comes_with_its_measured_score(client, examples):
    file = (examples / "phantom-2.jpg").read_bytes()
    answer = client.post(f"{CLASSIFY}?heatmap=1", content=file).json()
    explanation = answer["explanation"]
    picture, overlay = picture_of(answer["picture"]), picture_of(explanation["overlay"])
    assert picture.size == overlay.size
    assert overlay.mode == "RGBA"
    opacity = np.asarray(overlay)[..., 3]
    assert 0 < (opacity > 0).mean() < 0.5
    assert explanation["label"] == "tumour"
    assert explanation["maximum"] > explanation["least_drawn"]
    assert 0.5 < explanation["score"]["low"] <= explanation["score"]["value"] <= explanation["score"]["high"] <= 1
    for name in ("mni152-slice-1.jpg", "mni152-slice-2.jpg", "mni152-slice-3.jpg"):
        other = client.post(f"{CLASSIFY}?heatmap=1", content=(examples / name).read_bytes()).json()["explanation"]
        assert (other["overlay"] is None) == (other["maximum"] < 1)  # where nothing stands out, nothing is drawn


def test_the_pictures_of_a_series_are_bounded(held, monkeypatch):
    import httpx

    from mri_edge.services.http.scans import long_work

    monkeypatch.setattr(long_work, "_PICTURES", 1)
    with httpx.Client(base_url=held(released=True).url, timeout=60) as client:
        answer = client.post(f"{CLASSIFY}?by=series&picture=1", files={"f": ("brain.nii", volume())}).json()
    assert len(answer["slices"]) == 12
    assert ["picture" in piece for piece in answer["slices"]].count(True) == 1


def test_the_picture_is_the_section_that_the_network_gets(client, small, examples):
    file = (examples / "phantom-2.jpg").read_bytes()
    answer = client.post(f"{CLASSIFY}?picture=1", content=file).json()
    expected = small.predict(file, keep_pixels=True).pixels
    assert np.array_equal(np.asarray(picture_of(answer["picture"])), expected[..., 0])


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("by=patient", "by must be slice or series or study"),
        ("plane=sagittal", "plane must be axial or any"),
        ("heatmap=yes", "heatmap must be 0 or 1"),
        ("index=-1", "index must be a whole number"),
        ("index=1e9", "index must be a whole number"),
        ("by=series&heatmap=1", "about one slice"),
        ("timeout=0", "timeout must be"),
        ("timeout=nan", "timeout must be"),
        ("timeout=soon", "timeout must be"),
    ],
)
def test_wrong_parameters_are_refused(client, query, problem):
    response = client.post(f"{CLASSIFY}?{query}", content=b"x")
    assert response.status_code == 400
    assert problem in response.json()["error"]


def test_an_unknown_model_is_refused_and_a_known_one_is_used(client, examples):
    file = (examples / "phantom-2.jpg").read_bytes()
    assert client.post(f"{CLASSIFY}?model=huge", content=file).status_code == 404
    assert client.post(f"{CLASSIFY}?model=small", content=file).json()["model"].startswith("small ")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"content": b""}, "the body is empty"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "form"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "form"),
        ({"data": {"a": "b"}, "files": []}, "not PNG, JPEG"),
        ({"files": {"f": ("empty.jpg", b"")}}, "empty"),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, "Content-Encoding"),
    ],
)
def test_bodies_without_a_scan_are_refused(client, options, problem):
    response = client.post(CLASSIFY, **options)
    assert 400 <= response.status_code < 500
    assert problem in response.json()["error"]


@pytest.mark.parametrize("charset", ["undefined", "idna", "hex", "unknown", "unicode_escape", "utf-16", "utf-7"])
def test_names_in_any_character_set_are_no_fault_of_the_server(client, charset):
    content = b'--b\r\nContent-Disposition: form-data; name="f"; filename="\\ud800\xff.jpg"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = client.post(CLASSIFY, content=content, headers=headers)
    assert 400 <= response.status_code < 500


def test_heatmaps_are_about_one_scan(client, examples):
    file = volume()
    assert "Choose one" in client.post(f"{CLASSIFY}?heatmap=1", content=file).json()["error"]
    two = [("f", (name, (examples / "phantom-1.jpg").read_bytes())) for name in ("a.jpg", "b.jpg")]
    assert "Send one file" in client.post(f"{CLASSIFY}?heatmap=1", files=two).json()["error"]


def test_nothing_is_left_on_the_disk(serve, examples, zip_of, tmp_path):
    import httpx

    server = serve("--model", "small", env={"TMPDIR": str(tmp_path)})
    url = server.wait_until_ready()
    file = (examples / "phantom-2.jpg").read_bytes()
    packed = zip_of([("a.jpg", file), ("b.jpg", file)])
    for content in (packed, packed[:-30], zip_of([("../a.jpg", file)])):
        for query in ("", "?by=series", "?by=wrong"):
            httpx.post(f"{url}{CLASSIFY}{query}", content=content, timeout=120)
    httpx.post(f"{url}{CLASSIFY}", files={"f": ("a.jpg", file + bytes(3 << 20)), "g": ("b.jpg", file)}, timeout=120)
    assert [*tmp_path.iterdir()] == []
    assert server.end() == 0
