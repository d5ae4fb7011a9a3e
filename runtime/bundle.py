"""A bundle: one folder with a manifest and the files of one model; opened, verified, written whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import BundleError, IntegrityError, ManifestError, OutputError, UsageError
from .files import sha256_of, whole_folder
from .manifest import Artefact, Document, Manifest

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
EMBEDDED = Path(__file__).parent / "models"
DEFAULT_MODEL = "vgg16"
MANIFEST_LIMIT = 16 << 20  # bytes; ours are some 10 kB


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
        """Open a bundle folder, or an embedded model by its name (``"vgg16"``).

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
        listed = {MANIFEST, SIGNATURE, *(one.file for one in self.entries())}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or (path.is_file() and name in listed)):
                raise IntegrityError(
                    f"{path}: {'a link' if path.is_symlink() else 'no file that the manifest lists'}",
                    "A signed bundle holds what was signed and nothing else: remove it",
                )

    def _check_size(self, entry: Artefact | Document) -> None:
        path = self.folder / entry.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise IntegrityError(
                f"{path}: listed in the manifest but cannot be read ({error.strerror})", "Copy the bundle again"
            ) from error
        if size != entry.size_bytes:
            raise IntegrityError(
                f"{path}: {size} bytes, the manifest says {entry.size_bytes}",
                "The file was changed or not copied to its end: copy the bundle again",
            )

    @contextmanager
    def rewriting(self, out: Path | None = None, *, keep: Sequence[str] | None = None) -> Iterator[BundleWriter]:
        """Change this bundle, or make a changed copy at ``out``: all of the change or none of it.

        ``keep`` names the files to carry over (default: all). Files are hard-linked where the disk
        allows, so that a large bundle is not copied to add one artefact.

        Raises
        ------
        OutputError
            ``out`` holds something that is no bundle, or cannot be written. A bundle there is replaced.
        """
        if out is not None:
            check_free(out, overwrite=True)
        kept = [one for one in self.entries() if keep is None or one.file in keep]
        manifest = replace(
            self.manifest,
            artefacts=tuple(one for one in kept if isinstance(one, Artefact)),
            documents=tuple(one for one in kept if isinstance(one, Document)),
        )
        with whole_folder(out or self.folder) as staging:
            for entry in kept:
                _link_or_copy(self.folder / entry.file, staging / entry.file)
            writer = BundleWriter(staging, manifest)
            yield writer
            writer.finish()


@contextmanager
def new_bundle(out: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Make a bundle at ``out``: yields a writer; nothing appears at ``out`` unless the block ends well.

    Raises
    ------
    OutputError
        ``out`` holds something that is no bundle, or is a bundle and ``overwrite`` is False.
    """
    check_free(out, overwrite=overwrite)
    with whole_folder(out) as staging:
        writer = BundleWriter(staging, manifest)
        yield writer
        writer.finish()


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """Raise OutputError unless a bundle may be written at ``out``: call it before long work, too."""
    if out.is_file():
        raise OutputError(f"{out}: is a file, not a folder", "Name another output folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise OutputError(f"{out}: folder is not empty and is no bundle", "Name another output folder")
        if not overwrite:
            raise OutputError(f"{out}: a bundle is there already", "Name another folder, or say --overwrite")
    parent = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    if not parent.is_dir():
        raise OutputError(f"{out}: {parent} is a file, not a folder", "Name another output folder")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: {parent} is read-only for this user", "Name another output folder")


class BundleWriter:
    """Collects the files of a bundle in its staging folder, and hashes each as it is added."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, file: str) -> Path:
        """Where to write ``file`` before it is added; its folder is made, an older file is unlinked.

        Unlinking matters: the older file may be a hard link into the bundle that is being replaced.
        """
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def add_artefact(self, artefact: Artefact) -> Artefact:
        """List a model file that was written at ``path(artefact.file)``; returns it with size and hash filled in."""
        size, digest = self._stamp(artefact.file)
        stamped = replace(artefact, size_bytes=size, sha256=digest)
        others = tuple(one for one in self.manifest.artefacts if one.file != artefact.file)
        self.manifest = replace(self.manifest, artefacts=(*others, stamped))
        return stamped

    def add_document(self, file: str, content: str | bytes | None = None) -> None:
        """List a document; with ``content`` it is written first (text as UTF-8)."""
        if content is not None:
            self.path(file).write_bytes(content.encode() if isinstance(content, str) else content)
        stamped = Document(file, *self._stamp(file))
        others = tuple(one for one in self.manifest.documents if one.file != file)
        self.manifest = replace(self.manifest, documents=(*others, stamped))

    def update(self, **changes: Any) -> None:
        """Replace fields of the manifest: ``writer.update(threshold=0.4)``."""
        self.manifest = replace(self.manifest, **changes)

    def finish(self) -> None:
        """Draw the model card anew if there is one, and write the manifest; ``new_bundle``, ``rewriting`` call this."""
        from .card import add_card, has_card

        if has_card(self.manifest):
            add_card(self)
        self.path(MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")

    def _stamp(self, file: str) -> tuple[int, str]:
        path = self.folder / file
        return path.stat().st_size, sha256_of(path)


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
    if folder.is_dir():
        return folder
    embedded = EMBEDDED / str(model)
    if folder.name == str(model) and embedded.is_dir():
        return embedded
    names = ", ".join(embedded_models()) or "none"
    if folder.is_file():
        raise BundleError(
            f"{folder}: is a file, a bundle is a folder", "If it is packed: 'mri-edge bundle unpack' first"
        )
    raise BundleError(f"{model}: no such bundle folder", f"Embedded models: {names}")


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    if not EMBEDDED.is_dir():
        return []
    return sorted(one.name for one in EMBEDDED.iterdir() if (one / MANIFEST).is_file())


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
