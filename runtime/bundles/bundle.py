"""Open and verify a bundle: a folder with a manifest and the files of one model. ``authoring.writer`` writes one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from mri_edge.errors import BundleError, IntegrityError, ManifestError, UsageError, printable
from mri_edge.records import dataclass
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from .manifest import MANIFEST, MANIFEST_LIMIT, SIGNATURE, Artifact, Document, Manifest
from .onnx_external import find_external_data

if TYPE_CHECKING:
    from .archive import Archive

EMBEDDED = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "lite"
REQUIRE_SIGNATURE = "MRI_EDGE_REQUIRE_SIGNATURE"  # names the file of a public key

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its location and its checked manifest.

    ``folder`` is the bundle's folder or, with an ``archive``, the packed file. Opening checks that every listed file
    exists with the listed size. ``read`` checks the SHA-256 of one file, so that ``predict`` hashes only the model that
    it runs; ``verify`` hashes every file.
    """

    folder: Path
    manifest: Manifest
    archive: Archive | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, model: str | os.PathLike[str] = DEFAULT_MODEL, *, signed_by: str | os.PathLike[str] | None = None
    ) -> Bundle:
        """Open an embedded model by name, a bundle folder, or a packed bundle.

        ``"lite"`` is the embedded model; ``"./lite"`` is a folder of that name.

        Parameters
        ----------
        signed_by
            File of the public key (PEM, Ed25519) that must verify its signature. Every file is then hashed, and
            a file that the signed manifest does not list is an error. Default: the environment variable
            ``MRI_EDGE_REQUIRE_SIGNATURE``, so that the requirement applies to every way of opening a bundle.

        Raises
        ------
        BundleError
            There is no such bundle or embedded model.
        ManifestError
            The manifest is missing, broken or of another schema version.
        IntegrityError
            A listed file is missing or has another size.
        SignatureError
            The bundle is not signed, or the key does not verify its signature.
        UsageError
            ``model`` is empty; the key cannot be read or its name is empty, or the extra ``sign`` is not installed.
        """
        key = _required_key(signed_by)
        if key is None:
            return cls.open_unsigned(model)
        path = _find(model)
        if os.path.isfile(path):
            return cls.open_packed(path, signed_by=key)
        text = _read_manifest(path)
        # The bytes that were checked are parsed; the file is not read again.
        _check_signature(text, _read_signature(path), key, path)
        bundle = cls.from_manifest(path, text)
        bundle.check_complete()
        bundle.verify()
        return bundle

    @classmethod
    def open_unsigned(cls, model: str | os.PathLike[str]) -> Bundle:
        """Open a bundle without checking a signature, to make another of it. Raises what ``open`` does."""
        path = _find(model)
        if os.path.isfile(path):
            from .archive import Archive

            return cls._from_archive(Archive(path))
        return cls.from_manifest(path, _read_manifest(path))

    @classmethod
    def open_to_change(cls, model: str | os.PathLike[str]) -> Bundle:
        """Open a bundle without checking a signature, to change or sign it where it is.

        Raises UsageError for the name of an embedded model, and what ``open`` does.
        """
        if _is_embedded(model):
            raise UsageError(
                f"{model}: is a model of the installed package, which must not change",
                f"Change a copy: mri-edge bundle slim {model} --artifact FILE --out DIR",
            )
        return cls.open_unsigned(model)

    @classmethod
    def open_packed(cls, file: Path, *, signed_by: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a packed bundle and hash all of its files; parameters and errors as for ``open``."""
        from .archive import Archive

        key = _required_key(signed_by)
        archive = Archive(file)
        if key is not None:
            _check_signature(archive.manifest, archive.signature, key, file)
        bundle = cls._from_archive(archive)
        bundle.verify()
        return bundle

    @classmethod
    def _from_archive(cls, archive: Archive) -> Bundle:
        manifest = Manifest.from_json(archive.manifest, origin=str(archive.path / MANIFEST))
        archive.locate(manifest)
        archive.check_end()
        return cls(archive.path, manifest, archive)

    @classmethod
    def from_manifest(cls, folder: Path, manifest: bytes) -> Bundle:
        """Open the bundle in ``folder`` with these bytes as its manifest. Raises what ``open`` does."""
        bundle = cls(folder, Manifest.from_json(manifest, origin=str(folder / MANIFEST)))
        for entry in bundle.entries():
            bundle._check_size(entry)
        return bundle

    def require_folder(self) -> Path:
        """Return the bundle's folder. Raises BundleError if the bundle is packed."""
        if self.archive:
            raise BundleError(
                f"{self.folder}: is packed, and a folder is needed", "Unpack it: 'mri-edge bundle unpack'"
            )
        return self.folder

    def manifest_bytes(self) -> bytes:
        """Return the bytes of the manifest, which a signature covers."""
        return self.archive.manifest if self.archive else _read_manifest(self.folder)

    def signature_bytes(self) -> bytes | None:
        """Return the bundle's signature, unchecked; None if it is not signed."""
        return self.archive.signature if self.archive else _read_signature(self.folder)

    def entries(self) -> tuple[Artifact | Document, ...]:
        """Return all listed files: artifacts, then documents."""
        return (*self.manifest.artifacts, *self.manifest.documents)

    def read(self, entry: Artifact | Document) -> bytes:
        """Read a listed file and compare its SHA-256 with the manifest.

        Use the returned bytes, not the file: it may be replaced at any time.

        Raises
        ------
        IntegrityError
            The file was changed or cannot be read.
        BundleError
            An ONNX file stores a part of the model in another file.
        """
        content = self.read_hashed(entry)
        if isinstance(entry, Artifact):
            check_self_contained(content, self.folder / entry.file)
        return content

    def read_hashed(self, entry: Artifact | Document) -> bytes:
        """Read as ``read`` does, without the check for data in other files, which ``engines.ModelFile`` makes."""
        path = self.folder / entry.file
        if self.archive:
            content = self.archive.read(entry)
        else:
            self._check_size(entry)  # before reading a file that was replaced by a huge one
            try:
                with open(path, "rb") as file:
                    content = file.read(entry.size_bytes + 1)
            except OSError as error:
                raise _unreadable(path, error) from error
        self._check_hash(path, entry, hashlib.sha256(content).hexdigest())
        return content

    def path_of(self, entry: Artifact | Document) -> Path:
        """Compare a listed file's SHA-256 with the manifest and return its path.

        The file may be replaced before the path is opened: prefer ``read``.

        Raises
        ------
        IntegrityError
            The file was changed.
        BundleError
            The bundle is packed.
        """
        from mri_edge.storage.atomic import sha256_of

        path = self.require_folder() / entry.file
        self._check_size(entry)
        self._check_hash(path, entry, sha256_of(path))
        return path

    def verify(self) -> None:
        """Hash every listed file. Raises IntegrityError at the first difference."""
        for entry in self.entries():
            self.read(entry)

    def artifact(self, name: str) -> Artifact:
        """Find an artifact by its file name, with or without the leading ``model.``: ``"int8.onnx"``.

        Raises
        ------
        UsageError
            The bundle has no such artifact; the message lists those it has.
        """
        found = self.manifest.artifact(name) or self.manifest.artifact(f"model.{name}")
        if found is None:
            known = ", ".join(artifact.file for artifact in self.manifest.artifacts) or "none"
            raise UsageError(f"{self.folder}: no artifact {name!r}", f"It has: {known}")
        return found

    def check_complete(self) -> None:
        """Raise IntegrityError if the folder contains a link, or a file that the manifest does not list.

        An engine would open such a file unchecked if a model file refers to it.
        """
        for path in self.unlisted_paths():
            raise IntegrityError(
                f"{path}: {'is a link' if path.is_symlink() else 'is not listed in the manifest'}",
                "A signed bundle may contain only signed files: remove it",
            )

    def unlisted_paths(self) -> Iterator[Path]:
        """Yield links, and files that the manifest does not list. A packed bundle has none."""
        if self.archive:
            return
        listed = {MANIFEST, SIGNATURE, *(entry.file for entry in self.entries())}
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
            with suppress(OSError), open(path, "rb") as file:  # a folder, or not readable
                if is_lfs_pointer(file.read(64)):
                    raise IntegrityError(f"{path}: is a Git LFS pointer, not the file", HINT)
            raise IntegrityError(
                f"{path}: {size} bytes, the manifest says {entry.size_bytes}",
                "The file was changed or copied only partly: copy the bundle again",
            )

    def _check_hash(self, path: Path, entry: Artifact | Document, found: str) -> None:
        if found != entry.sha256:
            raise IntegrityError(
                f"{path}: SHA-256 is {found[:12]}…, the manifest says {entry.sha256[:12]}…",
                "The file was changed or damaged: copy the bundle again",
            )


def check_self_contained(content: bytes, path: Path) -> bool:
    """Check that an ONNX model stores no data in other files, which no hash would cover.

    Returns whether the content is an ONNX model; ``engines.open_engine`` refuses ``.onnx`` files that are not.

    Raises
    ------
    BundleError
        A part of the model is in another file.
    """
    if not path.name.endswith(".onnx"):
        return False
    try:
        part = find_external_data(content)
    except ValueError:
        return False
    if part:
        raise BundleError(
            f"{path}: {printable(part)} is stored in another file, which the manifest does not list",
            "Save the model with all of its weights inside (onnx.save without external data), and export it again",
        )
    return True


def _required_key(signed_by: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    """Return the key that must verify a signature: the argument, else the environment variable, else None."""
    return os.environ.get(REQUIRE_SIGNATURE) if signed_by is None else signed_by


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
    """Find a bundle: its folder, or its packed file."""
    if not os.fspath(model):
        raise UsageError("a model must have a name. Received: nothing", _embedded_hint())
    folder = Path(model)
    if _is_embedded(model):  # takes precedence over the current folder
        if os.path.isfile(folder / MANIFEST):
            _log.warning("%s: using the embedded model. The bundle in the current folder is ./%s", model, model)
        return EMBEDDED / folder.name
    if os.path.isdir(folder) or os.path.isfile(folder):
        # Path removes the "./" before the name of an embedded model, and the bundle may be opened again by this path.
        return folder.absolute() if _is_embedded(folder) else folder
    raise BundleError(f"{model}: no such bundle folder", _embedded_hint())


def _embedded_hint() -> str:
    return f"Embedded models: {', '.join(embedded_models()) or 'none'}"


def _is_embedded(model: str | os.PathLike[str]) -> bool:
    """Return whether ``model`` is the name of an embedded model, and not a path."""
    return str(model) in embedded_models()


def embedded_models() -> list[str]:
    """Return the names of the models in the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / MANIFEST).is_file())
