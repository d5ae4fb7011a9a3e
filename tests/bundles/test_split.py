"""The split record identifies each image that training used; later steps raise if an image is missing or changed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_edge.bundles.split import Split, SplitImage, fingerprint, short
from mri_edge.errors import DataError, ManifestError
from mri_edge.storage.atomic import sha256_of


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for file, content in {"no/1 no.jpg": b"one", "no/Nö2.jpg": b"two", "yes/Y1.JPG": b"three"}.items():
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def split(data: Path) -> Split:
    def image(file: str, label: int, role: str) -> SplitImage:
        return SplitImage(file, sha256_of(data / file), label, role)  # type: ignore[arg-type]

    return Split((image("no/1 no.jpg", 0, "train"), image("yes/Y1.JPG", 1, "test"), image("no/Nö2.jpg", 0, "train")))


def test_round_trip(split: Split) -> None:
    text = split.to_json()
    assert Split.from_json(text) == split
    assert Split.from_json(text.encode()) == split
    assert text.count("\n") == 3 + len(split.images) - 1  # an image a line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows none of these in a name")
@pytest.mark.parametrize("name", ["12:30 pm.jpg", "3.05\u202fPM.png", "a\\b.png", "two\nlines.png", "..png", "C:x.png"])
def test_any_name_that_a_file_may_have_survives_a_round_trip(data: Path, name: str) -> None:
    (data / name).write_bytes(b"picture")
    split = Split((SplitImage(name, sha256_of(data / name), 0, "train"),))
    assert Split.from_json(split.to_json()).locate(data, "train") == [(data / name, 0)]


@pytest.mark.parametrize("name", ["", ".", "..", "../a.png", "a/../../b.png", "/a.png", "a\0b.png", "\ud800.png"])
def test_a_name_outside_the_data_folder_is_rejected(name: str) -> None:
    text = json.dumps({"images": [{"file": name, "sha256": "0" * 64, "label": 0, "role": "train"}]})
    with pytest.raises(ManifestError):
        Split.from_json(text)


def test_an_empty_split_survives_a_round_trip() -> None:
    assert Split.from_json(Split(()).to_json()) == Split(())


def test_the_condensed_record_names_no_image(split: Split) -> None:
    content = split.to_condensed()
    assert Split.from_condensed(content).images == tuple(
        SplitImage("", short(image.sha256), image.label, image.role) for image in split.images
    )
    assert b".jpg" not in content
    assert Split.from_condensed(Split(()).to_condensed()) == Split(())


@pytest.mark.parametrize(
    "content", [b"", b"no array", _saved(np.zeros((2, 9), np.uint8)), _saved(np.full((2, 10), 9.0))]
)
def test_a_file_that_is_not_a_condensed_record_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"split\.npy"):
        Split.from_condensed(content)


def test_roles_keep_their_order(split: Split) -> None:
    assert [image.file for image in split.of("train")] == ["no/1 no.jpg", "no/Nö2.jpg"]
    assert split.of("validation") == []


def test_images_are_located_with_their_labels(split: Split, data: Path) -> None:
    assert split.locate(data, "train") == [(data / "no/1 no.jpg", 0), (data / "no/Nö2.jpg", 0)]
    assert split.locate(data, "test") == [(data / "yes/Y1.JPG", 1)]


def test_missing_or_changed_image_stops_the_work(split: Split, data: Path) -> None:
    (data / "no/1 no.jpg").write_bytes(b"One")
    with pytest.raises(DataError, match=r"1 no\.jpg: differs from the image"):
        split.locate(data, "train")
    shutil.rmtree(data / "no")
    with pytest.raises(DataError, match=r"1 no\.jpg: .* missing"):
        split.locate(data, "train")
    assert len(split.locate(data, "test")) == 1


@pytest.mark.parametrize(
    ("change", "data_too"),
    [({"file": "no/other.jpg"}, True), ({"sha256": "0" * 64}, True), ({"label": 1}, True), ({"role": "test"}, False)],
)
def test_fingerprints_change_with_their_content(split: Split, change: dict[str, object], data_too: bool) -> None:
    changed = Split((replace(split.images[0], **change), *split.images[1:]))  # type: ignore[arg-type]
    assert (changed.data_fingerprint != split.data_fingerprint) is data_too
    named = "sha256" in change or "role" in change
    assert (changed.split_fingerprint != split.split_fingerprint) is named


def test_fingerprint_is_sha256_of_lines() -> None:
    import hashlib

    assert fingerprint(["a", "ß"]) == hashlib.sha256("a\nß\n".encode()).hexdigest()


IMAGE = {"file": "no/1.jpg", "sha256": "0" * 64, "label": 0, "role": "train"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"label": "0"},
        {"label": 0.5},
        {"role": "holdout"},
        {"label": -1},
        {"label": 256},
        {"sha256": None},
        {"sha256": "x" * 64},
        {"sha256": "0" * 15},
        {"file": "../../etc/passwd"},
        {"file": "/etc/passwd"},
    ],
    ids=str,
)
def test_wrong_image_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match=r"split\.json"):
        Split.from_json(json.dumps({"images": [IMAGE | wrong]}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": {}}', '{"images": [[]]}', '{"images": [', "null", "\0"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"mine\.json"):
        Split.from_json(text, origin="mine.json")
