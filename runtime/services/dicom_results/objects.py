"""What the report and the captures have in common: patient, study, dates, and identifiers that follow from the content.

The identifier of an object is a hash of everything else in it, so two objects with the same one are equal, byte for
byte. An archive takes a result that is sent again as the one that it has, and one that differs as a new one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from mri_edge import __version__
from mri_edge.inference.series import Ran

from .origin import Origin, derived_uid, digest

if TYPE_CHECKING:
    from pydicom import Dataset

SERIES_DESCRIPTION = "AI: research use only"
PROGRAM = "mri-edge"
PLACEHOLDER_UID = "2.25.0"  # stands for the identifier of the instance until the rest of the object is known
_LONGEST = 64  # characters of a long string (LO)
_IMPLEMENTATION_UID = derived_uid(digest(PROGRAM, "implementation"))
# Required in every object, empty if the scan has none (PS3.3 C.7.1.1, C.7.2.1).
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
_OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod")


@dataclass(frozen=True)
class ResultObject:
    """One object: the name for its file, what identifies it, and its bytes as a DICOM file.

    ``slices`` identifies the slices that a report is about; see ``origin.slice_keys``.
    """

    name: str
    study: str
    series: str
    sop_class: str
    instance: str
    content: bytes
    slices: tuple[str, ...] = ()


def complete(
    dataset: Dataset, origin: Origin, ran: Ran, kind: str, *, series_number: int, instance_number: int
) -> None:
    """Set the elements that every object has, except the identifier of the instance.

    The patient and the study are those of the scan, because archives file an object by them.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    for keyword in _REQUIRED:
        setattr(dataset, keyword, origin.study.get(keyword, ""))
    for keyword in _OPTIONAL:
        if keyword in origin.study:
            setattr(dataset, keyword, origin.study[keyword])
    if origin.study.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in origin.study:
        dataset.DeidentificationMethod = "As stated in the source images"  # required where the identity was removed
    dataset.StudyInstanceUID = origin.study["StudyInstanceUID"]
    dataset.SeriesInstanceUID = derived_uid(digest(origin.series_key, kind))
    dataset.SeriesNumber, dataset.InstanceNumber = series_number, instance_number
    dataset.SeriesDescription = SERIES_DESCRIPTION
    dataset.Manufacturer = dataset.ManufacturerModelName = PROGRAM
    dataset.SoftwareVersions = [__version__, ran.manifest.title.encode("ascii", "replace").decode()[:_LONGEST]]
    dataset.ContentDate, dataset.ContentTime = origin.date, origin.time
    dataset.SOPInstanceUID = PLACEHOLDER_UID
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):  # optional, and the present time would vary
        if keyword in dataset:
            delattr(dataset, keyword)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(PLACEHOLDER_UID)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION_UID)
    dataset.file_meta.ImplementationVersionName = "MRI_EDGE"


def finish(dataset: Dataset, name: str) -> ResultObject:
    """Give a complete dataset the identifier that follows from its content, and return it as a file."""
    from pydicom.uid import UID

    instance = UID(derived_uid(hashlib.sha256(_file(dataset)).hexdigest()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
    return ResultObject(
        name=name,
        study=str(dataset.StudyInstanceUID),
        series=str(dataset.SeriesInstanceUID),
        sop_class=str(dataset.SOPClassUID),
        instance=instance,
        content=_file(dataset),
    )


def _file(dataset: Dataset) -> bytes:
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
