"""``mri-edge bundle``: make a small bundle for a device, and record golden values with which it is verified there."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import delivery
from .options import bundle_and_scans, required_bundle_argument
from .usage import Group

EXAMPLES = """\b
Examples:
  mri-edge bundle slim full/ --artifact model.int8.onnx --out device/
  mri-edge bundle record device/ examples/*.jpg
  mri-edge bundle sign device/ --key hospital.pem
  mri-edge bundle pack device/ --out device.mribundle
  mri-edge bundle unpack device.mribundle --out device/ --require-signature hospital.pub.pem
"""


@click.group(cls=Group, epilog=EXAMPLES, invoke_without_command=True)
@click.pass_context
def bundle(ctx: click.Context) -> None:
    """Prepare a bundle for a device and deliver it: slim, record, sign, pack, unpack."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (delivery.pack, delivery.unpack, delivery.sign, delivery.verify_signature, delivery.keygen):
    bundle.add_command(command)


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle slim full/ --artifact model.int8.onnx --out device/")
@required_bundle_argument
@click.option(
    "--artifact", "--artefact", "artifacts", multiple=True, required=True, help="Artifact to keep; may be repeated."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--name", help="Name of the model in the new manifest (default: unchanged).")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out.")
def slim(model: str, artifacts: tuple[str, ...], out: Path, name: str | None, overwrite: bool) -> None:
    """Copy BUNDLE with only the named artifacts, for a device that runs just these.

    Metrics, parity report, model card and golden values are kept; pages, pictures and what the check of the training
    data found are not. Names of images are
    replaced by the first digits of their SHA-256, so that 'mri-edge evaluate' still recognizes the images. BUNDLE may
    be packed.
    """
    from dataclasses import replace

    from mri_edge.authoring.anonymous import aliases, anonymize_command, replace_image_names
    from mri_edge.authoring.writer import FINDINGS, check_target, rewrite_bundle
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.bundles.split import CONDENSED, SPLIT, Split
    from mri_edge.inference.replay import is_golden

    check_target(out, overwrite=overwrite)
    source = Bundle.open_unsigned(model)
    keep = [source.artifact(artifact).file for artifact in artifacts]
    documents = {document.file: document for document in source.manifest.documents}
    split = documents.pop(SPLIT, None)
    keep += [file for file in documents if ("/" not in file and file != FINDINGS) or is_golden(file)]
    known, creation = aliases(source), source.manifest.creation
    with rewrite_bundle(source, out, keep=keep) as writer:
        if split:
            writer.add_document(CONDENSED, Split.from_json(source.read(split)).to_condensed())
            keep.append(CONDENSED)
        for file in ("metrics.json", "parity.json"):
            if file in documents:
                writer.add_document(file, replace_image_names(source.read(documents[file]), known, file))
        writer.update(creation=replace(creation, command=anonymize_command(creation.command)))
        if name:
            writer.update(name=name)
    size = sum(path.stat().st_size for path in Path(os.path.realpath(out)).rglob("*") if path.is_file())
    click.echo(f"{out}: {', '.join(keep)} ({size / 1e6:.1f} MB)")


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle record my-bundle examples/*.jpg")
@bundle_and_scans
@click.option(
    "--notice",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text file with the owner and the license of the scans. Default: the file NOTICE next to the first scan.",
)
def record(model: str, scans: tuple[Path, ...], notice: Path | None) -> None:
    """Record the results of SCANs on this machine in BUNDLE, for 'mri-edge verify' to replay on a device.

    They replace those that were recorded before.

    Whoever gets the bundle gets the scans: use demo scans with a license that permits this, never a patient's.
    """
    from mri_edge.authoring.golden import record
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.errors import UsageError

    notice = notice or scans[0].parent / "NOTICE"
    if not os.path.isfile(notice):
        raise UsageError(
            f"{notice}: no such file; a notice must permit the distribution of the scans", "Name one with --notice"
        )
    skipped = record(Bundle.open_to_change(model), scans, notice)
    click.echo(f"{model}: golden values of {len(scans)} scans recorded")
    for file in skipped:
        click.echo(f"{file}: not recorded, because its engine is not installed", err=True)
