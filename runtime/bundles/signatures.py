"""Check and make Ed25519 signatures of bundles. They cover the manifest, which lists every file with its SHA-256.

The signature is the file ``manifest.json.sig``: the 64 bytes of RFC 8032 and nothing else, so that
``openssl pkeyutl -verify -rawin`` can check it too. Keys are PEM: PKCS #8 and SubjectPublicKeyInfo. Only this module
imports the package ``cryptography`` (extra ``sign``), and only to make or check a signature.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mri_edge.errors import OutputError, SignatureError, UsageError, first_line

from .manifest import MANIFEST

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def check(manifest: bytes, signature: bytes | None, key: Path, origin: str) -> None:
    """Raise unless ``signature`` signs ``manifest`` with the private key that belongs to the public key file ``key``.

    Raises
    ------
    SignatureError
        There is no signature, or it belongs to another key or other bytes. ``origin`` names the bundle.
    UsageError
        The key cannot be read, or the package ``cryptography`` is not installed.
    """
    public = _public_key(key)
    if signature is None:
        raise SignatureError(
            f"{origin}: is not signed, but a signature that {key} verifies is required",
            "Ask its author for a signed bundle; 'mri-edge bundle sign' makes a signature",
        )
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, manifest)
    except InvalidSignature as error:
        raise SignatureError(
            f"{origin}: its signature does not match {key} and this {MANIFEST}",
            "It was changed, or signed with another key: do not use it, and ask its author",
        ) from error


def make_keys(private: Path, public: Path) -> str:
    """Write a new key pair, with a private key that only its owner can read. Returns the fingerprint.

    Raises
    ------
    UsageError
        One of the files exists.
    OutputError
        One of the files cannot be written. Then neither remains.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if os.path.lexists(path):
            raise UsageError(f"{path}: already exists", _NEW_FILE)
    key = Ed25519PrivateKey.generate()
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    made: list[Path] = []
    for path, content, mode in ((private, private_pem, 0o600), (public, public_pem, 0o644)):
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                made.append(path)
                file.write(content)
        except OSError as error:
            for written in made:  # a private key without its public key would make useless signatures
                written.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot write ({error.strerror})", _NEW_FILE) from error
    return fingerprint_of(key.public_key())


def fingerprint(key: Path) -> str:
    """Return ``fingerprint_of`` the public key in a file. Raises UsageError."""
    return fingerprint_of(_public_key(key))


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of a public key's SHA-256, for people to compare."""
    serialization = _serialization()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _public_key(path: Path) -> Ed25519PublicKey:
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text = _read_pem(path)
    if b"PRIVATE KEY" in text:
        raise UsageError(
            f"{path}: is a private key, but the public key is needed",
            "Keep the private key where you sign",
        )
    try:
        key = serialization.load_pem_public_key(text)
    except Exception as error:
        raise UsageError(f"{path}: not a public key in PEM ({first_line(error)})", _KEYGEN) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: must be an Ed25519 key. Received: {type(key).__name__}", _KEYGEN)
    return key


def private_key(path: Path, passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """Read a private key. ``passphrase`` is called only if a passphrase protects the key. Raises UsageError."""
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text = _read_pem(path)
    phrase = passphrase().encode() if b"ENCRYPTED" in text else None
    try:
        key = serialization.load_pem_private_key(text, phrase)
    except Exception as error:
        raise UsageError(f"{path}: cannot open the private key as PEM ({first_line(error)})", _KEYGEN) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: must be an Ed25519 key. Received: {type(key).__name__}", _KEYGEN)
    return key


_NEW_FILE = "Name a new file: a key is never overwritten"
_KEYGEN = "Make a pair with 'mri-edge bundle keygen'"
_LARGEST_KEY = 64 << 10


def _read_pem(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the key ({error.strerror})", _KEYGEN) from error


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise UsageError(
            f"signatures need the package cryptography ({first_line(error)})", "pip install 'mri-edge[sign]'"
        ) from error
    return serialization
