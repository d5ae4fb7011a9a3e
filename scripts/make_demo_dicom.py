"""Write a demo scan of ``examples/`` as a scanner would: an MR image in DICOM with 12-bit values and a window.

    python scripts/make_demo_dicom.py [FOLDER]

The picture is the mirror image of ``mni152-slice-2.jpg``, which ``make_demo_scans.py`` draws as seen from the head; in
DICOM the patient's left is on the right. Every identifier is derived from fixed names, and neither the date nor the
version of a library is written, so that every run gives the same bytes.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import numpy as np
from make_demo_scans import CENTER, EXAMPLES, FIELD, SCANS, SIZE, Scan, draw, load_template
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

NAME = "mni152-slice-2"
LEVELS = 4096  # 12 bits, as most scanners store


def dataset(scan: Scan) -> Dataset:
    """Draw a scan and describe it as the MR Image IOD requires (PS3.3 A.4). Its coordinates are MNI's, in LPS+."""
    values = (draw(scan, load_template())[:, ::-1] * (LEVELS - 1)).round().astype(np.uint16)
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, _uid(f"instance {scan.name}")
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid("study"), _uid("series")
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = _uid("MNI152"), ""
    image.StudyDate, image.StudyTime = "20090101", "000000"  # the template is of 2009
    image.AccessionNumber = image.ReferringPhysicianName = ""
    image.Modality, image.Manufacturer = "MR", "mri-edge"
    image.StudyDescription = "Demo: MNI152 template, not a patient"
    image.SeriesDescription = "T1 with a drawn skull"
    image.DerivationDescription = "Slice of the average T1 brain of 152 people; skull, scalp and noise were drawn"
    image.PatientName, image.PatientID = "MNI152^Template", "MNI152"
    image.PatientBirthDate, image.PatientSex, image.BodyPartExamined = "", "O", "HEAD"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
    image.MRAcquisitionType, image.EchoTrainLength = "3D", None
    image.RepetitionTime = image.EchoTime = None  # unknown: the average of many scans
    image.PatientPosition, image.StudyID = "HFS", "DEMO"
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 1, 1, 1
    step = FIELD / SIZE
    image.PixelSpacing, image.SliceThickness = [f"{step:.6f}"] * 2, "1"
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    first = -FIELD / 2 + step / 2  # of the field's center
    image.ImagePositionPatient = [f"{value:.4f}" for value in (first - CENTER[0], first - CENTER[1], scan.height)]
    image.Rows, image.Columns = values.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.WindowCenter, image.WindowWidth = LEVELS // 2, LEVELS  # the whole range: PS3.3 C.11.2.1.2.1
    image.BurnedInAnnotation = "NO"
    image.PixelData = values.astype("<u2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = _uid("implementation")
    image.file_meta.ImplementationVersionName = "MRI_EDGE"
    return image


def _uid(name: str) -> UID:
    """Derive an identifier from a name (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'mri-edge demo: {name}').int}")


def main(folder: Path = EXAMPLES / "dicom") -> None:
    """Write the file into ``folder``."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{NAME}.dcm"
    dataset(next(scan for scan in SCANS if scan.name == NAME)).save_as(path, enforce_file_format=True)
    print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
