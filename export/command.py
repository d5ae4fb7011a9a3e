"""``mri-edge export``: convert a trained bundle to ONNX and TFLite, and compare each artifact with Keras."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from mri_edge.commands.options import refuse_typed
from mri_edge.commands.output import table
from mri_edge.commands.usage import NumberRange
from mri_edge.errors import GateError, MriEdgeError, UsageError, printable

from .formats import QUANTIZE, check_format, find_format, format_names, installed_formats, missing_packages

if TYPE_CHECKING:
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.bundles.manifest import Artifact

    from .exporter import ExportRefusedError, Failure, Result, Settings
    from .options import ModelDescription
    from .sources.adapt import Activation

_NEEDED = ("tensorflow", "keras", "tf2onnx", "onnx", "ai_edge_litert", "jinja2", "sklearn", "scipy")
_DEFAULT_FORMATS = ("onnx", "tflite")
_OF_CALIBRATION = ("calibration", "method", "calibration_images", "search")
_OF_THE_GATE = ("max_difference", "mean_difference", "flip_rate")
_OF_A_MODEL_FILE = ("labels", "positive", "preprocessing", "activation", "overwrite")
_HEADER = ("artifact", "MB", "accuracy (95%)", "largest |Δp|", "mean |Δp|", "flips", "verdict")
_INTERRUPTED = 130  # 128 + SIGINT, as in shells

EPILOG = f"""\b
Examples:
  mri-edge export --quantize
  mri-edge export bundles/mine --quantize --data scans/
  mri-edge export bundles/mine --formats onnx,tflite-int8
  mri-edge export NEW --from model.keras --labels no,yes --data DIR --preprocessing '{{"scale": 1}}' --all

\b
Formats: {", ".join(format_names())}

\b
The gate compares each artifact with the Keras model. |Δp| and changed labels are counted on the test images
and on images of the training that did not calibrate, up to 2,000 in all; right answers on the test images:
  float32   largest |Δp| at most 0.0001
  float16   largest |Δp| at most 0.005
  others    mean |Δp| at most 0.02, at most 5% of the labels changed (95% confidence)
  all       not significantly fewer right answers than the Keras model, nor, where that was
            distilled, than its teacher (exact McNemar, p < 0.05)
The verdict is met, undecided (too few images to tell; the artifact is kept), or not met: exit code 5,
and nothing is written. With --keep-going the other artifacts are written; the exit code is 5 if a gate was
not met, else 1 if a format could not be made.
"""


@dataclass
class _Outcome:
    """What an export gave: comparisons with Keras or, without pictures, artifacts that were not compared."""

    results: list[Result] = field(default_factory=list)
    uncompared: list[Artifact] = field(default_factory=list)
    refused: ExportRefusedError | None = None


def _split(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """The parts of a list separated by commas, without empty ones."""
    return None if text is None else tuple(part for part in map(str.strip, text.split(",")) if part)


@click.command(epilog=EPILOG)
@click.argument("position", metavar="[BUNDLE]", required=False, type=click.Path())
@click.option("--model", type=click.Path(), metavar="BUNDLE", help="The same as BUNDLE.  [default: the last in runs/]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The folder that training used.  [default: the one it recorded on this machine]",
)
@click.option(
    "--formats",
    metavar="LIST",
    callback=_split,
    help=f"Formats to make, separated by commas (default: {','.join(_DEFAULT_FORMATS)}).",
)
@click.option("--quantize", is_flag=True, help=f"Short for {','.join(QUANTIZE)}.")
@click.option("--all", "every", is_flag=True, help="Every format for which the packages are installed.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Pictures that set the int8 ranges instead of training images. Test images are refused.",
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
    help="How many images are drawn, in proportion to the size of each class.",
)
@click.option("--search", is_flag=True, help="Try every method, and the first layer in float, on training images.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Seed for drawing the images that calibrate and that are compared and, with --from, the test images.",
)
@click.option("--max-difference", type=NumberRange(0), help="Gate: largest |Δp| of every artifact.")
@click.option("--mean-difference", type=NumberRange(0), help="Gate: mean |Δp| of every artifact.")
@click.option(
    "--flip-rate",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    help="Gate: proportion of labels that may change.",
)
@click.option(
    "--from",
    "external",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="A .keras or .h5 file or SavedModel made elsewhere; BUNDLE is the new bundle for it. Without --data only "
    "float formats can be made, and they are not compared on scans.",
)
@click.option(
    "--labels",
    metavar="LIST",
    callback=_split,
    help="With --from: the model's labels in order. They name the folders in --data; FOLDER=LABEL is for folders with "
    "other names; 'folders' means every folder, in alphabetical order.",
)
@click.option("--positive", metavar="LABEL", help="With --from: the positive label. More than two labels need none.")
@click.option(
    "--preprocessing",
    metavar="JSON",
    help="With --from: object or file with height, width, channel_order, scale, mean, deviation, framing, resize.",
)
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid"]),
    help="With --from: the model gives logits, which this turns into probabilities.",
)
@click.option(
    "--keep-going", is_flag=True, help="Make the other formats if one fails, and name each that failed on stderr."
)
@click.option("--overwrite", is_flag=True, help="With --from: replace an existing BUNDLE.")
def export(
    position: str | None,
    model: str | None,
    data: Path | None,
    formats: tuple[str, ...] | None,
    quantize: bool,
    every: bool,
    external: Path | None,
    labels: tuple[str, ...] | None,
    positive: str | None,
    preprocessing: str | None,
    activation: Activation | None,
    keep_going: bool,
    overwrite: bool,
    max_difference: float | None,
    mean_difference: float | None,
    flip_rate: float | None,
    **settings: Any,
) -> int:
    """Convert a trained bundle to ONNX and TFLite, and check each artifact.

    Artifacts take uint8 RGB pixels (N, height, width, 3) and give float32 probabilities (N, classes).
    Each is run in its own engine and compared with the Keras model of BUNDLE before it is added to BUNDLE.
    Without BUNDLE, the bundle in runs/ that was trained last is exported.
    """
    from mri_edge.authoring.runs import as_typed, choose_bundle, remember_data, remembered_data
    from mri_edge.bundles.bundle import Bundle

    names = _choose_formats(formats, quantize, every)
    named = choose_bundle(position, model)
    if external is None:
        refuse_typed(_OF_A_MODEL_FILE, "applies only to a model made elsewhere", "Add --from MODEL, or omit it")
    else:
        from .options import parse_description

        described = parse_description(named, data, labels, positive, preprocessing, activation)
        _say(described.describe_labels())
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"export needs packages that are not installed: {', '.join(missing)}", "pip install 'mri-edge[export]'"
        )
    warnings: list[str] = []
    failures: list[Failure] = []
    leave_out = failures.append if keep_going else None
    scans: Path | None
    if external is None:
        bundle = _bundle_to_export(named)
        folder, scans = bundle.folder, data or remembered_data(bundle)
        if data is None:
            _say(f"with the data of its training, {scans}")
    else:
        folder, scans = described.bundle, described.data

    def run(step: Callable[[str], None]) -> _Outcome:
        _refuse_ignored(names, scans, settings["search"])  # only here, because it imports TensorFlow
        if scans is None:
            from .uncompared import export_uncompared

            path = cast(Path, external)  # only a model made elsewhere can be exported without pictures
            made = export_uncompared(path, described, names, overwrite=overwrite, step=step, leave_out=leave_out)
            return _Outcome(uncompared=made)
        from .exporter import Settings
        from .parity.gate import Gate

        chosen = Settings(names, scans, gate=Gate(max_difference, mean_difference, flip_rate), **settings)
        source = bundle if external is None else (external, described, overwrite)
        return _run_compared(source, chosen, step=step, warn=warnings.append, leave_out=leave_out)

    try:
        outcome = _run_quietly(run)
    except KeyboardInterrupt:
        click.echo(err=True)  # below the terminal's ^C
        _say(f"mri-edge: interrupted; {folder} is as it was before. To export again:")
        _say(f"  {shlex.join(['mri-edge', *sys.argv[1:]])}")
        return _INTERRUPTED
    finally:
        for text in (
            *(f"Warning: {warning}" for warning in warnings),
            *(f"left out {failure}" for failure in failures),
        ):
            _say(printable(text))
    _print_outcome(outcome)
    if scans is not None:
        from .parity.document import PAGE

        remember_data(Bundle.open(folder.absolute()), scans)
        _say(f"report: {folder / PAGE}")
    _say(f"next: mri-edge predict scan.jpg --model {shlex.quote(as_typed(folder))}")
    if any(isinstance(failure.error, GateError) for failure in failures):
        return GateError.exit_code
    return MriEdgeError.exit_code if failures else 0


def _choose_formats(listed: tuple[str, ...] | None, quantize: bool, every: bool) -> tuple[str, ...]:
    """Names of the formats to make. UsageError if a name is unknown, none is listed, or two options are given."""
    if sum((listed is not None, quantize, every)) > 1:
        raise UsageError("--formats, --quantize and --all exclude one another")
    if every:
        for name in format_names():
            if missing := missing_packages(name):
                _say(f"without {name}: {', '.join(missing)} not installed")
        return installed_formats()
    if listed == ():
        raise UsageError("--formats names no format", f"Formats: {', '.join(format_names())}")
    names = QUANTIZE if quantize else tuple(dict.fromkeys(listed or _DEFAULT_FORMATS))
    for name in names:
        check_format(name)
    return names


def _refuse_ignored(names: tuple[str, ...], scans: Path | None, search: bool) -> None:
    """Raise UsageError if an option was typed that this export does not use."""
    if search:
        refuse_typed(("method",), "has no effect with --search, which tries every method", "Omit one of the two")
    if scans is None:
        refuse_typed(_OF_THE_GATE, "is about a comparison on scans, and without --data there is none", "Add --data DIR")
    if not any(find_format(name).CALIBRATED for name in names):
        refuse_typed(
            _OF_CALIBRATION,
            f"is about calibration, and no format is calibrated ({', '.join(names)})",
            "Name one with --formats, for example onnx-int8",
        )
    if not any(find_format(name).PRECISION == "int8" for name in names):
        refuse_typed(
            ("method", "search"),
            f"is about the ranges of int8, and no format is int8 ({', '.join(names)})",
            "Omit it, or name one with --formats, for example onnx-int8",
        )


def _bundle_to_export(named: str | None) -> Bundle:
    """Open the named bundle or, without a name, the bundle in ``runs/`` that was trained last.

    Raises
    ------
    UsageError
        There is none, or it contains no Keras model.
    BundleError
        It cannot be opened.
    """
    from mri_edge.authoring.runs import RUNS, last_trained
    from mri_edge.authoring.writer import KERAS
    from mri_edge.bundles.bundle import Bundle

    if named is None:
        last = last_trained(lambda bundle: bundle.manifest.artifact(KERAS) is not None)
        if last is None:
            raise UsageError(
                f"no bundle is named, and {RUNS}/ holds none to export", "Train one first: mri-edge train scans/"
            )
        _say(f"exporting {last.folder}, trained last ({last.manifest.creation.created})")
        return last
    bundle = Bundle.open(named)
    if bundle.manifest.artifact(KERAS) is None:
        held = ", ".join(artifact.file for artifact in bundle.manifest.artifacts)
        raise UsageError(
            f"{named}: is exported already ({held}) and contains no {KERAS} to export again",
            f"Use it: mri-edge predict scan.jpg --model {named}. To export a model of your own, train it first: "
            "mri-edge train scans/",
        )
    bundle.require_folder()  # the artifacts are written into it
    return bundle


def _say(text: str) -> None:
    click.echo(text, err=True)


def _run_quietly(run: Callable[[Callable[[str], None]], _Outcome]) -> _Outcome:
    """Import TensorFlow, and call ``run`` with a function that shows the current step on stderr."""
    from mri_edge.authoring.quiet import load_keras, quiet, terminal
    from mri_edge.storage.staging import use_temporary_folder

    with terminal() as stream, quiet(), use_temporary_folder("export"), _progress(stream) as step:
        step("starting TensorFlow")
        load_keras("export")
        return run(step)


def _run_compared(
    source: Bundle | tuple[Path, ModelDescription, bool],
    chosen: Settings,
    *,
    warn: Callable[[str], None],
    **callbacks: Any,
) -> _Outcome:
    """Export a bundle or, from its path, description and whether to replace the bundle, a model made elsewhere."""
    from .exporter import ExportRefusedError
    from .exporter import export as export_bundle
    from .sources.external_model import export_external

    try:
        if not isinstance(source, tuple):
            return _Outcome(export_bundle(source, chosen, **callbacks))
        path, described, overwrite = source
        return _Outcome(export_external(path, described, chosen, overwrite=overwrite, warn=warn, **callbacks))
    except ExportRefusedError as error:
        return _Outcome(error.results, refused=error)


def _print_outcome(outcome: _Outcome) -> None:
    """Print a table of the artifacts. Raises ExportRefusedError if a gate was not met."""
    if outcome.results:
        _print_results(outcome.results)
    if outcome.uncompared:
        _print_uncompared(outcome.uncompared)
    if outcome.refused:
        raise outcome.refused


def _print_results(results: list[Result]) -> None:
    """Print a table with a row for each artifact, then the reasons of the verdicts."""
    from mri_edge.authoring.intervals import with_interval

    rows = [_HEADER]
    for result in results:
        comparison = result.comparison
        rows.append(
            (
                result.artifact.file,
                f"{result.artifact.size_bytes / 1e6:.1f}",
                with_interval(comparison.accuracy.value, comparison.accuracy.low, comparison.accuracy.high),
                f"{comparison.max_difference:.1e}",
                f"{comparison.mean_difference:.1e}",
                f"{len(comparison.flips):,}/{comparison.images:,}",
                comparison.verdict,
            )
        )
    for line in table(rows, right=range(1, 6)):
        click.echo(line)
    images, tests = results[0].comparison.images, results[0].comparison.test_images
    if images > tests:
        click.echo(f"Accuracy on {tests:,} test images; the rest on these and {images - tests:,} others.")
    else:
        click.echo(f"All figures on {tests:,} test images: --data has no other images that did not calibrate.")
    for result in results:
        for reason in result.comparison.reasons:
            click.echo(f"{result.artifact.file}: {result.comparison.verdict}: {reason}")


def _print_uncompared(artifacts: list[Artifact]) -> None:
    """Print a table with a row for each artifact that was made without pictures."""
    rows: list[tuple[str, ...]] = [("artifact", "MB", "generated pictures: largest |Δp|", "verdict")]
    for artifact in artifacts:
        difference = f"{artifact.made_with['max_difference']:.1e}"
        rows.append((artifact.file, f"{artifact.size_bytes / 1e6:.1f}", difference, "not compared"))
    for line in table(rows, right=range(1, 3)):
        click.echo(line)
    click.echo("Not compared on scans: name a folder of them with --data to have the gate judge each artifact.")


@contextmanager
def _progress(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step: with a spinner on a terminal, else on a line with the time."""
    from mri_edge.commands.progress import Bar, Pace, redraws

    if redraws(stream):
        with Bar("", stream=stream) as bar:
            yield lambda text: bar.update(0, label=text)
        return
    pace = Pace()
    yield lambda text: print(f"{pace.clock()}  {text}", file=stream, flush=True)
