"""Check each stage from file to label for correct results, each with a correct input.

There are three sources: the golden scans of each bundle; a color card drawn here, because grey scans would not show
swapped channels; and, with the data folder, the reference's test images, whose hashes and Keras probabilities are in
each bundle's ``parity.json``.
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

from benchmarks.records.store import reference_images
from mri_edge import Bundle, Classifier
from mri_edge.engines import engine_files, open_engine
from mri_edge.inference.prediction import decide
from mri_edge.inference.replay import replay
from mri_edge.scans.readers import picture as images

STAGES = ("hashes", "pixels", "tensor", "probabilities", "label")
REAL = "reference images"  # part of the name of each comparison that needs the data folder
# How much farther from Keras than in the bundle's parity record the reference images may be, because int8 kernels of
# another CPU round differently: in mean |Δp|, and in labels.
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
    findings = [*_golden(model, bundle), *_card(model, bundle)]
    if data is not None:
        findings += _reference_images(model, bundle, data)
    return sorted(findings, key=lambda finding: STAGES.index(finding.stage))


def draw_card() -> np.ndarray:
    """Return a picture whose channels differ at every pixel and in their means: uint8 (150, 170, 3) RGB."""
    down, right = np.mgrid[0:150, 0:170]
    channels = (down, 255 - right, 40 + 30 * np.sin(down / 9) * np.cos(right / 7))
    return np.stack([np.rint(channel) for channel in channels], axis=-1).astype(np.uint8)


def resize_exactly(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly in float64, with half-pixel centers and without antialiasing; the resizer may differ by 1."""
    from scipy import ndimage

    factors = (height / pixels.shape[0], width / pixels.shape[1], 1)
    resized = ndimage.zoom(pixels.astype(float), factors, order=1, mode="nearest", grid_mode=True)
    return np.rint(resized).astype(np.uint8)


def _golden(model: str, bundle: Bundle) -> Iterator[Finding]:
    for check in replay(bundle).checks:
        if check.status != "not tried":
            what = " in ".join(part for part in (check.subject, check.engine) if part)
            wrong = check.status == "differs"
            yield Finding(check.stage, f"{model}: {what}", check.detail or check.status, wrong)


def _card(model: str, bundle: Bundle) -> Iterator[Finding]:
    card = draw_card()
    file = io.BytesIO()
    Image.fromarray(card).save(file, "PNG")
    difference = int(np.abs(images.load(file.getvalue()).astype(int) - card).max())
    yield Finding("pixels", f"{model}: coloured card", f"up to {difference} of 255 apart", difference > 0)

    preprocessing = bundle.manifest.preprocessing
    exact = resize_exactly(card, preprocessing.height, preprocessing.width)
    difference = int(np.abs(preprocessing.resize_picture(card).astype(int) - exact).max())
    yield Finding("tensor", f"{model}: coloured card", f"up to {difference} of 255 apart", difference > 1)

    means = exact.mean(axis=(0, 1)) / 255
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "means.onnx"
        _write_channel_means(network, exact.shape)
        for entry in engine_files().values():
            if network.name.endswith(entry.SUFFIXES) and not entry.missing():
                engine = open_engine(network, engine=entry.NAME, provider="cpu", threads=1)
                error = float(np.abs(engine.run(exact[None])[0] - means).max())
                engine.close()
                what = f"{model}: coloured card's channel means in {entry.NAME}"
                yield Finding("probabilities", what, f"up to {error:.2g} apart", error > _MEANS_TOLERANCE)


def _write_channel_means(path: Path, shape: tuple[int, ...]) -> None:
    """Write an ONNX model that returns the mean of each channel, which shows how an engine changes its input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["means"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", *shape])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", shape[2]])],
        [numpy_helper.from_array(np.float32(255), "full")],
    )
    # Old versions, which every supported engine opens.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def _reference_images(model: str, bundle: Bundle, data: Path) -> Iterator[Finding]:
    """Compare tensors by hash, and probabilities and labels with the Keras model's."""
    entry = next((document for document in bundle.manifest.documents if document.file == "parity.json"), None)
    known = reference_images(bundle, data)
    if entry is None or not known:
        return
    what = f"{model}: {len(known)} {REAL}"
    missing = len(json.loads(bundle.read(entry))["images"]) - len(known)
    yield Finding("hashes", what, f"{missing} files changed or missing", bool(missing))
    manifest = bundle.manifest
    tensors = np.stack([manifest.preprocessing.resize_picture(images.load(data / image["file"])) for image in known])
    hashes = [hashlib.sha256(tensor.tobytes()).hexdigest() for tensor in tensors]
    wrong = sum(found != image["sha256"]["tensor"] for found, image in zip(hashes, known, strict=True))
    yield Finding("tensor", what, f"{wrong} tensors differ from the record", wrong > 0)
    reference = np.array([image["probabilities"] for image in known], np.float32)
    keras = decide(reference, manifest.positive, manifest.threshold)
    y_true = np.array([manifest.labels.index(image["label"]) for image in known])
    for artifact in manifest.artifacts:
        parity, what_file = artifact.parity, f"{what}, {artifact.file}"
        if parity is None or not artifact.file.endswith(".onnx"):
            continue
        with Classifier.load(bundle, artifact=artifact.file, engine="onnxruntime", provider="cpu") as classifier:
            batches = (tensors[begin : begin + 8] for begin in range(0, len(tensors), 8))
            found = np.concatenate([classifier.engine.run(batch) for batch in batches])
        mean = float(np.abs(found - reference).mean())
        detail = f"mean |Δp| {mean:.4f}, {parity.mean_difference:.4f} in the record"
        yield Finding("probabilities", what_file, detail, mean > parity.mean_difference + _MEAN_MARGIN)
        y_pred = decide(found, manifest.positive, manifest.threshold)
        flips, right = int((y_pred != keras).sum()), int((y_pred == y_true).sum())
        detail = f"{flips} labels changed ({parity.flips} in the record), {right} of {len(known)} right"
        yield Finding("label", what_file, detail, flips > parity.flips + _FLIPS_MARGIN)
