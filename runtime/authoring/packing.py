"""Pack a bundle into one file, ``NAME.mribundle``, and unpack it. ``bundles.archive`` describes the format.

The bytes of a packed bundle do not depend on the time or the machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mri_edge.bundles import archive
from mri_edge.bundles.archive import END, SIGNATURE_BYTES, header, packed_size, padded, sorted_entries
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, SIGNATURE, Manifest
from mri_edge.errors import BundleError, OutputError
from mri_edge.storage.atomic import atomic_file, atomic_folder

from .anonymous import check_anonymous
from .writer import check_outside, check_target


def pack(bundle: Bundle, out: Path) -> None:
    """Write a bundle as one file, atomically. Each file is read once, and the bytes that were read are hashed.

    Raises
    ------
    BundleError
        A file name is not valid on every system, the bundle is larger than ``LARGEST``, names scans, or is packed.
    IntegrityError
        A file differs from the manifest.
    UsageError
        ``out`` is inside the bundle.
    OutputError
        ``out`` cannot be written.
    """
    manifest = bundle.manifest_bytes()
    bundle = Bundle.from_manifest(bundle.require_folder(), manifest)
    check_outside(out, bundle.folder)
    check_anonymous(bundle)
    entries = sorted_entries(bundle.manifest, str(bundle.folder))
    signature = bundle.signature_bytes()
    if signature is not None and len(signature) != SIGNATURE_BYTES:
        raise BundleError(f"{bundle.folder / SIGNATURE}: no signature, it has {len(signature)} bytes", "Sign it again")
    sizes = [len(manifest), *([SIGNATURE_BYTES] if signature else []), *(entry.size_bytes for entry in entries)]
    if packed_size(sizes) > archive.LARGEST:
        raise BundleError(
            f"{bundle.folder}: packed it would have more than {archive.LARGEST} bytes",
            "Leave artifacts out: bundle slim",
        )
    with atomic_file(out) as file:

        def write(name: str, content: bytes) -> None:
            file.write(header(name, len(content)))
            file.write(content)
            file.write(bytes(padded(len(content)) - len(content)))

        write(MANIFEST, manifest)
        if signature is not None:
            write(SIGNATURE, signature)
        for entry in entries:
            write(entry.file, bundle.read(entry))
        file.write(END)


def unpack(
    packed: Path, out: Path, *, signed_by: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Manifest:
    """Make a bundle folder from a packed bundle, atomically, after checking all of it.

    Parameters
    ----------
    signed_by
        As for ``Bundle.open``. The signature is checked before anything is written.

    Raises
    ------
    BundleError, ManifestError, IntegrityError, SignatureError
        The file is not exactly what ``pack`` writes, or not signed with that key.
    OutputError
        ``out`` cannot be written, or the disk has too little space.
    """
    check_target(out, overwrite=overwrite)
    bundle = Bundle.open_packed(packed, signed_by=signed_by)
    source = bundle.archive
    assert source is not None  # noqa: S101 (for the type checker)
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if os.path.isdir(parent))).free
    if source.size > free:
        raise OutputError(f"{out}: the bundle takes {source.size} bytes, the disk has {free} free", "Free some space")
    with atomic_folder(out) as staging:
        for name, content in source.head:
            (staging / name).write_bytes(content)
        for entry in bundle.entries():
            target = staging / entry.file
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                file.write(bundle.read(entry))
    return bundle.manifest
