"""Export a model: convert it, run each artifact in its engine, compare it with Keras, and write all or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.intervals import with_interval
from mri_edge.authoring.teacher import TEACHER, TeacherAnswers
from mri_edge.authoring.writer import KERAS, BundleWriter, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.commands.progress import Pace
from mri_edge.engines import Engine, open_engine
from mri_edge.errors import BundleError, ConversionError, DataError, EngineError, GateError, MriEdgeError

from .calibration.calibrator import choose_calibration
from .calibration.observation import Method
from .formats import Conversion, Format, find_format
from .metadata import add_metadata
from .parity.comparison import Comparison, ReferenceImages, compare
from .parity.document import write_parity
from .parity.gate import DEFAULT_GATES, Gate
from .parity.images import ComparedImages, add_others, read_tests, run_batches
from .sources.device_graph import device_graph
from .sources.keras_model import answers, load
from .sources.layers import layer_names

_BATCH = 16  # images that run through an engine at a time


@dataclass(frozen=True)
class Settings:
    """The formats to make, the images to use, and the limits of the gate.

    ``calibration`` is a folder to use instead of the training images. ``search`` chooses the method and
    the float layers on training images. A None in ``gate`` keeps the default limit of the format.
    """

    formats: tuple[str, ...]
    data: Path
    method: Method = "minmax"
    calibration: Path | None = None
    calibration_images: int = 128
    search: bool = False
    seed: int = 0
    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class Source:
    """The Keras model to export, its manifest, the split with the test images, its origin, and its teacher."""

    model: Any
    manifest: Manifest
    split: Split
    origin: dict[str, str]
    teacher: TeacherAnswers | None = None


@dataclass(frozen=True)
class Result:
    """One artifact and its comparison with the Keras model."""

    artifact: Artifact
    comparison: Comparison

    def __str__(self) -> str:
        comparison = self.comparison
        return (
            f"{self.artifact.file}  {self.artifact.size_bytes / 1e6:.1f} MB  accuracy "
            f"{with_interval(comparison.accuracy.value, comparison.accuracy.low, comparison.accuracy.high)}  "
            f"{len(comparison.flips):,} of {comparison.images:,} labels change  {comparison.verdict}"
        )


@dataclass(frozen=True)
class Failure:
    """A format that is left out of an export that keeps going, and the reason."""

    format: str
    error: MriEdgeError

    def __str__(self) -> str:
        return f"{self.format}: {self.error.problem}"


class ExportRefusedError(GateError):
    """A gate was not met; ``results`` holds every comparison of the export."""

    def __init__(self, results: Sequence[Result]) -> None:
        refused = [result for result in results if result.comparison.verdict == "not met"]
        reasons = "; ".join(f"{result.artifact.file}: {', '.join(result.comparison.reasons)}" for result in refused)
        super().__init__(f"{reasons}. Nothing was written", "'mri-edge export --help' lists the limits of the gate")
        self.results = list(results)

    def __reduce__(self) -> Any:
        return type(self), (self.results,)


def export(
    bundle: Bundle,
    settings: Settings,
    *,
    step: Callable[[str], None] = lambda _: None,
    leave_out: Callable[[Failure], None] | None = None,
) -> list[Result]:
    """Convert the Keras model of a bundle, and add the artifacts to the bundle.

    Returns every comparison. Nothing is written unless the verdict is ``met`` or ``undecided`` for every artifact or,
    with ``leave_out``, for one at least. Then the others are added.

    Parameters
    ----------
    step
        Called with a line of text before each step.
    leave_out
        Called for each format that fails, which the export then continues without. An artifact of that format from an
        earlier export stays in the bundle.

    Raises
    ------
    DataError
        A test image is missing or changed, an image is unreadable, or a calibration image is a test image.
    ConversionError
        The model cannot be converted to one of the formats.
    ExportRefusedError
        An artifact is too far from the Keras model.
    BundleError
        The bundle is recalibrated.
    OutputError
        The bundle cannot be written.
    """
    if bundle.manifest.recalibration:
        raise BundleError(
            f"{bundle.folder}: is recalibrated, with figures measured on its present artifacts",
            "Export the bundle that it was made from, then recalibrate that",
        )
    step("opening the model")
    artifact = bundle.artifact(KERAS)
    source = Source(
        load(bundle.folder / artifact.file, bundle.read(artifact)),
        bundle.manifest,
        _read_split(bundle),
        {"file": KERAS, "sha256": artifact.sha256},
        _read_teacher(bundle),
    )
    with rewrite_bundle(bundle) as writer:
        return add_artifacts(writer, source, settings, step, leave_out)


def add_artifacts(
    writer: BundleWriter,
    source: Source,
    settings: Settings,
    step: Callable[[str], None],
    leave_out: Callable[[Failure], None] | None = None,
) -> list[Result]:
    """Convert, compare, and add artifacts, ``parity.json`` and its page to a bundle that is being written.

    Parameters, result and errors are those of ``export``.
    """
    preprocessing = source.manifest.preprocessing
    graph = device_graph(source.model, preprocessing)
    formats = [find_format(name) for name in settings.formats]
    step("reading the images")
    if not source.split.of("test"):
        raise DataError("the split has no test images to compare on", "Train or split again")
    compared = read_tests(source.split, settings.data, preprocessing)
    calibrator = None
    if any(target.CALIBRATED for target in formats):
        tests = {tensor: settings.data / file for tensor, file in compared.tests.items()}
        calibrator = choose_calibration(source.split, preprocessing, settings, tests, step)
    compared = add_others(
        compared, source.split, settings.data, preprocessing, calibrator, seed=settings.seed, step=step
    )
    step(f"comparing on {compared}")
    images = _reference_images(source, compared, step)
    manifest = source.manifest
    explained = manifest.positive if len(manifest.labels) == 2 else None
    conversion = Conversion(graph, explained, calibrator, layer_names(source.model))
    results: list[Result] = []
    pace = Pace()
    failure: MriEdgeError | None = None
    for number, (name, target) in enumerate(zip(settings.formats, formats, strict=True), 1):
        gate = DEFAULT_GATES[target.PRECISION].override(settings.gate)
        try:
            result = _add_artifact(target, conversion, writer, compared.pixels, images, gate, step)
        except (ConversionError, EngineError) as error:
            failure = type(error)(f"{name}: {error.problem}", error.hint)
            if leave_out is None:
                raise failure from error
            leave_out(Failure(name, error))
            continue
        results.append(result)
        step(f"{result}  artifact {number} of {len(formats)}, {pace.words(number, len(formats))}")
        if leave_out is not None and result.comparison.verdict == "not met":
            leave_out(Failure(name, GateError(f"not met: {', '.join(result.comparison.reasons)}")))
    added = [result for result in results if result.comparison.verdict != "not met"]
    if len(added) < len(results) and (leave_out is None or not added):
        raise ExportRefusedError(results)
    if not added and failure is not None:
        raise failure
    if calibrator and any(result.artifact.precision == "int8" for result in added):
        writer.update(calibration=calibrator.record)
    comparisons = {result.artifact.file: result.comparison.to_dict() for result in added}
    facts = {
        "reference": source.origin,
        "split_fingerprint": source.split.split_fingerprint,
        "threshold": manifest.threshold,
    }
    write_parity(writer, images, comparisons, facts)
    return results


def _read_split(bundle: Bundle) -> Split:
    document = bundle.manifest.document(SPLIT)
    if document is None:
        raise BundleError(f"{bundle.folder}: contains no {SPLIT}, so the test images are not known")
    return Split.from_json(bundle.read(document), origin=str(bundle.folder / SPLIT))


def _read_teacher(bundle: Bundle) -> TeacherAnswers | None:
    document = bundle.manifest.document(TEACHER)
    return TeacherAnswers.from_json(bundle.read(document), str(bundle.folder / TEACHER)) if document else None


def _reference_images(source: Source, compared: ComparedImages, step: Callable[[str], None]) -> ReferenceImages:
    """The Keras model's answers for the compared images."""

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return answers(source.model, [batch], source.manifest.preprocessing)

    step(f"running the Keras model on {len(compared.pixels):,} images")
    reference = run_batches(run, compared.pixels, _BATCH, lambda done: step(f"running the Keras model: {done}"))
    return ReferenceImages(compared.files, compared.stages, compared.labels, reference, source.teacher, compared.others)


def _add_artifact(
    target: Format,
    conversion: Conversion,
    writer: BundleWriter,
    pixels: NDArray[np.uint8],
    images: ReferenceImages,
    gate: Gate,
    step: Callable[[str], None],
) -> Result:
    """Make one artifact, and run it in its engine. Unless its gate is not met, add it to the bundle."""
    step(f"making {target.FILE}")
    with opened_artifact(target, conversion, writer) as (path, engine, described):
        step(f"checking {target.FILE} on {len(pixels):,} images")
        answer = run_batches(engine.run, pixels, _BATCH, lambda done: step(f"checking {target.FILE}: {done}"))
        names = {"engine": engine.name, "provider": engine.provider}
        comparison = compare(answer, images, writer.manifest, gate, **names, threads=engine.threads)
        artifact = replace(described, parity=comparison.summary())
        if comparison.verdict == "not met":
            return Result(artifact, comparison)
        os.replace(path, writer.path(target.FILE))
    return Result(writer.add_artifact(artifact), comparison)


@contextmanager
def opened_artifact(
    target: Format, conversion: Conversion, writer: BundleWriter
) -> Iterator[tuple[Path, Engine, Artifact]]:
    """Make an artifact in a temporary folder, and open it. Its entry has no hash and no parity yet."""
    content, facts = target.convert(conversion)
    with tempfile.TemporaryDirectory(dir=writer.folder) as folder:
        path = Path(folder) / target.FILE
        path.write_bytes(add_metadata(content, target.FORMAT, writer.manifest))
        with closing(open_engine(path, provider="cpu")) as engine:
            artifact = Artifact(
                file=target.FILE,
                format=target.FORMAT,
                precision=target.PRECISION,
                size_bytes=len(content),
                sha256="",
                input=engine.input,
                output=engine.outputs[0],
                made_with={**{name: version(name) for name in target.LIBRARIES}, **facts},
            )
            yield path, engine, artifact
