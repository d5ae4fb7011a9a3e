"""Test that data folders are listed in the order of the reference, and that invalid folders are rejected."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="needs the extra 'train'")

from mri_edge.errors import DataError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import picture
from mri_edge.train.data.collection import decode
from mri_edge.train.data.folder import find_scans, list_scans
from mri_edge.train.data.selection import exclude


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), len(path.name)).save(path)


def test_scans_are_in_the_order_of_the_reference(tmp_path):
    for file in ("yes/a.png", "no/b.png", "no/A.png", "no/c.PNG", "no/notes.txt"):
        put(tmp_path / file) if not file.endswith("txt") else (tmp_path / file).write_text("x")
    scans, labels = find_scans(tmp_path)
    assert [scan.file for scan in scans] == ["no/A.png", "no/b.png", "no/c.PNG", "yes/a.png"]
    assert [scan.label for scan in scans] == [0, 0, 0, 1]
    assert labels.names == ("no tumour", "tumour")
    assert labels.positive == 1


@pytest.mark.parametrize("stray", ["site/overview.png", "yes/more/2.png"])
def test_no_folder_is_skipped_because_of_a_stray_picture(tmp_path, stray):
    """A folder of pictures beside pictures would be neither a class nor a source, and be left out without a word."""
    for path in ("site/no/1.png", "site/yes/1.png", "no/1.png", "yes/1.png"):
        put(tmp_path / path)
    assert len(find_scans(tmp_path)[0]) == 4
    (tmp_path / "yes" / "notes").mkdir()
    assert len(find_scans(tmp_path)[0]) == 4  # nothing is skipped in a folder without pictures
    put(tmp_path / stray)
    with pytest.raises(DataError, match=r"contains pictures .* and folders of pictures"):
        find_scans(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have no such names")
@pytest.mark.parametrize("file", [b"no/bad\xff.png", b"bad\xff/1.png"])
def test_a_name_that_no_record_can_contain_is_refused(tmp_path, file):
    for path in ("yes/1.png", "no/1.png", os.fsdecode(file)):
        put(tmp_path / path)
    with pytest.raises(DataError, match="the name is not UTF-8"):
        find_scans(tmp_path, "yes", rule="folders")


def test_folders_of_class_folders_are_sources_and_known_names_are_mapped_to_labels(tmp_path):
    for file in ("b/notumor/1.png", "b/glioma/1.png", "b/pituitary/2.png", "a/Yes/1.png", "a/No/1.png"):
        put(tmp_path / file)
    scans, labels = find_scans(tmp_path)
    assert [scan.file for scan in scans] == [
        "a/No/1.png",
        "a/Yes/1.png",
        "b/notumor/1.png",
        "b/glioma/1.png",
        "b/pituitary/2.png",
    ]
    assert labels.folders == {"no tumour": ["No", "notumor"], "tumour": ["glioma", "pituitary", "Yes"]}


def test_unknown_folder_names_become_labels(tmp_path):
    for file in ("red/1.png", "green/1.png"):
        put(tmp_path / file)
    with pytest.raises(DataError, match=r"positive one.*green, red"):
        find_scans(tmp_path)
    put(tmp_path / "blue/1.png")
    assert find_scans(tmp_path)[1].positive is None
    scans, labels = find_scans(tmp_path, "green")
    assert labels.names == ("blue", "green", "red")
    assert labels.positive == 1
    assert [scan.label for scan in scans] == [0, 1, 2]
    with pytest.raises(DataError, match="no label 'tumour'"):
        find_scans(tmp_path, "tumour")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "at least two classes.*no class folder"),
        (["no/1.png"], "at least two classes.*Received: no"),
        (["glioma/1.png", "pituitary/1.png"], "at least two classes"),
        (["no/1.png", "yes/notes.txt"], "no pictures in yes"),
    ],
)
def test_invalid_folders_are_rejected_before_decoding(files, message, tmp_path):
    for file in files:
        put(tmp_path / file) if file.endswith("png") else ((tmp_path / file).parent.mkdir(), (tmp_path / file).touch())
    with pytest.raises(DataError, match=message):
        find_scans(tmp_path)


def test_missing_folder_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    for data in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match="no such folder"):
            find_scans(data)
        with pytest.raises(DataError, match="no such folder"):
            list_scans(data, 0)


LISTING = """
import sys
from pathlib import Path
from mri_edge.errors import DataError
from mri_edge.train.data.folder import find_scans, folder_names, list_scans, pictures_in

for data in map(Path, sys.argv[1:]):
    for listed in (find_scans, folder_names, lambda data: list_scans(data, 0), pictures_in):
        try:
            listed(data)
        except DataError as error:
            print(data.name, error.problem)
        else:
            print(data.name, "is read")
"""


def test_folders_that_cannot_be_read_are_named(tmp_path, as_user):
    """One folder cannot be listed, the files of another cannot be inspected, and a third lies in such a folder."""
    for data in ("unlisted", "closed", "parent/inner"):
        for file in ("no/1.png", "yes/1.png"):
            put(tmp_path / data / file)
    locked = {tmp_path / "unlisted/yes": 0, tmp_path / "closed/yes": 0o444, tmp_path / "parent": 0}
    for folder, mode in locked.items():
        folder.chmod(mode)
    try:
        names = [str(tmp_path / name) for name in ("unlisted", "closed", "parent/inner")]
        command = [*as_user, sys.executable, "-c", LISTING, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for folder in locked:
            folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    unlisted, closed, inner = (
        f"{tmp_path / name}: cannot read (Permission denied)" for name in ("unlisted/yes", "closed/yes", "parent/inner")
    )
    assert done.stdout.splitlines() == [
        *[f"unlisted {unlisted}"] * 3,
        "unlisted is read",  # it has no pictures itself, and the folders in it do not matter
        *[f"closed {closed}"] * 3,
        "closed is read",
        *[f"inner {inner}"] * 4,
    ]


def test_decoding_equals_that_of_the_runtime(folders, tmp_path):
    scans, _ = find_scans(folders)
    preprocessing = Preprocessing(height=16, width=24)
    pixels = decode(scans, preprocessing, tmp_path / "pixels.npy").pixels
    assert pixels.shape == (30, 16, 24, 3)
    for row, scan in zip(pixels, scans, strict=True):
        np.testing.assert_array_equal(row, preprocessing.resize_picture(picture.load(scan.path)))


def test_exclude_prefers_scans_to_lists_even_inside_the_data_folder(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    scans, _ = find_scans(folders)
    (tmp_path / "list.txt").write_text("no/no01.png\n\nyes/yes0*.png\n")
    used, left_out = exclude(scans, ["no/no00.png", str(tmp_path / "list.txt")])
    assert [scan.file for scan in left_out] == ["no/no00.png", "no/no01.png", *(f"yes/yes0{i}.png" for i in range(10))]
    assert len(used) == 18
    (tmp_path / "picture.png").write_bytes((folders / "no" / "no00.png").read_bytes())
    with pytest.raises(DataError, match=r"picture\.png: cannot read"):
        exclude(scans, [str(tmp_path / "picture.png")])


@pytest.mark.skipif(sys.platform == "win32", reason="such names are POSIX")
@pytest.mark.parametrize("name", ["scan[1].png", "scan*.png", "scan?.png", "[!s]can1.png"])
def test_exclude_takes_a_name_before_a_pattern(tmp_path, name):
    for file in (name, "scan1.png", "zcan1.png"):
        put(tmp_path / "no" / file)
        put(tmp_path / "yes" / file)
    scans, _ = find_scans(tmp_path)
    (tmp_path / "list.txt").write_text(f"yes/{name}\n")
    _, left_out = exclude(scans, [f"no/{name}", str(tmp_path / "list.txt")])
    assert [scan.file for scan in left_out] == [f"no/{name}", f"yes/{name}"]


@pytest.mark.data
def test_reference_split_of_the_reference_data_has_the_published_counts(scans, reference_split):
    found, labels = find_scans(scans / "navoneel")
    split = reference_split(found)
    assert [scan.file for scan in found[:3]] == ["no/1 no.jpeg", "no/10 no.jpg", "no/11 no.jpg"]
    assert len(split.of("train")) == 202
    assert [image.label for image in split.of("test")].count(0) == 20
    assert [image.label for image in split.of("test")].count(1) == 31
    assert labels.folders == {"no tumour": ["no"], "tumour": ["yes"]}
