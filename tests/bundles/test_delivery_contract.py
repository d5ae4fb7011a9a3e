"""Limits of packed bundles and of keys: what is just inside each limit is accepted, what is just outside is not."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.authoring.packing import pack, unpack
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, SIGNATURE, Document, Manifest
from mri_edge.errors import BundleError, OutputError, UsageError

BLOCK = 512
LARGEST = 4 << 30


def listing(folder: Path, manifest: Manifest, *sizes: int) -> Bundle:
    """Make a bundle of sparse files with these sizes."""
    folder.mkdir(exist_ok=True)
    empty = hashlib.sha256(b"").hexdigest()
    documents = tuple(Document(f"{number}.bin", size, empty) for number, size in enumerate(sizes))
    for document in documents:
        try:
            (folder / document.file).touch()
            os.truncate(folder / document.file, document.size_bytes)
        except OSError as error:
            pytest.skip(f"no file with holes can be made here: {error}")
    (folder / MANIFEST).write_text(replace(manifest, documents=documents).to_json())
    return Bundle.open(folder)


def check_packed(packed: Path) -> Manifest:
    """Unpack the bundle next to itself, which checks all of its content."""
    out = packed.with_name("unpacked")
    try:
        return unpack(packed, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def largest_file(folder: Path, manifest: Manifest) -> int:
    """Return the size of one file that makes a packed bundle exactly 4 GiB; both sizes below have as many digits."""
    text = len(listing(folder, manifest, LARGEST).manifest_bytes())
    size = LARGEST - 2 * BLOCK  # two blocks of zeros end it
    return size - BLOCK - (text + -text % BLOCK) - BLOCK


def test_a_bundle_of_up_to_four_gibibytes_can_be_packed(tmp_path, tiny_manifest):
    folder, nowhere = tmp_path / "bundle", tmp_path / "no folder" / "out"
    size = largest_file(folder, tiny_manifest)
    with pytest.raises(OutputError):  # its size is accepted, but the test does not write four gibibytes
        pack(listing(folder, tiny_manifest, size), nowhere)
    for too_large in (size + 1, size + BLOCK):
        with pytest.raises(BundleError, match=f"more than {LARGEST} bytes"):
            pack(listing(folder, tiny_manifest, too_large), nowhere)


def test_many_files_are_added_up(tmp_path, tiny_manifest):
    half = 2 << 30
    with pytest.raises(BundleError, match="more than"):
        pack(listing(tmp_path / "bundle", tiny_manifest, half, half), tmp_path / "out")


def test_a_signature_counts_too(tmp_path, tiny_manifest):
    folder = tmp_path / "bundle"
    bundle = listing(folder, tiny_manifest, largest_file(folder, tiny_manifest))
    (folder / SIGNATURE).write_bytes(bytes(64))
    with pytest.raises(BundleError, match="more than"):
        pack(bundle, tmp_path / "no folder" / "out")


@pytest.mark.parametrize(("size", "words"), [(LARGEST + 1, "has at most"), (LARGEST, "the files in its manifest make")])
def test_a_packed_bundle_beyond_four_gibibytes_is_refused_by_its_size(tmp_path, tiny_manifest, size, words):
    folder, packed = tmp_path / "bundle", tmp_path / "large.mribundle"
    pack(listing(folder, tiny_manifest), packed)
    try:
        os.truncate(packed, size)
    except OSError as error:
        pytest.skip(f"no file with holes can be made here: {error}")
    with pytest.raises(BundleError, match=words):
        check_packed(packed)


def test_a_signature_of_another_length_is_not_packed(tmp_path, tiny_manifest):
    bundle = listing(tmp_path / "bundle", tiny_manifest)
    for content in (b"", bytes(63), bytes(65)):
        (bundle.folder / SIGNATURE).write_bytes(content)
        with pytest.raises(BundleError, match=f"{len(content)} bytes"):
            pack(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_padding_byte_of_a_block_must_be_zero(tmp_path, tiny_manifest):
    folder, packed = tmp_path / "bundle", tmp_path / "some.mribundle"
    bundle = listing(folder, tiny_manifest)
    (folder / SIGNATURE).write_bytes(b"s" * 64)
    pack(bundle, packed)
    check_packed(packed)
    content = packed.read_bytes()
    text = len(bundle.manifest_bytes())
    signature = BLOCK + text + -text % BLOCK + BLOCK
    for place in (BLOCK + text, signature - BLOCK - 1, signature + 64, signature + BLOCK - 1, len(content) - 1):
        assert content[place] == 0
        packed.write_bytes(content[:place] + b"x" + content[place + 1 :])
        with pytest.raises(BundleError):
            check_packed(packed)


@pytest.mark.parametrize(
    ("file", "portable"),
    [
        ("n" * 100, True),
        ("n" * 101, False),
        ("ü" * 50, True),
        ("ü" * 51, False),
        ("com9", False),
        ("com10", True),
        ("com0", True),
        ("LPT1.txt", False),
        ("lpt10.txt", True),
        ("folder/nul", False),
        ("nul/file", False),
        ("null", True),
        (".hidden", True),
        ("a.b. c", True),
    ],
)
def test_names_that_windows_can_just_hold_and_just_not(tmp_path, tiny_manifest, file, portable):
    folder, packed = tmp_path / "bundle", tmp_path / "some.mribundle"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    entry = Document(file, 0, hashlib.sha256(b"").hexdigest())
    (folder / MANIFEST).write_text(replace(tiny_manifest, documents=(entry,)).to_json())
    if portable:
        pack(Bundle.open(folder), packed)
        assert check_packed(packed).documents == (entry,)
    else:
        with pytest.raises(BundleError, match=r"not a valid name on Windows|longer than 100 bytes"):
            pack(Bundle.open(folder), packed)


# --- keys


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("cryptography", reason="needs the extra 'sign'")
    from mri_edge.bundles.signatures import make_keys

    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    make_keys(private, public)
    return private, public


def test_the_fingerprint_is_that_of_the_raw_key(keys):
    from cryptography.hazmat.primitives import serialization

    from mri_edge.bundles.signatures import fingerprint

    key = serialization.load_pem_public_key(keys[1].read_bytes())
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert fingerprint(keys[1]) == hashlib.sha256(raw).hexdigest()[:16]


def test_only_the_owner_can_read_the_private_key(keys):
    mask = os.umask(0)
    os.umask(mask)
    assert [stat.S_IMODE(path.stat().st_mode) for path in keys] == [0o600 & ~mask, 0o644 & ~mask]


def test_a_passphrase_is_asked_only_of_a_key_that_has_one(keys, tmp_path):
    from cryptography.hazmat.primitives import serialization

    from mri_edge.bundles.signatures import private_key

    asked = []
    plain = private_key(keys[0], lambda: asked.append("plain") or "")
    assert asked == []
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open"),
        )
    )
    opened = private_key(locked, lambda: asked.append("locked") or "open")
    assert asked == ["locked"]
    assert opened.private_bytes_raw() == plain.private_bytes_raw()
    with pytest.raises(UsageError, match="cannot open the private key"):
        private_key(locked, lambda: "wrong")


def test_only_the_beginning_of_a_huge_key_file_is_read(tmp_path):
    pytest.importorskip("cryptography", reason="needs the extra 'sign'")
    from mri_edge.bundles.signatures import fingerprint

    huge = tmp_path / "huge.pem"
    huge.touch()
    os.truncate(huge, 1 << 40)
    with pytest.raises(UsageError, match="not a public key"):
        fingerprint(huge)
