"""Mutate NIfTI and DICOM files, and check the readers' limits: frames or InputError, no crash, 5 s of CPU, 500 MB.

    python tests/hostile/fuzz_scans.py nifti|dicom [MUTATIONS] [SEED]

prints the largest CPU time and memory seen, and the seed of what broke a limit: ``nifti(SEED)`` or ``dicom(SEED)``
makes the file again. The evidence for a release is a run with 100,000 mutations of each.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
from fuzzing import change, report

from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

_MODELS = Preprocessing(), Preprocessing(framing="head", resize="antialiased")  # of vgg16 and of lite
_MAX_FRAMES = 50  # a mutated header may declare thousands, each of which is bounded alone


@lru_cache(maxsize=1)
def nifti_seeds() -> tuple[bytes, ...]:
    """Make valid volumes of 9 x 8 x 7 voxels of every kind, version and byte order, in several orientations."""
    import nibabel

    values = np.random.default_rng(0).integers(0, 120, (9, 8, 7))
    affines = [np.eye(4), np.eye(4)[[1, 2, 0, 3]], np.diag([-1.0, 1, 5, 1])]
    found = []
    kinds = ("uint8", "int16", "uint16", "int32", "float32", "float64")
    for number, (kind, order, image) in enumerate(product(kinds, "<>", (nibabel.Nifti1Image, nibabel.Nifti2Image))):
        header = image.header_class(endianness=order)
        volume = image(values.astype(kind), affines[number % 3], header, dtype=kind)
        volume.header["cal_max"] = 100 * (number % 2)
        volume.header.set_slope_inter(2, -10) if number % 4 == 0 else None
        found.append(volume.to_bytes())
    return tuple(found)


def nifti(seed: int) -> bytes:
    """Change a valid volume, or compress a changed one, or change a compressed one."""
    rng = random.Random(seed)
    content = rng.choice(nifti_seeds())
    action = rng.random()
    if action < 0.5:
        return change(content, rng)
    if action < 0.75:
        return gzip.compress(change(content, rng), 1, mtime=0)
    return change(gzip.compress(content, 1, mtime=0), rng)


@lru_cache(maxsize=1)
def dicom_seeds() -> tuple[bytes, ...]:
    """Return pydicom's own small MR files in every transfer syntax it has, and multi-frame files."""
    from pydicom.data import get_testdata_file

    names = [
        "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
        "MR-SIEMENS-DICOM-WithOverlays.dcm",
        "image_dfl.dcm", "no_meta.dcm",
    ]  # fmt: skip
    found = [Path(str(path)).read_bytes() for name in names if (path := get_testdata_file(name, download=False))]
    return (*found, *(_written(*arguments) for arguments in product((False, True), ("plain", "deflated", "window"))))


def _written(enhanced: bool, form: str) -> bytes:
    """Write a small MR image, or an Enhanced MR image with three frames and functional groups."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        EnhancedMRImageStorage,
        ExplicitVRLittleEndian,
        MRImageStorage,
    )

    def item(**elements: Any) -> Sequence:
        inner = Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        return Sequence([inner])

    frames = 3 if enhanced else 1
    scan = Dataset()
    scan.SOPClassUID = EnhancedMRImageStorage if enhanced else MRImageStorage
    scan.SOPInstanceUID, scan.StudyInstanceUID, scan.SeriesInstanceUID = "2.25.1", "2.25.2", "2.25.3"
    scan.Modality, scan.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "NONE"]
    scan.Rows, scan.Columns, scan.SamplesPerPixel, scan.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
    window = {"WindowCenter": [600, 40], "WindowWidth": [1200, 400], "VOILUTFunction": "SIGMOID"}
    if enhanced:
        scan.NumberOfFrames = frames
        scan.SharedFunctionalGroupsSequence = item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
            PixelMeasuresSequence=item(PixelSpacing=[1, 2], SliceThickness=3),
            PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=-5, RescaleType="US"),
        )
        groups = [
            item(PlanePositionSequence=item(ImagePositionPatient=[5 * index, 0, 0]))[0] for index in range(frames)
        ]
        if form == "window":
            for group in groups:
                group.FrameVOILUTSequence = item(**window)
        scan.PerFrameFunctionalGroupsSequence = Sequence(groups)
    else:
        scan.ImageOrientationPatient, scan.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 7]
        scan.PixelSpacing = [2, 1]
        if form == "window":
            scan.PixelPaddingValue, scan.WindowCenter, scan.WindowWidth = 0, [600, 40], [1200, 400]
            scan.PhotometricInterpretation = "MONOCHROME1"
            scan.ModalityLUTSequence = item(LUTDescriptor=[16, 0, 16], ModalityLUTType="US", LUTData=bytes(range(32)))
    scan.PixelData = np.random.default_rng(1).integers(0, 1200, (frames, 20, 24), np.uint16).tobytes()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if form == "deflated" else ExplicitVRLittleEndian
    file = io.BytesIO()
    scan.save_as(file, enforce_file_format=True)
    return file.getvalue()


def dicom(seed: int) -> bytes:
    """Change a valid file. In a deflated one, mostly change what it holds."""
    rng = random.Random(seed)
    content = rng.choice(dicom_seeds())
    deflated = content.find(b"1.2.840.10008.1.2.1.99", 0, 400)
    if deflated < 0 or rng.random() < 0.3:
        # Most of the elements come before the pixels, and few within the first 300 bytes.
        start = rng.choice((0, 128, 300, 600, 1000))
        return content[:start] + change(content[start:], rng) if start < len(content) else change(content, rng)
    start = 144 + int.from_bytes(content[140:144], "little")  # the group length of the file meta information
    try:
        inner = zlib.decompress(content[start:], -15)
    except zlib.error:
        return change(content, rng)
    packer = zlib.compressobj(1, wbits=-15)
    return content[:start] + packer.compress(change(inner, rng)) + packer.flush()


MUTATIONS: dict[str, Callable[[int], bytes]] = {"nifti": nifti, "dicom": dicom}
_SEEDS: dict[str, Callable[[], tuple[bytes, ...]]] = {"nifti": nifti_seeds, "dicom": dicom_seeds}


def read(content: bytes) -> None:
    """Read and resize the first frames."""
    # Not only MR, so that a changed modality does not end it.
    for frame in islice(readers.read(content, ReadOptions(any_modality=True)), _MAX_FRAMES):
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.ndim == 3
        for preprocessing in _MODELS:
            preprocessing.resize_picture(frame.pixels)


if __name__ == "__main__":
    kind = sys.argv[1]
    total, start = int(sys.argv[2]) if len(sys.argv) > 2 else 2000, int(sys.argv[3]) if len(sys.argv) > 3 else 0
    for valid in _SEEDS[kind]():  # import everything here, and not once more in each process
        with suppress(InputError):  # no_meta.dcm has no preamble, and its content does not look like DICOM
            read(valid)
    report(fuzzing.run_apart(MUTATIONS[kind], read, total, start))
