"""``mri-edge render``: write what the network sees of a scan as a picture."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.commands.options import ANY_MODALITY, MODEL, WINDOW
from mri_edge.errors import InputError, UsageError, printable
from mri_edge.scans import readers
from mri_edge.scans.frame import Frame, Unread
from mri_edge.scans.options import ReadOptions
from mri_edge.storage.atomic import atomic_write

EXAMPLES = """\b
Examples:
  mri-edge render IM0001 -o input.png
  mri-edge render IM0001 -o why.png --explain --window auto
  mri-edge render volume.nii.gz -o slice.png --explain --index 90
"""


@click.command(epilog=EXAMPLES)
@click.argument("scan", metavar="SCAN")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The PNG to write. An existing file is replaced.",
)
@click.option(
    "--explain", is_flag=True, help="Show the frame beside it, and below them the rescale, the window and the turns."
)
@click.option(
    "--index",
    type=click.IntRange(min=0),
    help="Which frame of a file with several, from 0, as 'index' in a result. Default: the middle one.",
)
@WINDOW
@ANY_MODALITY
@MODEL
def render(scan: str, out: Path, explain: bool, index: int | None, window: str, any_modality: bool, model: str) -> None:
    """Write what the network sees of a scan as a picture.

    The picture is the input of the model, pixel by pixel: values have become gray levels by a window,
    the slice has been turned to the radiological view, and its size is that of the network. SCAN is a
    picture, a DICOM or a NIfTI file.
    """
    from mri_edge.inference.preparing import Decoded, prepare
    from mri_edge.inference.rendering import draw_explained, draw_input

    if out.exists() and os.path.exists(scan) and out.samefile(scan):
        raise UsageError(f"{printable(str(out))}: is the scan itself", "Name another file with --out")
    reading = ReadOptions(window, any_modality)
    manifest = Bundle.open(model).manifest
    frame = _frame(scan, index, reading)
    (prepared,) = prepare([Decoded(frame, 0)], manifest.preprocessing, keep_pixels=False)
    network_input = prepared.frame.pixels
    if explain:
        atomic_write(out, draw_explained(frame, network_input, manifest.title, prepared.warnings))
    else:
        atomic_write(out, draw_input(network_input))
    for warning in prepared.warnings:
        click.echo(f"mri-edge: {printable(scan)}: warning: {warning}", err=True)


def _frame(scan: str, index: int | None, reading: ReadOptions) -> Frame:
    """Return one frame of a scan. Raises InputError, or UsageError if there are not so many."""
    count = 0
    for frame in readers.read_each(scan, reading):
        count = frame.count
        wanted = count // 2 if index is None else index
        if wanted >= count:
            break
        if frame.index == wanted:
            if isinstance(frame, Unread):
                raise frame.error
            return frame
    if not count:
        raise InputError(f"{printable(scan)}: holds no frames", code="damaged")
    held = "1 frame" if count == 1 else f"{count} frames, 0 to {count - 1}"
    raise UsageError(f"{printable(scan)}: has no frame {index}", f"It holds {held}")
