"""A bundle: one folder with a manifest and the files of one model; opened and verified. ``writing`` makes them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mri_edge.errors import BundleError, IntegrityError, ManifestError, UsageError, printable
from mri_edge.storage.atomic import sha256_of
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from .archive import Archive
from .manifest import MANIFEST, MANIFEST_LIMIT, SIGNATURE, Artifact, Document, Manifest
from .onnx_external import outside_part

EMBEDDED = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "vgg16"
REQUIRE_SIGNATURE = "MRI_EDGE_REQUIRE_SIGNATURE"  # names the file of a public key

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies and its checked manifest.

    ``folder`` is the bundle's folder or, with an ``archive``, the packed file. Opening checks that every listed file is
    there with the listed size. The SHA-256 of a file is checked when it is asked for by ``read``, so that a cold
    ``predict`` hashes what it runs and not the whole folder; ``verify`` hashes everything.
    """

    folder: Path
    manifest: Manifest
    archive: Archive | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, model: str | os.PathLike[str] = DEFAULT_MODEL, *, signed_by: str | os.PathLike[str] | None = None
    ) -> Bundle:
        """Open an embedded model by its name (``"vgg16"``), a bundle folder (``"./vgg16"`` for one of such a name), or
        a packed bundle.

        Parameters
        ----------
        signed_by
            File of a public key (PEM, Ed25519): the bundle must be signed by it. Every file is then hashed now,
            and none may be there that the signed manifest does not list. Default: what the environment variable
            ``MRI_EDGE_REQUIRE_SIGNATURE`` names, so that no way of opening a bundle passes it by.

        Raises
        ------
        BundleError
            There is no such bundle or embedded model.
        ManifestError
            The manifest is missing, broken or of another schema version.
        IntegrityError
            A listed file is missing or has another size.
        SignatureError
            It is not signed by ``signed_by``.
        UsageError
            That key cannot be read or its name is empty, or the extra ``sign`` is not installed.
        """
        signed_by = os.environ.get(REQUIRE_SIGNATURE) if signed_by is None else signed_by
        if signed_by is None:
            return cls.open_unsigned(model)
        place = _find(model)
        if os.path.isfile(place):
            return cls.open_packed(place, signed_by=signed_by)
        text = _read_manifest(place)
        # The bytes that were checked are the bytes that are read: not the file a second time.
        _check_signature(text, _read_signature(place), signed_by, place)
        bundle = cls.from_manifest(place, text)
        bundle.check_complete()
        bundle.verify()
        return bundle

    @classmethod
    def open_unsigned(cls, model: str | os.PathLike[str]) -> Bundle:
        """Open a bundle whether it is signed or not, for what makes, changes and signs bundles; errors as ``open``."""
        place = _find(model)
        if os.path.isfile(place):
            return cls._from_archive(Archive(place))
        return cls.from_manifest(place, _read_manifest(place))

    @classmethod
    def open_packed(cls, file: Path, *, signed_by: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a packed bundle and check all of it; parameters and errors as for ``open``."""
        signed_by = os.environ.get(REQUIRE_SIGNATURE) if signed_by is None else signed_by
        archive = Archive(file)
        if signed_by is not None:
            _check_signature(archive.manifest, archive.signature, signed_by, file)
        bundle = cls._from_archive(archive)
        bundle.verify()
        return bundle

    @classmethod
    def _from_archive(cls, archive: Archive) -> Bundle:
        manifest = Manifest.from_json(archive.manifest, origin=str(archive.path / MANIFEST))
        archive.place(manifest)
        archive.check_end()
        return cls(archive.path, manifest, archive)

    @classmethod
    def from_manifest(cls, folder: Path, manifest: bytes) -> Bundle:
        """The bundle in ``folder`` by these bytes of its manifest; raises what ``open`` does."""
        bundle = cls(folder, Manifest.from_json(manifest, origin=str(folder / MANIFEST)))
        for entry in bundle.entries():
            bundle._check_size(entry)
        return bundle

    def require_folder(self) -> Path:
        """The bundle's folder, for what writes into it. Raises BundleError if the bundle is packed."""
        if self.archive:
            raise BundleError(f"{self.folder}: is packed, a folder is needed", "Unpack it: 'mri-edge bundle unpack'")
        return self.folder

    def manifest_bytes(self) -> bytes:
        """The manifest as it stands on disk: what a signature is of."""
        return self.archive.manifest if self.archive else _read_manifest(self.folder)

    def signature_bytes(self) -> bytes | None:
        """The signature that stands beside the manifest, unchecked; None if there is none."""
        return self.archive.signature if self.archive else _read_signature(self.folder)

    def entries(self) -> tuple[Artifact | Document, ...]:
        """Every listed file: artefacts, then documents."""
        return (*self.manifest.artefacts, *self.manifest.documents)

    def read(self, entry: Artifact | Document) -> bytes:
        """Content of a listed file whose SHA-256 is the manifest's.

        The file is read once and these bytes are hashed: use them, for the file may be another by now.

        Raises
        ------
        IntegrityError
            The file was changed or cannot be read.
        BundleError
            An ONNX file that keeps a part of itself in another file.
        """
        path = self.folder / entry.file
        if self.archive:
            content = self.archive.read(entry)
        else:
            self._check_size(entry)  # before a file that was exchanged for a huge one is read
            try:
                with open(path, "rb") as file:
                    content = file.read(entry.size_bytes + 1)
            except OSError as error:
                raise _unreadable(path, error) from error
        self._check_hash(path, entry, hashlib.sha256(content).hexdigest())
        if isinstance(entry, Artifact):
            check_self_contained(content, path)
        return content

    def path_of(self, entry: Artifact | Document) -> Path:
        """Path of a listed file, after its SHA-256 was compared with the manifest's.

        The file may be exchanged before the path is opened: use ``read`` wherever bytes will do.

        Raises
        ------
        IntegrityError
            The file was changed.
        BundleError
            The bundle is packed.
        """
        path = self.require_folder() / entry.file
        self._check_size(entry)
        self._check_hash(path, entry, sha256_of(path))
        return path

    def verify(self) -> None:
        """Hash every listed file. Raises IntegrityError at the first that differs."""
        for entry in self.entries():
            self.read(entry)

    def artefact(self, name: str) -> Artifact:
        """Artifact by file name, with or without the leading ``model.``: ``"int8.onnx"``.

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
        """What lies in the folder and is a link, or no file that the manifest lists; nothing in a packed bundle."""
        if self.archive:
            return
        listed = {MANIFEST, SIGNATURE, *(one.file for one in self.entries())}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or (path.is_file() and name in listed)):
                yield path

    def _check_size(self, entry: Artifact | Document) -> None:
        path = self.folder / entry.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != entry.size_bytes:
            with suppress(OSError), open(path, "rb") as file:  # a folder stands there, or nobody may read it
                if is_lfs_pointer(file.read(64)):
                    raise IntegrityError(f"{path}: is a Git LFS pointer, not the file", HINT)
            raise IntegrityError(
                f"{path}: {size} bytes, the manifest says {entry.size_bytes}",
                "The file was changed or not copied to its end: copy the bundle again",
            )

    def _check_hash(self, path: Path, entry: Artifact | Document, found: str) -> None:
        if found != entry.sha256:
            raise IntegrityError(
                f"{path}: SHA-256 is {found[:12]}…, the manifest says {entry.sha256[:12]}…",
                "The file was changed or damaged: copy the bundle again",
            )


def check_self_contained(content: bytes, path: Path) -> None:
    """Raise BundleError for an ONNX file that keeps a part of itself in another file, which no hash would cover."""
    if not path.name.endswith(".onnx"):
        return
    try:
        outside = outside_part(content)
    except ValueError:  # whatever it is, no engine opens it: see ``engines.open_engine``
        return
    if outside:
        raise BundleError(
            f"{path}: {printable(outside)} lies in another file, which the manifest does not list",
            "Save the model with all of its weights inside (onnx.save without external data), and export it again",
        )


def _check_signature(manifest: bytes, signature: bytes | None, key: str | os.PathLike[str], origin: Path) -> None:
    if not os.fspath(key):
        raise UsageError(
            f"--require-signature and {REQUIRE_SIGNATURE} must name a public key. Received: nothing",
            "Name the PEM file of the key, or leave both out",
        )
    from .signatures import check

    check(manifest, signature, Path(key), str(origin))


def _unreadable(path: Path, error: OSError) -> IntegrityError:
    return IntegrityError(
        f"{path}: listed in the manifest but cannot be read ({error.strerror})", "Copy the bundle again"
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
    """Where a bundle lies: a folder, or a packed file."""
    folder = Path(model)
    embedded = EMBEDDED / folder.name
    if folder.name == str(model) and os.path.isdir(embedded):  # whatever lies where the program was started
        if os.path.isfile(folder / MANIFEST):
            _log.warning("%s: the model that comes with the package, not the bundle here, which is ./%s", model, model)
        return embedded
    if os.path.isdir(folder) or os.path.isfile(folder):
        return folder
    names = ", ".join(embedded_models()) or "none"
    raise BundleError(f"{model}: no such bundle folder", f"Embedded models: {names}")


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(one.name for one in EMBEDDED.iterdir() if (one / MANIFEST).is_file())
