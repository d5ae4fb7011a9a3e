"""``mri-edge export``: from a trained bundle to ONNX and TFLite, parity proven."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mri_edge.errors import UsageError
from mri_edge.labels import KNOWN_FOLDERS

from .formats import QUANTIZE, format_names

if TYPE_CHECKING:
    from mri_edge.preprocess import Preprocessing

    from .exporter import Result, Settings

_NEEDED = ("tensorflow", "keras", "tf2onnx", "onnx", "ai_edge_litert", "sklearn", "scipy")
_WIDE = 120  # columns where no terminal says how many

EPILOG = f"""\b
Examples:
  mri-edge export BUNDLE --quantize --data DIR
  mri-edge export BUNDLE --formats onnx,tflite-int8 --data DIR
  mri-edge export NEW --from model.keras --labels no,yes --data DIR --preprocessing '{{"scale": 1}}' --all

\b
Formats: {", ".join(format_names())}

\b
The gate compares each artefact with the Keras model on the test images:
  float32   largest |Δp| at most 0.0001
  float16   largest |Δp| at most 0.005
  others    mean |Δp| at most 0.02, at most 5% of the labels changed (95% confidence)
  all       not significantly fewer right answers than the Keras model, nor, where that was
            distilled, than its teacher (exact McNemar, p < 0.05)
It answers met, undecided (too few images to tell; the artefact is kept), or not met: exit code 5,
and nothing is written.
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The folder that training used.")
@click.option("--formats", metavar="LIST", help="Formats to make, separated by commas (default: onnx,tflite).")
@click.option("--quantize", is_flag=True, help=f"Short for {','.join(QUANTIZE)}.")
@click.option("--all", "every", is_flag=True, help="Every format.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures that set the int8 ranges, in place of training images. Test images are refused.",
)
@click.option(
    "--calibration-method",
    "method",
    type=click.Choice(["minmax", "entropy", "percentile"]),
    default="minmax",
    show_default=True,
    help="How calibration sets the range of a tensor.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="How many are drawn, each class in its share.",
)
@click.option("--search", is_flag=True, help="Try every method, and the first layer in float, on training images.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the calibration images.")
@click.option("--max-difference", type=click.FloatRange(0), help="Gate: largest |Δp| of every artefact.")
@click.option("--mean-difference", type=click.FloatRange(0), help="Gate: mean |Δp| of every artefact.")
@click.option(
    "--flip-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Gate: share of labels that may change.",
)
@click.option(
    "--from",
    "origin",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="A .keras or .h5 file or SavedModel made elsewhere: BUNDLE is made around it.",
)
@click.option("--labels", metavar="LIST", help="With --from: the model's labels in order, which are folders in --data.")
@click.option(
    "--positive", metavar="LABEL", help="With --from: which label is the positive one, where the names do not say."
)
@click.option(
    "--preprocessing",
    metavar="JSON",
    help="With --from: object or file with height, width, channel_order, scale, mean, deviation.",
)
@click.option("--overwrite", is_flag=True, help="With --from: replace a bundle that stands at BUNDLE.")
def export(
    bundle: Path,
    formats: str | None,
    quantize: bool,
    every: bool,
    origin: Path | None,
    labels: str | None,
    positive: str | None,
    preprocessing: str | None,
    overwrite: bool,
    max_difference: float | None,
    mean_difference: float | None,
    flip_rate: float | None,
    **settings: Any,
) -> None:
    """Convert a trained bundle to ONNX and TFLite, and prove each artefact.

    Artefacts take uint8 RGB pixels (N, height, width, 3) and give float32 probabilities (N, classes).
    Each is run in its own engine on the test images and compared with the Keras model of BUNDLE
    before it is added to BUNDLE.
    """
    from mri_edge.bundle import Bundle

    names = _chosen(formats, quantize, every)
    warnings: list[str] = []
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"export needs packages that are not installed: {', '.join(missing)}", "pip install 'mri-edge[export]'"
        )
    if origin is None:
        opened = Bundle.open(bundle)

        def run(chosen: Settings, step: Callable[[str], None]) -> list[Result]:
            from .exporter import export as make

            return make(opened, chosen, step=step)
    else:
        wanted, prepared = _labels(labels), _preprocessing(preprocessing)
        index = positive_of(wanted, positive)

        def run(chosen: Settings, step: Callable[[str], None]) -> list[Result]:
            from .foreign import export_foreign

            options = {"overwrite": overwrite, "step": step, "warn": warnings.append}
            return export_foreign(origin, bundle, wanted, index, prepared, chosen, **options)

    try:
        _run(run, names, (max_difference, mean_difference, flip_rate), settings)
    finally:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)


def _run(
    run: Callable[[Settings, Callable[[str], None]], list[Result]],
    names: tuple[str, ...],
    bounds: tuple[float | None, ...],
    settings: dict[str, Any],
) -> None:
    """Import TensorFlow, run with progress on stderr, print the table; a refusal is printed before it is raised."""
    from rich.console import Console

    from .quiet import import_tensorflow, quiet, screen

    refused = None
    with screen() as stream, quiet(), Console(file=stream).status("starting TensorFlow") as status:
        import_tensorflow()
        from .exporter import ExportRefusedError, Settings
        from .parity import Gate

        try:
            results = run(Settings(formats=names, gate=Gate(*bounds), **settings), status.update)
        except ExportRefusedError as error:
            results, refused = error.results, error
    show(results)
    if refused:
        raise refused


def _chosen(formats: str | None, quantize: bool, every: bool) -> tuple[str, ...]:
    if sum((formats is not None, quantize, every)) > 1:
        raise UsageError("--formats, --quantize and --all exclude one another")
    if every:
        return format_names()
    if quantize:
        return QUANTIZE
    wanted = tuple(dict.fromkeys(one.strip() for one in (formats or "onnx,tflite").split(",") if one.strip()))
    if unknown := [one for one in wanted if one not in format_names()]:
        raise UsageError(f"unknown format {unknown[0]!r}", f"Formats: {', '.join(format_names())}")
    return wanted


def _labels(text: str | None) -> tuple[str, ...]:
    labels = tuple(one.strip() for one in (text or "").split(",") if one.strip())
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(f"--from needs --labels, at least two, none twice. Received: {text!r}")
    return labels


def positive_of(labels: tuple[str, ...], positive: str | None) -> int:
    """Index of the positive label: the one that is named, else the one that means tumour in the public sets.

    Raises
    ------
    UsageError
        No label of that name; or none is named, and the labels do not tell.
    """
    if positive in labels:
        return labels.index(positive)
    if positive is not None:
        raise UsageError(f"no label {positive!r}", f"Labels: {', '.join(labels)}")
    meanings = [KNOWN_FOLDERS.get(one.lower()) for one in labels]
    if None in meanings or meanings.count(1) != 1:
        raise UsageError(f"which label is the positive one? Labels: {', '.join(labels)}", "Say it: --positive LABEL")
    return meanings.index(1)


def _preprocessing(text: str | None) -> Preprocessing:
    from mri_edge.preprocess import Preprocessing
    from mri_edge.records import parse, read

    if text is None:
        raise UsageError(
            "--from needs --preprocessing: what the model expects is not written in it",
            """For one that scales by itself: --preprocessing '{"height": 224, "width": 224, "scale": 1}'""",
        )
    if text.lstrip().startswith("{"):
        return read(Preprocessing, parse(text, "--preprocessing"), "--preprocessing")
    try:
        content = Path(text).read_bytes()
    except OSError as error:
        raise UsageError(f"--preprocessing: {text}: cannot read ({error.strerror})") from error
    return read(Preprocessing, parse(content, text), text)


def show(results: list[Result]) -> None:
    """Print the table: artefact, size, accuracy with interval, differences, flips, verdict; then the reasons."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("artefact", "MB", "accuracy (95%)", "largest |Δp|", "mean |Δp|", "flips", "verdict"):
        table.add_column(name, justify="left" if name in ("artefact", "verdict") else "right", no_wrap=True)
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
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    for one in results:
        for reason in one.comparison.reasons:
            click.echo(f"{one.artefact.file}: {one.comparison.verdict}: {reason}")
