"""What a header says about patient and study: values that break the standard are left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mri_edge.errors import InputError
from mri_edge.scans.patient import IDENTIFIERS, identifiers, read_study, taken_at

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = EXAMPLES / "dicom" / "mni152-slice-2.dcm"
UID = str(pydicom.dcmread(DEMO).SOPInstanceUID)


def changed(path: Path, **values: str) -> str:
    dataset = pydicom.dcmread(DEMO)
    reading = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    finally:
        pydicom.config.settings.reading_validation_mode = reading
    return str(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("StudyDate", "2020-02-03", "20200203"),
        ("StudyDate", "1999.12.31", "19991231"),
        ("StudyDate", "20201301", None),
        ("StudyDate", "yesterday", None),
        ("StudyTime", "12", "120000"),
        ("StudyTime", "12:34:56.7", "123456"),
        ("StudyTime", "99", None),
        ("PatientSex", "unknown", None),
        ("PatientSex", "F", "F"),
        ("PatientID", "  A 1 ", "A 1"),
        ("PatientID", "", None),
    ],
)
def test_values_are_checked(tmp_path: Path, keyword: str, value: str, expected: str | None) -> None:
    assert read_study(changed(tmp_path / "a.dcm", **{keyword: value})).get(keyword) == expected


def test_names_are_decoded_by_the_character_set_of_the_file(tmp_path: Path) -> None:
    for charset, name in (("ISO_IR 192", "山田^太郎"), ("ISO_IR 100", "Müller^Änne")):
        path = changed(tmp_path / "a.dcm", SpecificCharacterSet=charset, PatientName=name)
        assert identifiers({path: UID})["patient_name"] == name


def test_the_time_of_a_slice_is_the_best_that_the_header_has() -> None:
    study = {"StudyDate": "20200101", "StudyTime": "080000"}
    assert taken_at(study) == ("20200101", "080000")
    assert taken_at({**study, "ContentDate": "20200102"}) == ("20200102", "000000")
    assert taken_at({"StudyTime": "080000"}) is None


def test_only_dicom_files_have_identifiers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no identifiers: it cannot be read a second time"):
        identifiers({str(EXAMPLES / "phantom-1.jpg"): None})
    assert set(identifiers({str(DEMO): UID})) == set(IDENTIFIERS)
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(tmp_path / "pipe.dcm")
    with pytest.raises(InputError, match="not a DICOM file"):  # reading the pipe would wait forever
        read_study(str(tmp_path / "pipe.dcm"))
