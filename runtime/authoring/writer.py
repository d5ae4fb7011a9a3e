"""Write bundles atomically: make new ones and change existing ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mri_edge.bundles.bundle import Bundle, check_self_contained
from mri_edge.bundles.manifest import MANIFEST, MANIFEST_LIMIT, Artifact, Document, Manifest, TensorSpec
from mri_edge.errors import OutputError, UsageError
from mri_edge.storage.atomic import atomic_folder, sha256_of
from mri_edge.storage.staging import locked_folder

from .card import CARD, has_card, render_card

KERAS = "model.keras"  # the trained model, from which every other artifact is made
FINDINGS = "data.json"  # what the check of the training data found, with names of images


@contextmanager
def rewrite_bundle(
    bundle: Bundle, out: Path | None = None, *, keep: Sequence[str] | None = None
) -> Iterator[BundleWriter]:
    """Change a bundle, or make a changed copy at ``out``, atomically.

    ``keep`` names the files to keep (default: all). When a bundle is changed, its files are hard-linked where possible,
    so that adding an artifact does not copy a large bundle; the bundle is locked. Files that the manifest does not list
    (a user's notes) stay; a signature is dropped. A copy at ``out`` shares no file with the bundle, and each copied
    file is hashed. Fields of the manifest that this release does not know are dropped.

    Raises
    ------
    UsageError
        ``out`` is not a bundle (an existing bundle is replaced), or another program changes the bundle or has changed
        it since it was opened.
    OutputError
        ``out`` cannot be written.
    IntegrityError
        A copied file was changed.
    BundleError
        A packed bundle can only be copied.
    """
    if out is not None:
        check_target(out, overwrite=True)
    target = out or bundle.require_folder()
    kept = [entry for entry in bundle.entries() if keep is None or entry.file in keep]
    manifest = replace(
        bundle.manifest,
        artifacts=tuple(entry for entry in kept if isinstance(entry, Artifact)),
        documents=tuple(entry for entry in kept if isinstance(entry, Document)),
    )
    with ExitStack() as stack:
        if out is None:
            stack.enter_context(locked_bundle(target))
            _check_unchanged(bundle)
        staging = stack.enter_context(atomic_folder(target))
        for entry in kept:
            if out is None:
                _link_or_copy(bundle.folder / entry.file, staging / entry.file)
            else:
                copy = staging / entry.file
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(bundle.read(entry))
        writer = BundleWriter(staging, manifest)
        yield writer
        writer.finish()
        if out is None:
            # Only now, because an export takes minutes: the user may add notes, and ``train`` replace the bundle.
            _check_unchanged(bundle)
            for path in bundle.unlisted_paths():
                _copy_unlisted(path, staging / path.relative_to(bundle.folder))


def locked_bundle(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder of a bundle while the block runs. Raises UsageError if another program is changing the bundle."""
    taken = UsageError(f"{folder}: another mri-edge is changing this bundle", "Wait for it, then try again")
    return locked_folder(Path(os.path.realpath(folder)), taken)


def _check_unchanged(bundle: Bundle) -> None:
    """Raise UsageError if the bundle has another manifest than when it was opened."""
    if Manifest.from_json(bundle.manifest_bytes(), origin=str(bundle.folder / MANIFEST)) != bundle.manifest:
        raise UsageError(f"{bundle.folder}: another program changed this bundle meanwhile", "Run the command again")


@contextmanager
def new_bundle(out: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[BundleWriter]:
    """Make a bundle at ``out``. Yields a writer; ``out`` is written when the block ends without an error.

    Raises
    ------
    UsageError
        ``out`` is not a bundle, or is one and ``overwrite`` is False.
    OutputError
        ``out`` cannot be written.
    """
    check_target(out, overwrite=overwrite)
    with atomic_folder(out) as staging:
        writer = BundleWriter(staging, manifest)
        yield writer
        writer.finish()


def check_target(out: Path, *, overwrite: bool = False) -> None:
    """Check that a bundle can be written at ``out``. Call it before long work.

    Raises
    ------
    UsageError
        ``out`` is a file, a folder that is not a bundle, or a bundle and ``overwrite`` is False.
    OutputError
        The parent folder cannot be written.
    """
    real = Path(os.path.realpath(out))  # the folder that is replaced: ``out`` may have ".." behind a missing folder
    if os.path.isfile(real):
        raise UsageError(f"{out}: is a file, not a folder", "Name another output folder")
    try:
        is_filled = os.path.isdir(real) and any(real.iterdir())
    except OSError as error:
        raise OutputError(f"{out}: cannot list the folder ({error.strerror})", "Name another output folder") from error
    if is_filled:
        if not _is_bundle(real):
            raise UsageError(f"{out}: folder is not empty and is not a bundle", "Name another output folder")
        if not overwrite:
            raise UsageError(f"{out}: a bundle is there already", "Name another folder, or say --overwrite")
    parent = next(path for path in (real, *real.parents) if os.path.exists(path))
    if not os.path.isdir(parent):
        raise UsageError(f"{out}: {parent} is a file, not a folder", "Name another output folder")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: {parent} is read-only for this user", "Name another output folder")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder has a manifest of a bundle. Other programs use the file name too."""
    try:
        with open(folder / MANIFEST, "rb") as file:
            found = json.loads(file.read(MANIFEST_LIMIT))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "artefacts" in found and "preprocessing" in found


def check_outside(out: Path, *inputs: Path) -> None:
    """Raise UsageError if ``out`` is inside an input folder, where it would count as a part of the input."""
    for folder in inputs:
        if folder.resolve() in out.resolve().parents:
            raise UsageError(f"{out}: is inside {folder}", "Name another output folder")


class BundleWriter:
    """Collect the files of a bundle in a staging folder, hashing each when it is added."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, file: str) -> Path:
        """Path at which to write ``file`` before adding it. Makes its folder and unlinks an existing file.

        The existing file may be a hard link into the bundle that is being replaced, so it must not be overwritten.
        """
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path

    def add_artifact(self, artifact: Artifact) -> Artifact:
        """List a model file that was written at ``path(artifact.file)``. Returns it with size and hash.

        Raises BundleError for an ONNX file with external data, because the manifest would not cover all of the model.
        """
        path = self.folder / artifact.file
        if path.suffix == ".onnx":
            check_self_contained(path.read_bytes(), path)
        size, digest = self._size_and_hash(artifact.file)
        listed = replace(artifact, size_bytes=size, sha256=digest)
        others = tuple(other for other in self.manifest.artifacts if other.file != artifact.file)
        self.manifest = replace(self.manifest, artifacts=(*others, listed))
        return listed

    def add_keras_model(self) -> Artifact:
        """List the Keras model that was written at ``path(KERAS)``. Returns its entry."""
        preprocessing, labels = self.manifest.preprocessing, self.manifest.labels
        return self.add_artifact(
            Artifact(
                file=KERAS,
                format="keras",
                precision="float32",
                size_bytes=0,
                sha256="",
                input=TensorSpec("image", "float32", (None, preprocessing.height, preprocessing.width, 3)),
                output=TensorSpec("probabilities", "float32", (None, len(labels))),
            )
        )

    def add_document(self, file: str, content: str | bytes | None = None) -> None:
        """List a document. With ``content``, write it first (text as UTF-8)."""
        if content is not None:
            self.path(file).write_bytes(content.encode() if isinstance(content, str) else content)
        listed = Document(file, *self._size_and_hash(file))
        others = tuple(document for document in self.manifest.documents if document.file != file)
        self.manifest = replace(self.manifest, documents=(*others, listed))

    def update(self, **changes: Any) -> None:
        """Replace fields of the manifest: ``writer.update(threshold=0.4)``."""
        self.manifest = replace(self.manifest, **changes)

    def add_card(self) -> None:
        """Write the model card from the records added so far, and list it."""
        self._drop_document("MODEL_CARD.html")  # earlier releases wrote a second copy, which would go stale
        self.add_document(CARD, render_card(self.manifest, self.folder))

    def finish(self) -> None:
        """Update the model card if there is one, then write the manifest. Called when the ``with`` block ends.

        The score of heatmaps is dropped if its artifact is gone or was replaced, because another one has other maps.
        """
        score = self.manifest.heatmaps
        measured = self.manifest.artifact(score.artifact) if score else None
        if score and (measured is None or measured.sha256 != score.sha256):
            self.update(heatmaps=None)
        if has_card(self.manifest):
            self.add_card()
        self.path(MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")

    def _drop_document(self, file: str) -> None:
        (self.folder / file).unlink(missing_ok=True)
        self.manifest = replace(
            self.manifest, documents=tuple(document for document in self.manifest.documents if document.file != file)
        )

    def _size_and_hash(self, file: str) -> tuple[int, str]:
        path = self.folder / file
        return path.stat().st_size, sha256_of(path)


def _copy_unlisted(source: Path, target: Path) -> None:
    if os.path.lexists(target):  # a listed file that is a link, or one that was added meanwhile
        return
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.readlink())
    elif source.is_file():
        _link_or_copy(source, target)


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
