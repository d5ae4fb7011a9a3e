"""Test the checks of a data folder before training, exclusion, patients and the choice of test images."""

import re

import numpy as np
import pytest
from PIL import Image

from mri_edge.errors import DataError, OutputError

pytest.importorskip("sklearn", reason="needs the extra 'train'")

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.data.audit import inspect, table
from mri_edge.train.data.collection import collect, decode
from mri_edge.train.data.folder import find_scans
from mri_edge.train.data.grouping import read_patients
from mri_edge.train.data.roles import check_roles, choose_test
from mri_edge.train.data.selection import exclude


@pytest.fixture
def flawed(folders):
    """``folders`` with a copied picture, a new picture, and a resized copy of it with the other label."""
    (folders / "no" / "copy.png").write_bytes((folders / "no" / "no03.png").read_bytes())
    smooth = np.add.outer(np.arange(64) * 2, np.arange(64)).astype(np.uint8)
    smooth[20:30, 30:50] = 240
    Image.fromarray(smooth).save(folders / "no" / "smooth.png")
    Image.fromarray(smooth).resize((50, 50)).save(folders / "yes" / "smooth-again.png")
    return folders


def test_duplicates_near_duplicates_and_contradictions_are_found(flawed, tmp_path):
    scans, _ = find_scans(flawed)
    findings = inspect(scans, decode(scans, Preprocessing(height=16, width=16), tmp_path / "p.npy").hashes)
    assert [(finding.kind, finding.files) for finding in findings] == [
        ("duplicate", ("no/copy.png", "no/no03.png")),
        ("near-duplicate", ("no/smooth.png", "yes/smooth-again.png")),
        ("contradictory", ("no/smooth.png", "yes/smooth-again.png")),
    ]
    text = table(scans, findings)
    assert "duplicate           1 groups, 2 of 33 images" in text
    assert "no/smooth.png  =  yes/smooth-again.png" in text


@pytest.mark.data
def test_reference_data_has_the_known_number_of_near_duplicates(scans, tmp_path):
    found, _ = find_scans(scans / "navoneel")
    hashes = decode(found, Preprocessing(), tmp_path / "p.npy").hashes
    findings = inspect(found, hashes)
    # 83 of the 253 images have a near-duplicate, at most 8 of 128 bits apart.
    assert len({file for finding in findings for file in finding.files}) == pytest.approx(83, abs=3)


@pytest.mark.parametrize("with_slices", [True, False])
@pytest.mark.usefixtures("folders", "small_files")
def test_full_disk_is_an_error_of_the_store(folders, tmp_path, with_slices):
    with pytest.raises(OutputError, match=rf"{re.escape(str(tmp_path))}.*: cannot write \(File too large\)"):
        collect(find_scans(folders)[0], Preprocessing(), store=tmp_path, with_slices=with_slices)


def test_error_lists_all_unreadable_scans(folders, tmp_path):
    (folders / "no" / "empty.png").touch()
    (folders / "yes" / "text.jpg").write_text("hello")
    scans, _ = find_scans(folders)
    with pytest.raises(DataError, match=r"2 of 32 scans.*no/empty\.png \(.*empty.*yes/text\.jpg \(.*--exclude"):
        decode(scans, Preprocessing(), tmp_path / "p.npy")


def test_palette_and_16_bit_pictures_are_decoded(folders, tmp_path):
    pixels = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40)
    Image.fromarray(pixels * 40).save(folders / "no" / "deep.png")
    Image.fromarray((pixels % 251).astype(np.uint8)).convert("P").save(folders / "yes" / "palette.png")
    scans, _ = find_scans(folders)
    assert len(decode(scans, Preprocessing(), tmp_path / "p.npy").pixels) == 32


def test_exclude_accepts_patterns_and_lists_and_rejects_patterns_without_a_match(folders, tmp_path):
    scans, _ = find_scans(folders)
    listing = tmp_path / "leave-out.txt"
    listing.write_text("no/no00.png\n\nyes/yes1*.png\n")
    kept, left_out = exclude(scans, [str(listing), "no/no01.png"])
    assert [scan.file for scan in left_out] == ["no/no00.png", "no/no01.png", *(f"yes/yes1{i}.png" for i in range(6))]
    assert len(kept) + len(left_out) == len(scans)
    with pytest.raises(DataError, match=r"no scan matches 'nö/\*'"):
        exclude(scans, ["nö/*"])


def test_groups_must_list_every_scan(folders, tmp_path):
    scans, _ = find_scans(folders)
    path = tmp_path / "patients.csv"
    path.write_text("file,group\n" + "".join(f"{scan.file},p{i // 3}\n" for i, scan in enumerate(scans)))
    assert read_patients(path, scans)[:4] == ["p0", "p0", "p0", "p1"]
    path.write_text("file,group\nno/no00.png,a\n")
    with pytest.raises(DataError, match="no group for 29 scans"):
        read_patients(path, scans)
    path.write_text("file,group\n" + "".join(f"{scan.file},\n" for scan in scans))
    with pytest.raises(DataError, match="no group for 30 scans"):  # an empty name is not a patient
        read_patients(path, scans)
    path.write_text("name,patient\nno/no00.png,a\n")
    with pytest.raises(DataError, match="file,group"):
        read_patients(path, scans)


def test_groups_are_read_as_spreadsheets_write_them(folders, tmp_path):
    scans, _ = find_scans(folders)
    path = tmp_path / "patients.csv"
    text = "file,group\n" + "".join(f"{scan.file},p{i // 3}\n" for i, scan in enumerate(scans))
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_patients(path, scans)[:4] == ["p0", "p0", "p0", "p1"]
    path.write_text(text.replace(",", ";"))
    with pytest.raises(DataError, match="with a comma between the columns"):
        read_patients(path, scans)


def test_a_scan_has_one_group(folders, tmp_path):
    scans, _ = find_scans(folders)
    path = tmp_path / "patients.csv"
    text = "file,group\n" + "".join(f"{scan.file},p\n" for scan in scans)
    path.write_text(text + f"{scans[0].file},p\n")
    assert read_patients(path, scans)[0] == "p"
    path.write_text(text + f"{scans[0].file},q\n")
    with pytest.raises(DataError, match="has two groups: p and q"):
        read_patients(path, scans)


def test_grouped_split_divides_no_group_and_stratified_keeps_proportions():
    rng = np.random.default_rng(4)
    labels = rng.permutation([0] * 40 + [1] * 60)
    groups = rng.integers(0, 30, 100)
    test = choose_test("grouped", labels, groups, test_fraction=0.2, seed=42)
    assert not set(groups[test]) & set(groups[~test])
    assert 10 <= test.sum() <= 30
    stratified = choose_test("stratified", labels, groups, test_fraction=0.2, seed=42)
    assert np.bincount(labels[stratified]).tolist() == [8, 12]


def test_too_few_images_are_reported():
    with pytest.raises(DataError, match="cannot be split"):
        choose_test("stratified", [0, 1, 1], [], test_fraction=0.2, seed=0)
    with pytest.raises(DataError, match="no test image has the label tumour"):
        check_roles(np.array([0, 0, 1]), np.array([True, False, False]), ("healthy", "tumour"))
