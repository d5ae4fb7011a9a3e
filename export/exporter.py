"""One export: convert, reopen each artefact in its real engine, compare, judge, write all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.figures import with_interval
from mri_edge.authoring.keras_file import KERAS
from mri_edge.authoring.teacher import TEACHER, TeacherAnswers
from mri_edge.authoring.writer import BundleWriter, rewriting
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact, Manifest
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.commands.progress import Pace
from mri_edge.engines import open_engine
from mri_edge.errors import BundleError, DataError, GateError
from mri_edge.export.calibration.calibrate import (
    HELD_OUT,
    Calibrator,
    Method,
    Recipe,
    copies,
    digest,
    draw,
    fitted,
    pictures_in,
    record,
    refuse_test_images,
)
from mri_edge.export.parity.gate import DEFAULT_GATES, PARITY, Comparison, Gate, Judges, compare, document, to_json
from mri_edge.export.parity.report import PAGE, page
from mri_edge.export.sources import models
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.storage.atomic import sha256_of

from .formats import FormatFile, format_file
from .job import Job

_LIBRARIES = {"onnx": ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime"), "tflite": ("tensorflow", "keras")}
UNCHANGED = Gate(None, None, None)
_RUN = 16  # images at a time through an engine


@dataclass(frozen=True)
class Settings:
    """What to make, from what, and how strictly to judge it.

    ``calibration`` names a folder in place of the training images. ``search`` chooses method and float
    layers on the training side. A None in ``gate`` leaves the format's own bound.
    """

    formats: tuple[str, ...]
    data: Path
    method: Method = "minmax"
    calibration: Path | None = None
    calibration_images: int = 128
    search: bool = False
    seed: int = 0
    gate: Gate = UNCHANGED


@dataclass(frozen=True)
class Source:
    """What is exported: a Keras model, its manifest, which images judge it, where it came from, who taught it."""

    model: Any
    manifest: Manifest
    split: Split
    origin: dict[str, str]
    teacher: TeacherAnswers | None = None


@dataclass(frozen=True)
class Result:
    """One artefact and how it compares."""

    artefact: Artifact
    comparison: Comparison

    def __str__(self) -> str:
        found = self.comparison
        return (
            f"{self.artefact.file}  {self.artefact.size_bytes / 1e6:.1f} MB  accuracy "
            f"{with_interval(found.accuracy.value, found.accuracy.low, found.accuracy.high)}  "
            f"{len(found.flips)} of {found.images} labels changed  {found.verdict}"
        )


class ExportRefusedError(GateError):
    """A gate was not met; ``results`` holds every comparison of the export."""

    def __init__(self, results: Sequence[Result]) -> None:
        refused = [one for one in results if one.comparison.verdict == "not met"]
        words = "; ".join(f"{one.artefact.file}: {', '.join(one.comparison.reasons)}" for one in refused)
        super().__init__(f"{words}. Nothing was written", "See 'mri-edge export --help' for the gate's limits")
        self.results = list(results)

    def __reduce__(self) -> Any:
        return type(self), (self.results,)


def export(bundle: Bundle, settings: Settings, *, step: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Make artefacts of the bundle's Keras model and put them into the bundle.

    ``step`` is told what is being done. Nothing is written unless the gate answers ``met`` or
    ``undecided`` for every artefact.

    Raises
    ------
    DataError
        An image is missing, changed or unreadable, or a calibration image is a test image.
    ConversionError
        The model cannot be converted to one of the formats.
    ExportRefusedError
        An artefact is too far from the Keras model.
    OutputError
        The bundle cannot be written.
    """
    step("opening the model")
    artefact = bundle.artefact(KERAS)
    source = Source(
        models.load(bundle.folder / artefact.file, bundle.read(artefact)),
        bundle.manifest,
        _split_of(bundle),
        {"file": KERAS, "sha256": artefact.sha256},
        _teacher_of(bundle),
    )
    with rewriting(bundle) as writer:
        return fill(writer, source, settings, step)


def fill(writer: BundleWriter, source: Source, settings: Settings, step: Callable[[str], None]) -> list[Result]:
    """Convert, compare, and add artefacts, ``parity.json`` and its page to a bundle that is being written."""
    manifest = source.manifest
    formats = [format_file(name) for name in settings.formats]
    step("reading the images")
    located = source.split.locate(settings.data, "test")
    if not located:
        raise DataError("the split has no test image, so nothing can be compared", "Train or split again")
    pixels = np.empty((len(located), manifest.preprocessing.height, manifest.preprocessing.width, 3), np.uint8)
    for row, (path, _) in zip(pixels, located, strict=True):
        row[...] = fitted(path, manifest.preprocessing)
    tensors = [digest(one) for one in pixels]
    tests = {tensor: path for tensor, (path, _) in zip(tensors, located, strict=True)}
    calibrator = None
    if any(chosen.CALIBRATED for chosen in formats):
        calibrator = replace(choose_calibration(source, settings, tests), step=step)
    step("asking the Keras model")
    judges = source.split.of("test")
    images = Judges(
        tuple(one.file for one in judges),
        tuple({"file": one.sha256, "tensor": tensor} for one, tensor in zip(judges, tensors, strict=True)),
        np.array([label for _, label in located], np.intp),
        models.answers(source.model, _pieces(pixels), manifest.preprocessing),
        source.teacher,
    )
    job = Job(device_graph(source.model, manifest.preprocessing), manifest.positive, calibrator)
    results: list[Result] = []
    pace = Pace()
    for one in formats:
        step(f"making {one.FILE}")
        content, facts = one.convert(job)
        step(f"checking {one.FILE} on {len(pixels)} test images")
        results.append(_add(one, content, facts, writer, pixels, images, _gate(one, settings.gate)))
        step(f"{results[-1]}  artefact {len(results)} of {len(formats)}, {pace.words(len(results), len(formats))}")
    if any(one.comparison.verdict == "not met" for one in results):
        raise ExportRefusedError(results)
    if calibrator and any(one.artefact.precision == "int8" for one in results):
        writer.update(calibration=calibrator.record)
    _write_parity(writer, source, images, results)
    return results


def choose_calibration(source: Source, settings: Settings, tests: Mapping[str, Path]) -> Calibrator:
    """Draw the images that calibrate and, for a search, those that judge; ``tests``: test images by ``digest``.

    No test image is among them, not even where a leaky split has its copy in training.

    Raises
    ------
    DataError
        An image is missing or unreadable, one of the ``--calibration`` folder is a test image, or none is left.
    """
    preprocessing, data = source.manifest.preprocessing, settings.data
    training = source.split.without({one.sha256 for one in source.split.of("test")})

    def drawn(split: Split, count: int, seed: int) -> tuple[Path, ...]:
        files = draw(split.locate(data, "train"), count, seed)
        # A test image in other bytes is found once those that were drawn are decoded; then one fewer is taken.
        twins = copies(files, tests, preprocessing)
        return tuple(one for one in files if one not in twins)

    if settings.calibration:
        files = draw(pictures_in(settings.calibration), settings.calibration_images, settings.seed)
        refuse_test_images(files, tests, preprocessing)
    else:
        files = drawn(training, settings.calibration_images, settings.seed)
    if not files:
        raise DataError("no training image to calibrate with", "Name a folder with --calibration")
    held_out: tuple[Path, ...] = ()
    if settings.search:
        held_out = drawn(training.without({sha256_of(one) for one in files}), HELD_OUT, settings.seed + 1)
        if not held_out:
            raise DataError("--search needs training images that do not calibrate", "Lower --calibration-images")
    method = "search" if settings.search else settings.method
    return Calibrator(files, preprocessing, record(files, method, settings.seed), Recipe(settings.method), held_out)


def _split_of(bundle: Bundle) -> Split:
    entry = next((one for one in bundle.manifest.documents if one.file == SPLIT), None)
    if entry is None:
        raise BundleError(f"{bundle.folder}: no {SPLIT} in it, so no image is known to be a test image")
    return Split.from_json(bundle.read(entry), origin=str(bundle.folder / SPLIT))


def _teacher_of(bundle: Bundle) -> TeacherAnswers | None:
    entry = next((one for one in bundle.manifest.documents if one.file == TEACHER), None)
    return TeacherAnswers.from_json(bundle.read(entry), str(bundle.folder / TEACHER)) if entry else None


def _add(
    one: FormatFile,
    content: bytes,
    facts: dict[str, Any],
    writer: BundleWriter,
    pixels: NDArray[np.uint8],
    images: Judges,
    gate: Gate,
) -> Result:
    """Write one artefact into the staged bundle, run it in its own engine, and list it."""
    path = writer.path(one.FILE)
    path.write_bytes(content)
    engine = open_engine(path, provider="cpu")
    try:
        answer = np.concatenate([engine.run(piece) for piece in _pieces(pixels)])
        comparison = compare(
            answer, images, writer.manifest, gate, engine=engine.name, provider=engine.provider, threads=engine.threads
        )
        artefact = Artifact(
            file=one.FILE,
            format=one.FORMAT,
            precision=one.PRECISION,
            size_bytes=0,
            sha256="",
            input=engine.input,
            output=engine.outputs[0],
            parity=comparison.summary(),
            made_with={**{name: version(name) for name in _LIBRARIES[one.FORMAT]}, **facts},
        )
    finally:
        engine.close()
    return Result(writer.add_artefact(artefact), comparison)


def _gate(one: FormatFile, wanted: Gate) -> Gate:
    given = {name: value for name, value in vars(wanted).items() if value is not None}
    return replace(DEFAULT_GATES[one.PRECISION], **given)


def _pieces(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [pixels[start : start + _RUN] for start in range(0, len(pixels), _RUN)]


def _write_parity(writer: BundleWriter, source: Source, images: Judges, results: list[Result]) -> None:
    """Write ``parity.json`` and its page; artefacts of an earlier export of the same model stay in them."""
    facts = {"reference": source.origin, "split_fingerprint": source.split.split_fingerprint}
    comparisons: dict[str, Any] = {}
    earlier = writer.folder / PARITY
    if earlier.is_file():
        known = json.loads(earlier.read_text(encoding="utf-8"))
        if all(known.get(name) == value for name, value in facts.items()):
            listed = {one.file for one in writer.manifest.artefacts}
            comparisons = {file: one for file, one in known["artefacts"].items() if file in listed}
    comparisons |= {one.artefact.file: one.comparison.to_dict() for one in results}
    content = document(images, writer.manifest, comparisons, facts)
    writer.add_document(PARITY, to_json(content))
    writer.add_document(PAGE, page(content, {one.file: one.size_bytes for one in writer.manifest.artefacts}))
