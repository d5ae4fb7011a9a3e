"""``mri-edge export``: from a trained bundle to ONNX and TFLite, parity proven."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from mri_edge.errors import UsageError

if TYPE_CHECKING:
    from .exporter import Result

_NEEDED = ("tensorflow", "keras", "tf2onnx", "onnx", "ai_edge_litert", "sklearn", "scipy")

_WIDE = 120  # columns

EPILOG = """\b
Examples:
  mri-edge export BUNDLE --quantize --data DIR
  mri-edge export BUNDLE --formats onnx,tflite-int8 --data DIR

\b
Formats:
  onnx          ONNX, float32
  onnx-int8     ONNX, int8, static QDQ
  tflite        TFLite, float32
  tflite-int8   TFLite, full integer
"""


@click.command(epilog=EPILOG)
@click.argument("model", metavar="BUNDLE")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The folder that training used.")
@click.option("--formats", metavar="LIST", help="Formats to make, separated by commas (default: onnx,tflite).")
@click.option("--quantize", is_flag=True, help="Short for onnx,onnx-int8,tflite,tflite-int8.")
@click.option("--all", "every", is_flag=True, help="Every format.")
@click.option(
    "--calibration-method",
    "method",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    show_default=True,
    help="How calibration sets the range of a tensor.",
)
@click.option(
    "--calibration-images", type=click.IntRange(min=1), default=128, show_default=True, help="How many of them."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the calibration images.")
def export(
    model: str,
    data: Path,
    formats: str | None,
    quantize: bool,
    every: bool,
    method: str,
    calibration_images: int,
    seed: int,
) -> None:
    """Convert the Keras model of BUNDLE, compare every artefact with it, and add them to BUNDLE.

    Artefacts take uint8 RGB pixels (N, height, width, 3) and give float32 probabilities (N, classes).
    Each is run in its own engine on the test images before it is written.
    """
    from mri_edge.bundle import Bundle

    from .formats import QUANTIZE, format_names
    from .quiet import import_tensorflow, quiet, screen

    names = _chosen(formats, quantize, every, QUANTIZE, format_names())
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"export needs packages that are not installed: {', '.join(missing)}", "pip install 'mri-edge[export]'"
        )
    bundle = Bundle.open(model)
    from rich.console import Console

    console = Console(file=screen(), stderr=True)
    with quiet(), console.status("starting TensorFlow") as status:
        import_tensorflow()
        from .exporter import ExportRefusedError, Settings
        from .exporter import export as run

        settings = Settings(names, data, method, calibration_images, seed)
        refused = None
        try:
            results, _ = run(bundle, settings, step=status.update)
        except ExportRefusedError as error:
            results, refused = error.results, error
    show(results)
    if refused:
        raise refused


def _chosen(
    formats: str | None, quantize: bool, every: bool, short: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    if sum((bool(formats), quantize, every)) > 1:
        raise UsageError("--formats, --quantize and --all exclude one another")
    if every:
        return known
    if quantize:
        return short
    wanted = tuple(dict.fromkeys(one.strip() for one in (formats or "onnx,tflite").split(",") if one.strip()))
    if unknown := [one for one in wanted if one not in known]:
        raise UsageError(f"unknown format {unknown[0]!r}", f"Formats: {', '.join(known)}")
    return wanted


def show(results: list[Result]) -> None:
    """Print the table: artefact, size, accuracy with interval, largest difference, flips, verdict."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, side in (
        ("artefact", "left"),
        ("MB", "right"),
        ("accuracy (95%)", "left"),
        ("largest |Δp|", "right"),
        ("mean |Δp|", "right"),
        ("flips", "right"),
        ("verdict", "left"),
    ):
        table.add_column(name, justify=side, no_wrap=True)
    for one in results:
        found = one.comparison
        table.add_row(
            one.artefact.file,
            f"{one.artefact.size_bytes / 1e6:.1f}",
            f"{found.accuracy.value:.3f} ({found.accuracy.low:.2f}–{found.accuracy.high:.2f})",
            f"{found.max_difference:.1e}",
            f"{found.mean_difference:.1e}",
            f"{len(found.flips)}/{found.images}",
            found.verdict,
        )
    # A pipe or a file has no width: nothing may be cut off there.
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    console.print(table)
    for one in results:
        for reason in one.comparison.reasons:
            click.echo(f"{one.artefact.file}: {one.comparison.verdict}: {reason}")
