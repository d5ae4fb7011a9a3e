"""The split record ``split.json``: which images were used for training, validation and test.

Training writes it. Export (calibration, parity), evaluation and benchmarks read it, so that no test image is used for
calibration and no training image is scored. A slim bundle contains the condensed form ``split.npy`` without the names
of images, because scoring needs only their hashes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mri_edge.errors import DataError, ManifestError
from mri_edge.storage.atomic import fingerprint, sha256_of

from .decode import parse, read, read_array

if TYPE_CHECKING:
    from .bundle import Bundle

SPLIT = "split.json"
CONDENSED = "split.npy"
Role = Literal["train", "validation", "test", "excluded"]
_ROLES = get_args(Role)
_SHA256 = re.compile("[0-9a-f]{64}")
_REMEDY = "Make or copy the bundle again"
_DIGITS = 16  # of the SHA-256 in a condensed record: for a million images the chance of a collision is 10^-7


@dataclass(frozen=True)
class SplitImage:
    """One image: path relative to the data folder with ``/``, SHA-256 of the file, label index, role.

    In a condensed record ``file`` is empty and ``sha256`` only has the first digits: compare ``short(sha256)``.
    """

    file: str
    sha256: str
    label: int
    role: Role


def short(sha256: str) -> str:
    """Return the first digits of a SHA-256, which both condensed and full records contain."""
    return sha256[:_DIGITS]


@dataclass(frozen=True)
class Split:
    """All images of a training run, in the recipe's order."""

    images: tuple[SplitImage, ...]

    def of(self, role: Role) -> list[SplitImage]:
        """Return the images with that role, in order."""
        return [image for image in self.images if image.role == role]

    def without(self, contents: Container[str]) -> Split:
        """Return the split without the images that have one of these hashes."""
        return Split(tuple(image for image in self.images if image.sha256 not in contents))

    @property
    def data_fingerprint(self) -> str:
        """SHA-256 over names, contents and labels of all images."""
        return fingerprint(f"{image.file}\0{image.sha256}\0{image.label}" for image in self.images)

    @property
    def split_fingerprint(self) -> str:
        """SHA-256 over contents and roles."""
        return fingerprint(f"{image.sha256}\0{image.role}" for image in self.images)

    def to_json(self) -> str:
        """Return JSON text with one image per line, so that two splits can be compared line by line."""
        lines = ",\n".join("  " + json.dumps(asdict(image), ensure_ascii=False) for image in self.images)
        return f'{{"images": [\n{lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = SPLIT) -> Split:
        """Read what ``to_json`` wrote. Raises ManifestError, which names ``origin``, if it is something else."""
        split = read(cls, parse(text, origin), origin)
        for image in split.images:
            if not _stays_inside(image.file):
                raise ManifestError(f"{origin}: {image.file!r}: images must be inside the data folder")
            if not _SHA256.fullmatch(image.sha256):
                shown = repr(image.sha256[:64])
                raise ManifestError(f"{origin}: {image.file!r}: {shown} is no SHA-256 in hexadecimal digits", _REMEDY)
            if not 0 <= image.label < 256:  # a byte of the condensed record
                raise ManifestError(f"{origin}: {image.file!r}: a label is 0 to 255, not {image.label}", _REMEDY)
        return split

    def to_condensed(self) -> bytes:
        """Return a NumPy file, uint8 (N, 10): role, label and the first 8 bytes of the SHA-256 of each image."""
        rows = [
            bytes([_ROLES.index(image.role), image.label]) + bytes.fromhex(short(image.sha256)) for image in self.images
        ]
        file = io.BytesIO()
        np.save(file, np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 2 + _DIGITS // 2), allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_condensed(cls, content: bytes, origin: str = CONDENSED) -> Split:
        """Read what ``to_condensed`` wrote. Raises ManifestError, which names ``origin``, if it is something else."""
        rows = read_array(content, origin)
        if (
            rows.dtype != np.uint8
            or rows.ndim != 2
            or rows.shape[1:] != (2 + _DIGITS // 2,)
            or (rows[:, 0] >= len(_ROLES)).any()
        ):
            raise ManifestError(f"{origin}: not a condensed split record. Received: {rows.dtype} {rows.shape}")
        return cls(tuple(SplitImage("", row[2:].tobytes().hex(), int(row[1]), _ROLES[row[0]]) for row in rows))

    @classmethod
    def find(cls, files: Container[str], content: Callable[[str], bytes]) -> Split | None:
        """Read the full or condensed record of a bundle with these ``files`` by ``content(file)``; None without one."""
        if SPLIT in files:
            return cls.from_json(content(SPLIT))
        return cls.from_condensed(content(CONDENSED)) if CONDENSED in files else None

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Split | None:
        """Read a bundle's split record, full or condensed, after a hash check; None if it has none."""
        documents = {document.file: document for document in bundle.manifest.documents}
        return cls.find(documents, lambda file: bundle.read(documents[file]))

    def locate(self, data: Path, role: Role) -> list[tuple[Path, int]]:
        """Return the paths below ``data`` and the labels of the images with ``role``, after checking their hashes.

        Raises
        ------
        DataError
            An image is missing or differs from the recorded one.
        """
        found = []
        for image in self.of(role):
            path = data / image.file
            if not path.is_file():
                raise DataError(
                    f"{path}: is missing, but the bundle was trained with this image",
                    "Name with --data the folder that training used",
                )
            if sha256_of(path) != image.sha256:
                raise DataError(
                    f"{path}: differs from the image of this name in training",
                    "Name with --data the folder that training used",
                )
            found.append((path, image.label))
        return found


def _stays_inside(file: str) -> bool:
    """Whether a path stays in the data folder on this system. The name of an image may contain any character."""
    path = PurePath(file)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in file
