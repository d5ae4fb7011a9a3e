"""A signed bundle opens only if it is unchanged since signing. The keys are real keys of ``cryptography``."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.authoring.packing import pack, unpack
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, SIGNATURE, Manifest
from mri_edge.cli import run
from mri_edge.errors import BundleError, IntegrityError, OutputError, SignatureError, UsageError

pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
from mri_edge.authoring.signing import sign
from mri_edge.bundles.signatures import fingerprint, make_keys

SCAN = str(Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg")


def no_passphrase() -> str:
    raise AssertionError("there is none to ask for")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two key pairs, ``ours`` and one of another author."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("our", "other"):
        make_keys(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    return folder


@pytest.fixture
def public(keys: Path) -> Path:
    return keys / "our.pub.pem"


@pytest.fixture
def signed(tiny_bundle: Path, keys: Path) -> Path:
    """A signed bundle with a document beside its artifact."""
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.add_document("report/notes.txt", "words")
    sign(Bundle.open(tiny_bundle), keys / "our.pem", passphrase=no_passphrase)
    return tiny_bundle


# --- checking


def test_a_signed_bundle_opens_and_predicts(signed: Path, public: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Bundle.open(signed)
    Bundle.open(signed, signed_by=public)
    assert run(["predict", SCAN, "--model", str(signed), "--require-signature", str(public)]) == 0
    capfd.readouterr()


def test_a_signature_stays_valid_through_packing_and_unpacking(signed: Path, public: Path, tmp_path: Path) -> None:
    pack(Bundle.open(signed), tmp_path / "packed")
    Bundle.open(tmp_path / "packed", signed_by=public)
    unpack(tmp_path / "packed", tmp_path / "out", signed_by=public)
    Bundle.open(tmp_path / "out", signed_by=public)


@pytest.mark.parametrize("longer", range(0, 8192, 2048))
def test_the_signature_is_found_behind_a_manifest_of_any_size(
    tmp_path: Path, tiny_manifest: Manifest, keys: Path, public: Path, longer: int
) -> None:
    """The end of the manifest may be anywhere in the file's read buffer."""
    with new_bundle(tmp_path / "b", replace(tiny_manifest, limits="x" * longer)):
        pass
    sign(Bundle.open(tmp_path / "b"), keys / "our.pem", passphrase=no_passphrase)
    pack(Bundle.open(tmp_path / "b"), tmp_path / "packed")
    Bundle.open(tmp_path / "packed", signed_by=public)


def test_not_signed_or_by_another(tiny_bundle: Path, keys: Path, public: Path, tmp_path: Path) -> None:
    pack(Bundle.open(tiny_bundle), tmp_path / "packed")
    for words in ("not signed", "its signature does not match"):
        with pytest.raises(SignatureError, match=words):
            Bundle.open(tiny_bundle, signed_by=public)
        with pytest.raises(SignatureError, match=words):
            unpack(tmp_path / "packed", tmp_path / "out", signed_by=public)
        assert not (tmp_path / "out").exists()
        sign(Bundle.open(tiny_bundle), keys / "other.pem", passphrase=no_passphrase)
        pack(Bundle.open(tiny_bundle), tmp_path / "packed")


def test_a_change_of_any_file_is_refused_before_anything_runs(signed: Path, public: Path) -> None:
    for name in (MANIFEST, SIGNATURE, "model.onnx", "report/notes.txt"):
        path = signed / name
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BundleError):
                Bundle.open(signed, signed_by=public)
        path.write_bytes(content)
    Bundle.open(signed, signed_by=public)
    for wrong in (b"", (signed / SIGNATURE).read_bytes() + b"\n"):
        (signed / SIGNATURE).write_bytes(wrong)
        with pytest.raises(SignatureError):
            Bundle.open(signed, signed_by=public)


def test_every_byte_of_a_signed_packed_bundle_counts(signed: Path, public: Path, tmp_path: Path) -> None:
    with rewrite_bundle(Bundle.open(signed), tmp_path / "slim", keep=["report/notes.txt"]):
        pass
    sign(Bundle.open(tmp_path / "slim"), public.with_name("our.pem"), passphrase=no_passphrase)
    path = tmp_path / "packed"
    pack(Bundle.open(tmp_path / "slim"), path)
    content = path.read_bytes()
    for place in [*range(0, len(content), 13), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BundleError):
            Bundle.open(path, signed_by=public)


def test_an_unsigned_file_in_the_folder_is_refused(signed: Path, public: Path, keys: Path, tmp_path: Path) -> None:
    """A model file may refer to other files in its folder, which an engine would open."""
    (signed / "model.onnx.data").write_bytes(b"weights of somebody else")
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data: is not listed in the manifest"):
        Bundle.open(signed, signed_by=public)
    with pytest.raises(IntegrityError):
        sign(Bundle.open(signed), keys / "our.pem", passphrase=no_passphrase)
    (signed / "model.onnx.data").unlink()
    (signed / "report" / "notes.txt").rename(tmp_path / "notes.txt")
    (signed / "report" / "notes.txt").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(IntegrityError, match="a link"):
        Bundle.open(signed, signed_by=public)


def test_a_changed_bundle_loses_its_signature(signed: Path, public: Path) -> None:
    with rewrite_bundle(Bundle.open(signed)) as writer:
        writer.update(version="2")
    with pytest.raises(SignatureError, match="not signed"):
        Bundle.open(signed, signed_by=public)


def test_a_bundle_that_is_being_changed_is_not_signed(tiny_bundle: Path, keys: Path) -> None:
    pytest.importorskip("fcntl", reason="folders have no locks on Windows")
    with (
        rewrite_bundle(Bundle.open(tiny_bundle)),
        pytest.raises(UsageError, match="another mri-edge is changing this bundle"),
    ):
        sign(Bundle.open(tiny_bundle), keys / "our.pem", passphrase=no_passphrase)
    sign(Bundle.open(tiny_bundle), keys / "our.pem", passphrase=no_passphrase)


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: Path) -> None:
    bundle = Bundle.open(signed)
    (signed / SIGNATURE).unlink()
    content = (signed / "model.onnx").read_bytes()
    (signed / "model.onnx").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(IntegrityError):
        sign(bundle, keys / "our.pem", passphrase=no_passphrase)
    assert not (signed / SIGNATURE).exists()


# --- keys


def test_a_key_is_never_overwritten_and_the_private_one_is_private(tmp_path: Path) -> None:
    private, public = tmp_path / "a.pem", tmp_path / "a.pub.pem"
    assert make_keys(private, public) == fingerprint(public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(private, public)
    assert private.read_bytes() == before


def test_invalid_keys_are_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    curve = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (tmp_path / "ec.pub.pem").write_bytes(
        curve.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "ec.pem").write_bytes(
        curve.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "text").write_text("no key")
    for path, words in (
        (keys / "our.pem", "is a private key"),
        (tmp_path / "ec.pub.pem", "must be an Ed25519 key"),
        (tmp_path / "text", "not a public key in PEM"),
        (tmp_path / "none", "cannot read the key"),
        (tmp_path, "cannot read the key"),
    ):
        with pytest.raises(UsageError, match=words):
            Bundle.open(signed, signed_by=path)
    for path, words in (
        (keys / "our.pub.pem", "cannot open the private key as PEM"),
        (tmp_path / "ec.pem", "must be an Ed25519 key"),
        (tmp_path / "text", "cannot open the private key as PEM"),
    ):
        with pytest.raises(UsageError, match=words):
            sign(Bundle.open(signed), path, passphrase=no_passphrase)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_keys_and_checks_signatures(signed: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "o.pem", tmp_path / "o.pub.pem"
    make = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:word", "-out", private]
    if subprocess.run(make, capture_output=True, check=False).returncode:
        pytest.skip("this openssl has no Ed25519")
    openssl = ["openssl", "pkey", "-in", private, "-passin", "pass:word", "-pubout", "-out", public]
    subprocess.run(openssl, check=True, capture_output=True)
    with pytest.raises(UsageError, match="cannot open the private key as PEM"):
        sign(Bundle.open(signed), private, passphrase=lambda: "wrong")
    sign(Bundle.open(signed), private, passphrase=lambda: "word")
    Bundle.open(signed, signed_by=public)
    verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public]
    done = subprocess.run(
        [*verify, "-sigfile", signed / SIGNATURE, "-in", signed / MANIFEST], capture_output=True, text=True, check=False
    )
    assert "Verified Successfully" in done.stdout


# --- the commands


@pytest.mark.parametrize("left", ["k.pem", "k.pub.pem"])
def test_a_key_pair_is_written_atomically(tmp_path: Path, left: str) -> None:
    """A new private key with an old public key would sign bundles that every device refuses."""
    (tmp_path / left).write_text("older")
    with pytest.raises(UsageError, match=f"{left}: already exists"):
        make_keys(tmp_path / "k.pem", tmp_path / "k.pub.pem")
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "older"


def test_no_private_key_is_left_when_the_public_one_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        make_keys(tmp_path / "k.pem", tmp_path / "nowhere" / "k.pub.pem")
    assert list(tmp_path.iterdir()) == []


def test_from_keys_to_a_device(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        "bundle keygen hospital",
        f"bundle sign {signed} --key hospital.pem",
        f"bundle pack {signed} --out a.mribundle",
        f"bundle pack {signed} --out b.mribundle",
        f"bundle verify-signature {signed} --key hospital.pub.pem",
        "bundle verify-signature a.mribundle --key hospital.pub.pem",
        "bundle unpack a.mribundle --out device --require-signature hospital.pub.pem",
        f"predict {SCAN} --model device --require-signature hospital.pub.pem",
        f"predict {SCAN} --model a.mribundle --require-signature hospital.pub.pem",
    ):
        assert run(line.split()) == 0, line
    assert Path("a.mribundle").read_bytes() == Path("b.mribundle").read_bytes()
    Path("in").mkdir()
    shutil.copy(SCAN, "in")
    monkeypatch.setenv("MRI_EDGE_REQUIRE_SIGNATURE", "hospital.pub.pem")
    assert run(["watch", "in", "--out", "out", "--once", "--settle", "0", "--model", "device"]) == 0
    assert run(["bundle", "keygen", "other"]) == 0
    capfd.readouterr()
    for line, code in (
        ("bundle verify-signature device --key other.pub.pem", 3),
        ("bundle verify-signature a.mribundle --key other.pub.pem", 3),
        ("bundle unpack a.mribundle --out new --require-signature other.pub.pem", 3),
        (f"predict {SCAN} --model device --require-signature other.pub.pem", 3),
        ("watch in --out out --once --model device --require-signature other.pub.pem", 3),
        (f"predict {SCAN}", 3),  # the variable asks for a signature, and the embedded model has none
        (f"predict {SCAN} --model a.mribundle --require-signature other.pub.pem", 3),
        ("bundle pack device --out a.mribundle", 2),
        ("bundle keygen other", 2),
    ):
        assert run(line.split()) == code, line
        out, err = capfd.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1


def test_without_the_package_one_line_names_the_extra(signed: Path, public: Path) -> None:
    code = """
import sys
sys.modules["cryptography"] = None
from mri_edge.cli import run
sys.exit(run(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "predict", SCAN, "--model", signed]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stderr) == (0, "")
    asked = subprocess.run([*command, "--require-signature", public], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert len(asked.stderr.splitlines()) == 1
    assert "pip install 'mri-edge[sign]'" in asked.stderr
