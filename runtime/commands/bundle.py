"""``mri-edge bundle``: make a device's bundle out of a full one, with values to check it by; ``delivery`` brings it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import delivery
from .options import bundle_and_scans, required_bundle_argument
from .usage import Group

EXAMPLES = """\b
Examples:
  mri-edge bundle slim full/ --artefact model.int8.onnx --out device/
  mri-edge bundle record device/ examples/*.jpg
  mri-edge bundle sign device/ --key hospital.pem
  mri-edge bundle pack device/ --out device.mribundle
  mri-edge bundle unpack device.mribundle --out device/ --require-signature hospital.pub.pem
"""


@click.group(cls=Group, epilog=EXAMPLES, invoke_without_command=True)
@click.pass_context
def bundle(ctx: click.Context) -> None:
    """Make a bundle ready for a device and bring it there: slim, record, sign, pack, unpack."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (delivery.pack, delivery.unpack, delivery.sign, delivery.verify_signature, delivery.keygen):
    bundle.add_command(command)


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle slim full/ --artefact model.int8.onnx --out device/")
@required_bundle_argument
@click.option("--artefact", "artefacts", multiple=True, required=True, help="Artifact to keep; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--name", help="Name of the model in the new manifest (default: as it was).")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
def slim(model: str, artefacts: tuple[str, ...], out: Path, name: str | None, overwrite: bool) -> None:
    """Copy BUNDLE with only the named artefacts, for a device that runs just these.

    Metrics, parity report, model card and golden values are kept, pages and pictures are not. Names of images stay
    at home: of each go the first digits of its SHA-256, for 'mri-edge evaluate' to know it by. BUNDLE may be packed.
    """
    from dataclasses import replace

    from mri_edge.authoring.anonymous import aliases, without_names, without_paths
    from mri_edge.authoring.writer import check_free, rewriting
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.bundles.split import CONDENSED, SPLIT, Split
    from mri_edge.inference.replay import is_golden

    check_free(out, overwrite=overwrite)
    source = Bundle.open_unsigned(model)
    keep = [source.artefact(one).file for one in artefacts]
    documents = {one.file: one for one in source.manifest.documents}
    split = documents.pop(SPLIT, None)
    keep += [file for file in documents if "/" not in file or is_golden(file)]
    known, creation = aliases(source), source.manifest.creation
    with rewriting(source, out, keep=keep) as writer:
        if split:
            writer.add_document(CONDENSED, Split.from_json(source.read(split)).to_condensed())
            keep.append(CONDENSED)
        for file in ("metrics.json", "parity.json"):
            if file in documents:
                writer.add_document(file, without_names(source.read(documents[file]), known, file))
        writer.update(creation=replace(creation, command=without_paths(creation.command)))
        if name:
            writer.update(name=name)
    size = sum(one.stat().st_size for one in out.iterdir())
    click.echo(f"{out}: {', '.join(keep)} ({size / 1e6:.1f} MB)")


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle record my-bundle examples/*.jpg")
@bundle_and_scans
@click.option(
    "--notice",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Whose the scans are, and their licence. Default: the file NOTICE beside the first.",
)
def record(model: str, scans: tuple[Path, ...], notice: Path | None) -> None:
    """Put SCANs into BUNDLE with all they give here, for 'mri-edge verify' to replay on a device.

    The scans travel with the bundle: take demo scans that may be passed on, never a patient's.
    """
    from mri_edge.authoring.golden import record
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.errors import UsageError

    beside = notice or scans[0].parent / "NOTICE"
    if not os.path.isfile(beside):
        raise UsageError(
            f"{beside}: no such file; scans that travel need a notice that lets them", "Name one with --notice"
        )
    record(Bundle.open_unsigned(model), scans, beside)
    click.echo(f"{model}: golden values of {len(scans)} scans recorded")
