"""Read what a DICOM header says about the patient and the study.

Nothing else reads it: results, logs and file names contain none of it, unless the caller asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from mri_edge.errors import InputError

from . import readers
from .files import special_file_kind

# The elements of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1) by which an archive files an object, and
# whether the picture shows any of it.
_TAGS = {
    "StudyDate": 0x00080020,
    "StudyTime": 0x00080030,
    "AccessionNumber": 0x00080050,
    "ReferringPhysicianName": 0x00080090,
    "StudyDescription": 0x00081030,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "PatientBirthDate": 0x00100030,
    "PatientSex": 0x00100040,
    "PatientIdentityRemoved": 0x00120062,
    "DeidentificationMethod": 0x00120063,
    "StudyInstanceUID": 0x0020000D,
    "StudyID": 0x00200010,
    "BurnedInAnnotation": 0x00280301,
}
_INSTANCE = {"SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018, "SeriesInstanceUID": 0x0020000E}
# When a slice was made, from the best to the weakest evidence.
_TIMES = {
    "AcquisitionDate": 0x00080022,
    "AcquisitionTime": 0x00080032,
    "ContentDate": 0x00080023,
    "ContentTime": 0x00080033,
    "SeriesDate": 0x00080021,
    "SeriesTime": 0x00080031,
}
_IDENTIFYING = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "birth_date": "PatientBirthDate",
    "accession_number": "AccessionNumber",
}
IDENTIFIERS = tuple(_IDENTIFYING)
"""Keys of ``identifiers``."""

_DATE = re.compile(r"(\d{4})[-.]?(0[1-9]|1[0-2])[-.]?(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d)?(\.\d{1,6})?")


def read_study(source: str) -> dict[str, str]:
    """Return the elements of a DICOM file that describe its patient, study, instance and time, by their keywords.

    An element without a value is left out, and so is a date, a time or a sex that breaks the standard.

    Raises
    ------
    InputError
        The file is not DICOM, or its header cannot be read.
    """
    reader = readers.reader_of(source)
    if special_file_kind(source) or reader is None or reader.NAME != "dicom":
        raise InputError(f"{source}: not a DICOM file", code="unsupported")
    from .readers import dicom

    keywords = {tag: keyword for keyword, tag in {**_TAGS, **_INSTANCE, **_TIMES}.items()}
    found = {keywords[tag]: text for tag, text in dicom.texts(source, keywords).items()}
    clean: dict[str, Callable[[str], str]] = {"Date": _date, "Time": _time, "tSex": _sex}
    for keyword in list(found):
        if (check := clean.get(keyword[-4:])) is not None:
            found[keyword] = check(found[keyword])
    return {keyword: text for keyword, text in found.items() if text}


def taken_at(study: dict[str, str]) -> tuple[str, str] | None:
    """Return date and time of a slice as DICOM writes them, from what ``read_study`` returned; None without a date."""
    for kind in ("Acquisition", "Content", "Series", "Study"):
        if date := study.get(f"{kind}Date"):
            return date, study.get(f"{kind}Time", "000000")
    return None


def patients(studies: Iterable[dict[str, str]]) -> set[tuple[str | None, str | None]]:
    """Return the patients to which headers belong, from what ``read_study`` returned."""
    return {(study.get("IssuerOfPatientID"), study.get("PatientID")) for study in studies}


def identifiers(instances: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return name, patient ID, birth date and accession number of the first of some DICOM files of one patient.

    Parameters
    ----------
    instances
        The classified files, each with the SOP Instance UID that it had then, or None if it had none.

    Raises
    ------
    InputError
        A file cannot be read any more, a file holds another instance now, or the files belong to different patients.
    """
    studies = [_study_of(source, instance) for source, instance in instances.items()]
    if len(patients(studies)) > 1:
        first = next(iter(instances))
        raise InputError(f"{first}: no identifiers: its slices belong to different patients", code="unsupported")
    return {key: studies[0].get(keyword) for key, keyword in _IDENTIFYING.items()}


def _study_of(source: str, instance: str | None) -> dict[str, str]:
    from .readers import dicom

    try:
        study = read_study(source)
    except InputError as error:
        raise InputError(f"{source}: no identifiers: it cannot be read a second time", "Classify it again") from error
    if dicom.uid_of(study.get("SOPInstanceUID", "")) != instance:
        raise InputError(f"{source}: no identifiers: it has changed since it was classified", "Classify it again")
    return study


def _date(text: str) -> str:
    found = _DATE.fullmatch(text)
    return "".join(found.groups()) if found else ""


def _sex(text: str) -> str:
    return text if text in ("M", "F", "O") else ""


def _time(text: str) -> str:
    found = _TIME.fullmatch(text)
    return "".join(part or "00" for part in found.groups()[:3]) if found else ""
