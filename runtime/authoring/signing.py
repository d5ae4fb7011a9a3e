"""Sign a bundle after checking every file of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import SIGNATURE
from mri_edge.bundles.signatures import fingerprint_of, private_key
from mri_edge.storage.atomic import atomic_write

from .anonymous import check_anonymous
from .writer import locked_bundle


def sign(bundle: Bundle, key: Path, *, passphrase: Callable[[], str]) -> str:
    """Check that a bundle contains exactly the listed files, and sign its manifest. Returns the key's fingerprint.

    Parameters
    ----------
    key
        PEM file of an Ed25519 private key.
    passphrase
        Called only if the key is protected by one.

    Raises
    ------
    IntegrityError
        A file differs from the manifest, or is not listed. Nothing is signed.
    BundleError
        The bundle names scans, or is packed.
    UsageError, OutputError
        The key cannot be used, another program is changing the bundle, or the folder cannot be written.
    """
    private = private_key(key, passphrase)
    folder = bundle.require_folder()
    with locked_bundle(folder):  # a change that ends now would replace the folder, and lose the signature
        text = bundle.manifest_bytes()
        checked = Bundle.from_manifest(folder, text)
        checked.check_complete()
        checked.verify()
        check_anonymous(checked)
        atomic_write(folder / SIGNATURE, private.sign(text))
    return fingerprint_of(private.public_key())
