"""Synthetic DICOM objects, which have the name of a patient."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

AXIAL = [1, 0, 0, 0, 1, 0]
SECRET = "Zzyzx^Quentin"  # noqa: S105 (a name that no message may contain)


def make(pixels: np.ndarray | None = None, syntax: str = ExplicitVRLittleEndian, **values: Any) -> Dataset:
    """An MR image of one frame, or several if ``pixels`` has three dimensions."""
    pixels = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) if pixels is None else pixels
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.4", "1.2.3", "1.2"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.Modality = "MR"
    dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = SECRET
    dataset.PatientBirthDate = "19700101"
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = AXIAL, [-20, -30, 12.5]
    dataset.PixelSpacing = [1, 1]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.WindowCenter, dataset.WindowWidth = 1500, 3000
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
