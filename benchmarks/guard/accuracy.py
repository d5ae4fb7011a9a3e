"""Check each stage from file to label for correct results, each with a correct input.

There are three sources: the golden scans of each bundle; a color card drawn here, because gray scans would not show
swapped channels; and, with the data folder, the reference's test images: each bundle's ``parity.json`` has their
hashes and Keras' probabilities.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reference import agreement, reference_images, tensors_of
from mri_edge import Bundle
from mri_edge.benchmarking.benchmark import subjects
from mri_edge.engines import engine_files, open_engine
from mri_edge.inference.replay import replay
from mri_edge.scans.readers import picture

STAGES = ("hashes", "pixels", "tensor", "probabilities", "label")
REAL = "reference images"  # part of the name of each comparison that needs the data folder
# How much farther from Keras than in the bundle's parity record the reference images may be, because int8 kernels of
# another CPU or library round differently: in mean |Δp|, and in labels.
_MEAN_MARGIN = 0.01
_FLIPS_MARGIN = 2
_MEANS_TOLERANCE = 1e-4  # float32 means of 16,384 values


@dataclass(frozen=True)
class Finding:
    """One comparison of a stage: what was compared, the result, and whether it is wrong."""

    stage: str
    what: str
    detail: str
    wrong: bool


def check(model: str, data: Path | None) -> list[Finding]:
    """Return all findings of a model, in the order of the stages."""
    bundle = Bundle.open(model)
    findings = [*_golden(model, bundle), *_color_card(model, bundle)]
    if data is not None:
        findings += _reference_images(model, bundle, data)
    return sorted(findings, key=lambda finding: STAGES.index(finding.stage))


def _golden(model: str, bundle: Bundle) -> Iterator[Finding]:
    for found in replay(bundle).checks:
        if found.status != "not tried":
            what = " in ".join(part for part in (found.subject, found.engine) if part)
            yield Finding(found.stage, f"{model}: {what}", found.detail or found.status, found.status == "differs")


def _color_card(model: str, bundle: Bundle) -> Iterator[Finding]:
    """Compare the decoder with what was drawn, the resizer with SciPy's, and each engine's input by its means."""
    from scipy import ndimage

    # The channels differ at every pixel and in their means.
    down, right = np.mgrid[0:150, 0:170]
    channels = (down, 255 - right, 40 + 30 * np.sin(down / 9) * np.cos(right / 7))
    card = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(card).save(file, "PNG")
    difference = int(np.abs(picture.load(file.getvalue()).astype(int) - card).max())
    yield Finding("pixels", f"{model}: color card", f"up to {difference} of 255 apart", difference > 0)

    # In float64, bilinear, with half-pixel centers. Antialiasing changes nothing where a picture is enlarged.
    preprocessing = bundle.manifest.preprocessing
    section = preprocessing.section(card)
    factors = (preprocessing.height / section.shape[0], preprocessing.width / section.shape[1], 1)
    resized = ndimage.zoom(section.astype(float), factors, order=1, mode="nearest", grid_mode=True)
    exact = np.rint(resized).astype(np.uint8)
    difference = int(np.abs(preprocessing.resize_picture(card).astype(int) - exact).max())
    yield Finding("tensor", f"{model}: color card", f"up to {difference} of 255 apart", difference > 1)

    means = exact.mean(axis=(0, 1)) / 255
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "means.onnx"
        _write_channel_means(network, exact.shape)
        for entry in engine_files().values():
            if network.name.endswith(entry.SUFFIXES) and not entry.missing():
                engine = open_engine(network, engine=entry.NAME, provider="cpu", threads=1)
                error = float(np.abs(engine.run(exact[None])[0] - means).max())
                engine.close()
                what = f"{model}: color card's channel means in {entry.NAME}"
                yield Finding("probabilities", what, f"up to {error:.2g} apart", error > _MEANS_TOLERANCE)


def _write_channel_means(path: Path, shape: tuple[int, ...]) -> None:
    """Write an ONNX model that returns the mean of each channel, in old versions that every supported engine opens."""
    import onnx

    height, width, channels = shape
    text = f"""<ir_version: 8, opset_import: ["": 13]>
        graph (uint8[N, {height}, {width}, {channels}] pixels) => (float[N, {channels}] means)
        <float full = {{255}}>
        {{
            values = Cast<to = {onnx.TensorProto.FLOAT}>(pixels)
            scaled = Div(values, full)
            means = ReduceMean<axes = [1, 2], keepdims = 0>(scaled)
        }}"""
    onnx.save(onnx.parser.parse_model(text), path)


def _reference_images(model: str, bundle: Bundle, data: Path) -> Iterator[Finding]:
    """Compare tensors by hash, and probabilities and labels in every engine with the Keras model's."""
    known = reference_images(bundle, data)
    if not known:
        return
    [entry] = [document for document in bundle.manifest.documents if document.file == "parity.json"]
    what = f"{model}: {len(known)} {REAL}"
    record = json.loads(bundle.read(entry))
    names = {image["file"] for image in record["images"]}  # the record also has changed labels of other images
    missing = len(record["images"]) - len(known)
    yield Finding("hashes", what, f"{missing} files changed or missing", bool(missing))
    tensors = tensors_of(bundle, [data / image["file"] for image in known])
    hashes = [hashlib.sha256(tensor.tobytes()).hexdigest() for tensor in tensors]
    wrong = sum(found != image["sha256"]["tensor"] for found, image in zip(hashes, known, strict=True))
    yield Finding("tensor", what, f"{wrong} tensors differ from the record", wrong > 0)
    for subject in subjects(bundle):
        parity, file = subject.artifact.parity, subject.artifact.file
        if parity is None or subject.problem:
            continue
        engine = open_engine(bundle.path_of(subject.artifact), engine=subject.engine, provider="cpu")
        answers = [engine.run(tensors[begin : begin + 8]) for begin in range(0, len(tensors), 8)]
        engine.close()
        found = agreement(bundle, known, np.concatenate(answers))
        where = f"{what}, {file}" + (f" in {subject.engine}" if subject.engine != "onnxruntime" else "")
        mean, flips, accuracy = found["mean_difference"], found["flips"], found["accuracy"]["value"]
        detail = f"mean |Δp| {mean:.4f}, {parity.mean_difference:.4f} in the record"
        yield Finding("probabilities", where, detail, mean > parity.mean_difference + _MEAN_MARGIN)
        in_record = sum(flip["file"] in names for flip in record["artefacts"][file]["flips"])
        detail = f"{flips} labels changed ({in_record} in the record), accuracy {accuracy:.3f}"
        yield Finding("label", where, detail, flips > in_record + _FLIPS_MARGIN)
