"""A bundle: one folder with a manifest and the files of one model; opened and verified. ``writing`` makes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BundleError, IntegrityError, ManifestError, UsageError
from .files import is_lfs_pointer, sha256_of
from .manifest import MANIFEST, SIGNATURE, Artefact, Document, Manifest

EMBEDDED = Path(__file__).parent / "models"
DEFAULT_MODEL = "vgg16"
MANIFEST_LIMIT = 16 << 20  # bytes; ours are some 10 kB

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest.

    Opening checks that every listed file is there with the listed size. The SHA-256 of a file is
    checked when it is asked for by ``path_of``, so that a cold ``predict`` hashes what it runs and
    not the whole folder; ``verify`` hashes everything.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, model: str | os.PathLike[str] = DEFAULT_MODEL, *, signed_by: str | os.PathLike[str] | None = None
    ) -> Bundle:
        """Open an embedded model by its name (``"vgg16"``), or a bundle folder (``"./vgg16"`` for one of such a name).

        Parameters
        ----------
        signed_by
            File of a public key (PEM, Ed25519): the bundle must be signed by it. Every file is then hashed now,
            and none may be there that the signed manifest does not list.

        Raises
        ------
        BundleError
            There is no such folder or embedded model.
        ManifestError
            The manifest is missing, broken or of another schema version.
        IntegrityError
            A listed file is missing or has another size.
        SignatureError
            It is not signed by ``signed_by``.
        UsageError
            That key cannot be read, or the extra ``sign`` is not installed.
        """
        folder = _find(model)
        text = _read_manifest(folder)
        if signed_by is None:
            return cls.read(folder, text)
        from .delivery.signature import check

        # The bytes that were checked are the bytes that are read: not the file a second time.
        check(text, _read_signature(folder), Path(signed_by), str(folder))
        bundle = cls.read(folder, text)
        bundle.check_complete()
        bundle.verify()
        return bundle

    @classmethod
    def read(cls, folder: Path, manifest: bytes) -> Bundle:
        """The bundle in ``folder`` by these bytes of its manifest; raises what ``open`` does."""
        bundle = cls(folder, Manifest.from_json(manifest, origin=str(folder / MANIFEST)))
        for entry in bundle.entries():
            bundle._check_size(entry)
        return bundle

    def manifest_bytes(self) -> bytes:
        """The manifest as it stands on disk: what a signature is of."""
        return _read_manifest(self.folder)

    def signature_bytes(self) -> bytes | None:
        """The signature that stands beside the manifest, unchecked; None if there is none."""
        return _read_signature(self.folder)

    def entries(self) -> tuple[Artefact | Document, ...]:
        """Every listed file: artefacts, then documents."""
        return (*self.manifest.artefacts, *self.manifest.documents)

    def path_of(self, entry: Artefact | Document) -> Path:
        """Path of a listed file, after its SHA-256 was compared with the manifest's.

        Raises
        ------
        IntegrityError
            The file was changed.
        """
        self._check_size(entry)
        path = self.folder / entry.file
        found = sha256_of(path)
        if found != entry.sha256:
            raise IntegrityError(
                f"{path}: SHA-256 is {found[:12]}…, the manifest says {entry.sha256[:12]}…",
                "The file was changed or damaged: copy the bundle again",
            )
        return path

    def verify(self) -> None:
        """Hash every listed file. Raises IntegrityError at the first that differs."""
        for entry in self.entries():
            self.path_of(entry)

    def artefact(self, name: str) -> Artefact:
        """Artefact by file name, with or without the leading ``model.``: ``"int8.onnx"``.

        Raises
        ------
        UsageError
            The bundle has none of that name; the message lists those it has.
        """
        found = self.manifest.artefact(name) or self.manifest.artefact(f"model.{name}")
        if found is None:
            known = ", ".join(one.file for one in self.manifest.artefacts) or "none"
            raise UsageError(f"{self.folder}: no artefact {name!r}", f"It has: {known}")
        return found

    def check_complete(self) -> None:
        """Raise IntegrityError if the folder holds a link, or a file that the manifest does not list.

        A model file may name others beside it, and an engine would open them unchecked.
        """
        for path in self.strangers():
            raise IntegrityError(
                f"{path}: {'a link' if path.is_symlink() else 'no file that the manifest lists'}",
                "A signed bundle holds what was signed and nothing else: remove it",
            )

    def strangers(self) -> Iterator[Path]:
        """What lies in the folder and is a link, or no file that the manifest lists."""
        listed = {MANIFEST, SIGNATURE, *(one.file for one in self.entries())}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or (path.is_file() and name in listed)):
                yield path

    def _check_size(self, entry: Artefact | Document) -> None:
        path = self.folder / entry.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise IntegrityError(
                f"{path}: listed in the manifest but cannot be read ({error.strerror})", "Copy the bundle again"
            ) from error
        if size != entry.size_bytes:
            with open(path, "rb") as file:
                if is_lfs_pointer(file.read(64)):
                    raise IntegrityError(f"{path}: is a Git LFS pointer, not the file", "Run 'git lfs pull'")
            raise IntegrityError(
                f"{path}: {size} bytes, the manifest says {entry.size_bytes}",
                "The file was changed or not copied to its end: copy the bundle again",
            )


def _read_manifest(folder: Path) -> bytes:
    try:
        with open(folder / MANIFEST, "rb") as file:
            text = file.read(MANIFEST_LIMIT + 1)
    except FileNotFoundError as error:
        raise ManifestError(
            f"{folder}: no {MANIFEST} in it", "A bundle is made by 'mri-edge train' and 'mri-edge export'"
        ) from error
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST}: cannot read ({error.strerror})") from error
    if len(text) > MANIFEST_LIMIT:
        raise ManifestError(f"{folder / MANIFEST}: larger than {MANIFEST_LIMIT >> 20} MiB")
    return text


def _read_signature(folder: Path) -> bytes | None:
    try:
        with open(folder / SIGNATURE, "rb") as file:
            return file.read(1024)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{folder / SIGNATURE}: cannot read ({error.strerror})") from error


def _find(model: str | os.PathLike[str]) -> Path:
    folder = Path(model)
    embedded = EMBEDDED / folder.name
    if folder.name == str(model) and os.path.isdir(embedded):  # whatever lies where the program was started
        if os.path.isfile(folder / MANIFEST):
            _log.warning("%s: the model that comes with the package, not the bundle here, which is ./%s", model, model)
        return embedded
    if os.path.isdir(folder):
        return folder
    names = ", ".join(embedded_models()) or "none"
    if os.path.isfile(folder):
        raise BundleError(
            f"{folder}: is a file, a bundle is a folder", "If it is packed: 'mri-edge bundle unpack' first"
        )
    raise BundleError(f"{model}: no such bundle folder", f"Embedded models: {names}")


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(one.name for one in EMBEDDED.iterdir() if (one / MANIFEST).is_file())
