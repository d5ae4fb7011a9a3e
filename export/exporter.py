"""One export: convert, reopen each artefact in its real engine, compare, judge, write all or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mri_edge.bundle import Bundle, BundleWriter
from mri_edge.engines import open_engine
from mri_edge.errors import BundleError, GateError
from mri_edge.manifest import Artefact
from mri_edge.split import SPLIT, Split
from numpy.typing import NDArray

from . import source
from .calibrate import Calibrator, Method, choose, read_batches
from .device_graph import device_graph
from .formats import FormatFile, format_file
from .job import Job
from .parity import DEFAULT_GATES, Comparison, Gate, TestImages, compare, document

KERAS = "model.keras"
PARITY = "parity.json"
_LIBRARIES = {"onnx": ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime"), "tflite": ("tensorflow", "keras")}
UNCHANGED = Gate(None, None, None)
_RUN = 16  # images at a time through an engine


@dataclass(frozen=True)
class Settings:
    """What to make, from what, and how strictly to judge it. A None in ``gate`` leaves the format's own bound."""

    formats: tuple[str, ...]
    data: Path
    method: Method = "minmax"
    calibration_images: int = 128
    seed: int = 0
    gate: Gate = UNCHANGED


@dataclass(frozen=True)
class Result:
    """One artefact and how it compares."""

    artefact: Artefact
    comparison: Comparison


def export(
    bundle: Bundle, settings: Settings, *, step: Callable[[str], None] = lambda _: None
) -> tuple[list[Result], TestImages]:
    """Make artefacts and put them into the bundle.

    ``step`` is told what is being done. Nothing is written unless the gate of every artefact answers
    ``met`` or ``undecided``.

    Raises
    ------
    DataError
        An image of the split is missing, changed or unreadable.
    ConversionError
        The model cannot be converted to one of the formats.
    GateError
        An artefact is too far from the Keras model; ``results`` holds all comparisons.
    """
    manifest = bundle.manifest
    formats = [format_file(name) for name in settings.formats]
    step("reading the split")
    split = _split_of(bundle)
    pixels, files, labels = _read(split, settings.data, bundle)
    calibrator = _calibrator(split, settings, bundle) if any(one.CALIBRATED for one in formats) else None
    step("asking the Keras model")
    model = source.load(bundle.path_of(bundle.artefact(KERAS)))
    reference = source.answers(model, _pieces(pixels), manifest.preprocessing)
    images = TestImages(files, labels, reference)
    job = Job(device_graph(model, manifest.preprocessing), manifest.positive, calibrator)
    results: list[Result] = []
    with bundle.rewriting() as writer:
        for one in formats:
            step(one.FILE)
            results.append(_make(one, job, writer, pixels, images, bundle, settings.gate))
        refused = [one for one in results if one.comparison.verdict == "not met"]
        if refused:
            raise ExportRefusedError(results)
        if calibrator:
            writer.update(calibration=calibrator.record)
        _write_parity(bundle, writer, images, results, split)
    return results, images


class ExportRefusedError(GateError):
    """A gate was not met; ``results`` holds every comparison of the export."""

    def __init__(self, results: Sequence[Result]) -> None:
        refused = [one for one in results if one.comparison.verdict == "not met"]
        words = "; ".join(f"{one.artefact.file}: {', '.join(one.comparison.reasons)}" for one in refused)
        super().__init__(f"{words}. Nothing was written", "See 'mri-edge export --help' for the gate's limits")
        self.results = list(results)

    def __reduce__(self) -> Any:
        return type(self), (self.results,)


def _split_of(bundle: Bundle) -> Split:
    entry = next((one for one in bundle.manifest.documents if one.file == SPLIT), None)
    if entry is None:
        raise BundleError(f"{bundle.folder}: no {SPLIT} in it, so no image is known to be a test image")
    return Split.from_json(bundle.path_of(entry).read_text(encoding="utf-8"), origin=str(bundle.folder / SPLIT))


def _read(split: Split, data: Path, bundle: Bundle) -> tuple[NDArray[np.uint8], tuple[str, ...], NDArray[np.intp]]:
    located = split.locate(data, "test")
    preprocessing = bundle.manifest.preprocessing
    pixels = np.concatenate(list(read_batches([path for path, _ in located], preprocessing)))
    return pixels, tuple(one.file for one in split.of("test")), np.array([label for _, label in located], np.intp)


def _calibrator(split: Split, settings: Settings, bundle: Bundle) -> Calibrator:
    located = split.locate(settings.data, "train")
    hashes = {settings.data / one.file: one.sha256 for one in split.images}
    files, record = choose(located, hashes, settings.calibration_images, settings.seed, settings.method)
    return Calibrator(files, bundle.manifest.preprocessing, settings.method, record)


def _make(
    one: FormatFile,
    job: Job,
    writer: BundleWriter,
    pixels: NDArray[np.uint8],
    images: TestImages,
    bundle: Bundle,
    wanted: Gate,
) -> Result:
    content, facts = one.convert(job)
    path = writer.path(one.FILE)
    path.write_bytes(content)
    engine = open_engine(path, provider="cpu")
    try:
        answer = np.concatenate([engine.run(piece) for piece in _pieces(pixels)])
        gate = _gate(one, wanted)
        comparison = compare(answer, images, bundle.manifest, gate, engine=engine.name, provider=engine.provider)
        artefact = Artefact(
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
    own = DEFAULT_GATES[one.PRECISION]
    given = {name: value for name, value in vars(wanted).items() if value is not None}
    return replace(own, **given)


def _pieces(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [pixels[start : start + _RUN] for start in range(0, len(pixels), _RUN)]


def _write_parity(
    bundle: Bundle, writer: BundleWriter, images: TestImages, results: list[Result], split: Split
) -> None:
    keras_sha = bundle.artefact(KERAS).sha256
    facts = {"reference": {"file": KERAS, "sha256": keras_sha}, "split_fingerprint": split.split_fingerprint}
    comparisons: dict[str, Any] = {}
    entry = next((one for one in bundle.manifest.documents if one.file == PARITY), None)
    if entry is not None:
        earlier = json.loads(bundle.path_of(entry).read_text(encoding="utf-8"))
        if all(earlier.get(name) == value for name, value in facts.items()):
            comparisons = earlier["artefacts"]
    comparisons |= {one.artefact.file: one.comparison for one in results}
    content = document(images, writer.manifest, comparisons, facts)
    writer.add_document(PARITY, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
