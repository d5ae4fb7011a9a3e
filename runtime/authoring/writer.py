"""Bundles written whole or not at all: new ones, and changed ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mri_edge.bundles.bundle import Bundle, check_self_contained
from mri_edge.bundles.manifest import MANIFEST, Artifact, Document, Manifest
from mri_edge.errors import OutputError, UsageError
from mri_edge.storage.atomic import sha256_of, whole_folder

from .card import has_card, pages


@contextmanager
def rewriting(bundle: Bundle, out: Path | None = None, *, keep: Sequence[str] | None = None) -> Iterator[BundleWriter]:
    """Change a bundle, or make a changed copy at ``out``: all of the change or none of it.

    ``keep`` names the files to carry over (default: all). In a bundle that is changed, files are hard-linked where
    the disk allows, so that a large bundle is not copied to add one artefact; files that its manifest does not list (a
    user's report, notes) stay; a signature, of what it was, does not. A copy at ``out`` shares no file with the bundle,
    and each is hashed on its way. Keys of the manifest that this release does not know are dropped.

    Raises
    ------
    UsageError
        ``out`` holds something that is no bundle. A bundle there is replaced.
    OutputError
        ``out`` cannot be written.
    IntegrityError
        A file that is copied was changed.
    BundleError
        A packed bundle cannot be changed where it is.
    """
    if out is not None:
        check_free(out, overwrite=True)
    target = out or bundle.require_folder()
    kept = [one for one in bundle.entries() if keep is None or one.file in keep]
    manifest = replace(
        bundle.manifest,
        artefacts=tuple(one for one in kept if isinstance(one, Artifact)),
        documents=tuple(one for one in kept if isinstance(one, Document)),
    )
    with whole_folder(target) as staging:
        for entry in kept:
            if out is None:
                _link_or_copy(bundle.folder / entry.file, staging / entry.file)
            else:
                copy = staging / entry.file
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(bundle.read(entry))
        if out is None:
            for path in bundle.strangers():
                _carry_over(path, staging / path.relative_to(bundle.folder))
        writer = BundleWriter(staging, manifest)
        yield writer
        writer.finish()


@contextmanager
def new_bundle(out: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Make a bundle at ``out``: yields a writer; nothing appears at ``out`` unless the block ends well.

    Raises
    ------
    UsageError
        ``out`` holds something that is no bundle, or is a bundle and ``overwrite`` is False.
    OutputError
        ``out`` cannot be written.
    """
    check_free(out, overwrite=overwrite)
    with whole_folder(out) as staging:
        writer = BundleWriter(staging, manifest)
        yield writer
        writer.finish()


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """See that a bundle may be written at ``out``; call it before long work, too.

    Raises
    ------
    UsageError
        Something is there: a file, a folder that is no bundle, or a bundle and ``overwrite`` is False.
    OutputError
        The place cannot be written.
    """
    if os.path.isfile(out):
        raise UsageError(f"{out}: is a file, not a folder", "Name another output folder")
    try:
        filled = os.path.isdir(out) and any(out.iterdir())
    except OSError as error:
        raise OutputError(f"{out}: cannot list the folder ({error.strerror})", "Name another output folder") from error
    if filled:
        if not os.path.isfile(out / MANIFEST):
            raise UsageError(f"{out}: folder is not empty and is no bundle", "Name another output folder")
        if not overwrite:
            raise UsageError(f"{out}: a bundle is there already", "Name another folder, or say --overwrite")
    parent = next(one for one in (out.absolute(), *out.absolute().parents) if os.path.exists(one))
    if not os.path.isdir(parent):
        raise UsageError(f"{out}: {parent} is a file, not a folder", "Name another output folder")
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

    def add_artefact(self, artefact: Artifact) -> Artifact:
        """List a model file that was written at ``path(artefact.file)``; returns it with size and hash filled in.

        Raises BundleError for an ONNX file with external data: the manifest would vouch for a part of the model alone.
        """
        path = self.folder / artefact.file
        if path.suffix == ".onnx":
            check_self_contained(path.read_bytes(), path)
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

    def add_card(self) -> None:
        """Draw the model card from what is here so far, and list it."""
        for file, text in pages(self.manifest, self.folder).items():
            self.add_document(file, text)

    def finish(self) -> None:
        """Draw the model card anew if there is one, and write the manifest; ``new_bundle``, ``rewriting`` call this."""
        if has_card(self.manifest):
            self.add_card()
        self.path(MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")

    def _stamp(self, file: str) -> tuple[int, str]:
        path = self.folder / file
        return path.stat().st_size, sha256_of(path)


def _carry_over(stranger: Path, target: Path) -> None:
    if os.path.lexists(target):  # a listed file that is a link
        return
    if stranger.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(stranger.readlink())
    elif stranger.is_file():
        _link_or_copy(stranger, target)


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
