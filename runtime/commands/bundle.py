"""``mri-edge bundle``: make a device's bundle out of a full one, with values to check it by; ``delivery`` brings it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from . import delivery
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
@click.argument("model", metavar="BUNDLE")
@click.option("--artefact", "artefacts", multiple=True, required=True, help="Artefact to keep; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--name", help="Name of the model in the new manifest (default: as it was).")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
def slim(model: str, artefacts: tuple[str, ...], out: Path, name: str | None, overwrite: bool) -> None:
    """Copy BUNDLE with only the named artefacts, for a device that runs just these.

    Metrics, parity report, model card and golden values are kept, pages and pictures are not. Of the split
    record, which names every training image, go the hashes: for 'mri-edge evaluate' to know those images.
    """
    from ..bundle import Bundle
    from ..golden import is_golden
    from ..split import CONDENSED, SPLIT, Split
    from ..writing import check_free, rewriting

    check_free(out, overwrite=overwrite)
    source = Bundle.open(model)
    keep = [source.artefact(one).file for one in artefacts]
    documents = {one.file: one for one in source.manifest.documents}
    split = documents.pop(SPLIT, None)
    keep += [file for file in documents if "/" not in file or is_golden(file)]
    for entry in source.entries():
        if entry.file in keep:
            source.path_of(entry)
    with rewriting(source, out, keep=keep) as writer:
        if split:
            writer.add_document(CONDENSED, Split.from_json(source.path_of(split).read_bytes()).to_condensed())
            keep.append(CONDENSED)
        if name:
            writer.update(name=name)
    size = sum(one.stat().st_size for one in out.iterdir())
    click.echo(f"{out}: {', '.join(keep)} ({size / 1e6:.1f} MB)")


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle record my-bundle examples/*.jpg")
@click.argument("model", metavar="BUNDLE")
@click.argument("scans", metavar="SCAN...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
    from ..bundle import Bundle
    from ..errors import UsageError
    from ..golden import record

    beside = notice or scans[0].parent / "NOTICE"
    if not os.path.isfile(beside):
        raise UsageError(
            f"{beside}: no such file; scans that travel need a notice that lets them", "Name one with --notice"
        )
    record(Bundle.open(model), scans, beside)
    click.echo(f"{model}: golden values of {len(scans)} scans recorded")
