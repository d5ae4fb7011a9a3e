"""``mri-edge bundle pack, unpack, sign, verify-signature, keygen``: deliver a bundle to a device."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from .options import REQUIRE_SIGNATURE, required_bundle_argument

_PATH = click.Path(path_type=Path)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")


@click.command(epilog="\b\nExample:\n  mri-edge bundle pack device/ --out device.mribundle")
@required_bundle_argument
@click.option("--out", type=_PATH, required=True, metavar="FILE", help="File to write, NAME.mribundle by convention.")
@_OVERWRITE
def pack(model: str, out: Path, overwrite: bool) -> None:
    """Write BUNDLE as one file.

    The bytes do not depend on time or machine: a plain tar without compression, with the signature if BUNDLE is
    signed.
    """
    from mri_edge.authoring.packing import pack
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.errors import UsageError
    from mri_edge.storage.atomic import sha256_of

    if os.path.exists(out) and not overwrite:
        raise UsageError(f"{out}: already exists", "Name another file, or add --overwrite")
    pack(Bundle.open_unsigned(model), out)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256_of(out)}")


@click.command(
    epilog="""\b
Examples:
  mri-edge bundle unpack device.mribundle --out device/
  mri-edge bundle unpack device.mribundle --out device/ --require-signature hospital.pub.pem
"""
)
@click.argument("packed", metavar="FILE", type=_PATH)
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="Folder of the bundle.")
@REQUIRE_SIGNATURE
@_OVERWRITE
def unpack(packed: Path, out: Path, signed_by: str | None, overwrite: bool) -> None:
    """Unpack a packed bundle into a folder.

    Nothing is written unless every byte is as pack writes it: links, paths outside the folder, files that the manifest
    does not list, wrong sizes and wrong hashes are refused.
    """
    from mri_edge.authoring.packing import unpack

    manifest = unpack(packed, out, signed_by=signed_by, overwrite=overwrite)
    click.echo(f"{out}: {manifest.title}")


@click.command(epilog="\b\nExample:\n  mri-edge bundle sign device/ --key hospital.pem")
@required_bundle_argument
@click.option("--key", type=_PATH, required=True, metavar="KEY", help="Private key: PEM, Ed25519.")
def sign(model: str, key: Path) -> None:
    """Sign BUNDLE after checking its files.

    The signature covers the manifest, which lists every file with its hash. It is the file manifest.json.sig in
    BUNDLE; pack includes it. Sign last: changing the bundle removes the signature.
    """
    from mri_edge.authoring.signing import sign
    from mri_edge.bundles.bundle import Bundle

    fingerprint = sign(Bundle.open_to_change(model), key, passphrase=lambda: _passphrase(key))
    click.echo(f"{model}: signed, key {fingerprint}")


@click.command(
    "verify-signature", epilog="\b\nExample:\n  mri-edge bundle verify-signature device/ --key hospital.pub.pem"
)
@required_bundle_argument
@click.option("--key", type=_PATH, required=True, metavar="KEY", help="Public key: PEM, Ed25519.")
def verify_signature(model: str, key: Path) -> None:
    """Check a signature and all files that it covers.

    The exit code is 3 unless the owner of KEY signed BUNDLE and no file has changed since. BUNDLE may be packed.
    'predict' and 'watch' make the same check with --require-signature KEY.
    """
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.bundles.signatures import fingerprint

    manifest = Bundle.open(model, signed_by=key).manifest
    click.echo(f"{model}: {manifest.title}, signed, no file changed; key {fingerprint(key)}")


@click.command(epilog="\b\nExample:\n  mri-edge bundle keygen hospital")
@click.argument("name", metavar="NAME", type=_PATH)
def keygen(name: Path) -> None:
    """Make a key pair for signing.

    NAME.pem signs bundles: keep it secret. NAME.pub.pem is for the devices. The private key is not protected by a
    passphrase: 'openssl pkey -in NAME.pem -aes256 -out SAFE.pem' adds one, and sign then asks for it.
    """
    from mri_edge.bundles.signatures import make_keys

    private, public = name.with_name(f"{name.name}.pem"), name.with_name(f"{name.name}.pub.pem")
    fingerprint = make_keys(private, public)
    click.echo(f"{private}: private, keep it secret\n{public}: public, for the devices; key {fingerprint}")


def _passphrase(key: Path) -> str:
    from mri_edge.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            f"{key}: is protected by a passphrase, and there is no terminal to ask for it", "Sign at a terminal"
        )
    phrase: str = click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return phrase
