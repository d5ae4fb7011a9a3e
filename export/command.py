"""``mri-edge export``: from a trained bundle to ONNX and TFLite, parity proven."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from mri_edge.authoring.figures import with_interval
from mri_edge.authoring.labels import KNOWN_FOLDERS
from mri_edge.errors import UsageError

from .formats import QUANTIZE, format_names

if TYPE_CHECKING:
    from mri_edge.bundles.bundle import Bundle
    from mri_edge.scans.preprocessing import Preprocessing

    from .exporter import Result, Settings

_NEEDED = ("tensorflow", "keras", "tf2onnx", "onnx", "ai_edge_litert", "jinja2", "sklearn", "scipy")
_WIDE = 120  # columns where no terminal says how many
_PAGE = "report/parity.html"  # of report.py, which imports more than --help may
_INTERRUPTED = 130  # 128 + SIGINT, as shells say it

EPILOG = f"""\b
Examples:
  mri-edge export --quantize
  mri-edge export bundles/mine --quantize --data scans/
  mri-edge export bundles/mine --formats onnx,tflite-int8
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
@click.argument("position", metavar="[BUNDLE]", required=False, type=click.Path())
@click.option("--model", type=click.Path(), metavar="BUNDLE", help="The same as BUNDLE.  [default: the last in runs/]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="The folder that training used.  [default: the one it recorded on this machine]",
)
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
    position: str | None,
    model: str | None,
    data: Path | None,
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
) -> int:
    """Convert a trained bundle to ONNX and TFLite, and prove each artefact.

    Artefacts take uint8 RGB pixels (N, height, width, 3) and give float32 probabilities (N, classes).
    Each is run in its own engine on the test images and compared with the Keras model of BUNDLE
    before it is added to BUNDLE. Without BUNDLE: the one in runs/ that was trained last.
    """
    from mri_edge.authoring.runs import as_typed, choose_bundle, remember_data
    from mri_edge.bundles.bundle import Bundle

    names = _chosen(formats, quantize, every)
    named = choose_bundle(position, model)
    if origin is not None:
        _check_foreign(named, data, labels, preprocessing)
    warnings: list[str] = []
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(
            f"export needs packages that are not installed: {', '.join(missing)}", "pip install 'mri-edge[export]'"
        )
    if origin is None:
        opened = _bundle_to_export(named)
        folder = opened.folder
        scans = data or _remembered(opened)

        def run(chosen: Settings, step: Callable[[str], None]) -> list[Result]:
            from .exporter import export as make

            return make(opened, chosen, step=step)
    else:
        wanted, prepared = _labels(labels), _preprocessing(preprocessing)
        index = positive_of(wanted, positive)
        folder, scans = Path(str(named)), Path(str(data))

        def run(chosen: Settings, step: Callable[[str], None]) -> list[Result]:
            from mri_edge.export.sources.external_model import export_foreign

            options = {"overwrite": overwrite, "step": step, "warn": warnings.append}
            return export_foreign(origin, folder, wanted, index, prepared, chosen, **options)

    try:
        _run(run, names, (max_difference, mean_difference, flip_rate), {"data": scans, **settings})
    except KeyboardInterrupt:
        click.echo(err=True)  # below the terminal's ^C
        _say(f"mri-edge: interrupted; {folder} is as it was before. To export again:")
        _say(f"  {shlex.join(['mri-edge', *sys.argv[1:]])}")
        return _INTERRUPTED
    finally:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
    remember_data(Bundle.open(folder.absolute()), scans)
    _say(f"report: {folder / _PAGE}")
    _say(f"next: mri-edge predict scan.jpg --model {shlex.quote(as_typed(folder))}")
    return 0


def _bundle_to_export(named: str | None) -> Bundle:
    """The bundle that was named, or the one in ``runs/`` that was trained last, which is then said.

    Raises
    ------
    UsageError
        There is none, or it holds no Keras model that could be exported.
    BundleError
        It cannot be opened.
    """
    from mri_edge.authoring.keras_file import KERAS
    from mri_edge.authoring.runs import RUNS, last_trained
    from mri_edge.bundles.bundle import Bundle

    if named is None:
        found = last_trained(lambda bundle: bundle.manifest.artefact(KERAS) is not None)
        if found is None:
            raise UsageError(
                f"no bundle is named, and {RUNS}/ holds none to export", "Train one first: mri-edge train scans/"
            )
        _say(f"exporting {found.folder}, trained last ({found.manifest.creation.created})")
        return found
    opened = Bundle.open(named)
    if opened.manifest.artefact(KERAS) is None:
        held = ", ".join(artefact.file for artefact in opened.manifest.artefacts)
        raise UsageError(
            f"{named}: is exported already ({held}) and holds no {KERAS} to export again",
            f"Use it: mri-edge predict scan.jpg --model {named}. To export a model of your own, train it first: "
            "mri-edge train scans/",
        )
    opened.require_folder()  # the artefacts are written into it
    return opened


def _remembered(bundle: Bundle) -> Path:
    from mri_edge.authoring.runs import remembered_data

    scans = remembered_data(bundle)
    _say(f"with the data of its training, {scans}")
    return scans


def _check_foreign(named: str | None, data: Path | None, labels: str | None, preprocessing: str | None) -> None:
    """Raise UsageError that names all that ``--from`` still needs."""
    needed = {
        "BUNDLE, the folder to be made": named,
        "--data DIR, pictures to compare and calibrate with": data,
        "--labels LIST, the model's labels in order": labels,
        "--preprocessing JSON, what the model expects, which is not written in it": preprocessing,
    }
    if missing := [words for words, given in needed.items() if given is None]:
        raise UsageError(
            f"--from still needs {'; '.join(missing)}",
            "For example: mri-edge export mine --from model.keras --data scans/ --labels no,yes "
            """--preprocessing '{"height": 224, "width": 224, "scale": 1}'""",
        )


def _say(text: str) -> None:
    click.echo(text, err=True)


def _run(
    run: Callable[[Settings, Callable[[str], None]], list[Result]],
    names: tuple[str, ...],
    bounds: tuple[float | None, ...],
    settings: dict[str, Any],
) -> None:
    """Import TensorFlow, run with progress on stderr, print the table; a refusal is printed before it is raised."""
    from mri_edge.authoring.quiet import load_keras, quiet, terminal
    from mri_edge.storage.staging import scratch

    refused = None
    with terminal() as stream, quiet(), scratch("export"), _steps(stream) as step:
        step("starting TensorFlow")
        load_keras("export")
        from mri_edge.export.parity.gate import Gate

        from .exporter import ExportRefusedError, Settings

        try:
            results = run(Settings(formats=names, gate=Gate(*bounds), **settings), step)
        except ExportRefusedError as error:
            results, refused = error.results, error
    show(results)
    if refused:
        raise refused


@contextmanager
def _steps(stream: IO[str]) -> Iterator[Callable[[str], None]]:
    """A function that says what is being done: a spinner on a terminal, a line with the time elsewhere."""
    from mri_edge.commands.progress import Pace, console, redraws

    if redraws(stream):
        with console(stream).status("") as status:
            yield status.update
        return
    pace = Pace()
    yield lambda text: print(f"{pace.clock()}  {text}", file=stream, flush=True)


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
    from mri_edge.bundles.decode import parse, read
    from mri_edge.scans.preprocessing import Preprocessing

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
    from rich.table import Table

    from mri_edge.commands.progress import console

    table = Table(box=None, pad_edge=False)
    for name in ("artefact", "MB", "accuracy (95%)", "largest |Δp|", "mean |Δp|", "flips", "verdict"):
        table.add_column(name, justify="left" if name in ("artefact", "verdict") else "right", no_wrap=True)
    for one in results:
        found = one.comparison
        table.add_row(
            one.artefact.file,
            f"{one.artefact.size_bytes / 1e6:.1f}",
            with_interval(found.accuracy.value, found.accuracy.low, found.accuracy.high),
            f"{found.max_difference:.1e}",
            f"{found.mean_difference:.1e}",
            f"{len(found.flips)}/{found.images}",
            found.verdict,
        )
    console(sys.stdout, width=_WIDE).print(table)
    for one in results:
        for reason in one.comparison.reasons:
            click.echo(f"{one.artefact.file}: {one.comparison.verdict}: {reason}")
