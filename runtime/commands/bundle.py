"""``mri-edge bundle``: make a device's bundle out of a full one."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def bundle() -> None:
    """Cut a bundle down to what a device needs."""


@bundle.command(epilog="\b\nExample:\n  mri-edge bundle slim full/ --artefact model.int8.onnx --out device/")
@click.argument("model", metavar="BUNDLE")
@click.option("--artefact", "artefacts", multiple=True, required=True, help="Artefact to keep; may be repeated.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new bundle.")
@click.option("--name", help="Name of the model in the new manifest (default: as it was).")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
def slim(model: str, artefacts: tuple[str, ...], out: Path, name: str | None, overwrite: bool) -> None:
    """Copy BUNDLE with only the named artefacts, for a device that runs just these.

    Metrics, parity report and split record are kept, pages and pictures are not.
    """
    from ..bundle import Bundle, check_free

    check_free(out, overwrite=overwrite)
    source = Bundle.open(model)
    keep = [source.artefact(one).file for one in artefacts]
    keep += [one.file for one in source.manifest.documents if "/" not in one.file]
    for entry in source.entries():
        if entry.file in keep:
            source.path_of(entry)
    with source.rewriting(out, keep=keep) as writer:
        if name:
            writer.update(name=name)
    size = sum(one.stat().st_size for one in out.iterdir())
    click.echo(f"{out}: {', '.join(keep)} ({size / 1e6:.1f} MB)")
