"""Does each stage still give what it must? File to pixels, tensor, probabilities, label, each fed with what is right.

Three sources: the golden scans inside each bundle; a coloured card that is drawn here, because the golden scans
are grey and would not notice exchanged channels; and, where the data folder is at hand, the reference's test images,
whose hashes and Keras probabilities stand in each bundle's ``parity.json``.
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
from records import reference_images

from mri_edge import Bundle, Classifier
from mri_edge.engines import engine_files, open_engine
from mri_edge.inference.prediction import decide
from mri_edge.inference.replay import replay
from mri_edge.scans.readers import picture as images

STAGES = ("hashes", "pixels", "tensor", "probabilities", "label")
REAL = "reference images"  # in the name of each comparison that wants the data folder
# How much further from Keras than in the bundle's own parity record the reference's images may be on another CPU,
# whose int8 kernels round otherwise: in mean |Δp|, and in labels.
_MEAN_MARGIN = 0.01
_FLIPS_MARGIN = 2
_METER_TOLERANCE = 1e-4  # float32 means of 16,384 values


@dataclass(frozen=True)
class Finding:
    """One stage of one source: what was found, and whether it is wrong."""

    stage: str
    what: str
    detail: str
    wrong: bool


def check(model: str, data: Path | None) -> list[Finding]:
    """All findings of one model, in the order of the stages."""
    bundle = Bundle.open(model)
    findings = [*_golden(model, bundle), *_card(model, bundle)]
    if data is not None:
        findings += _reference_images(model, bundle, data)
    return sorted(findings, key=lambda one: STAGES.index(one.stage))


def draw_card() -> np.ndarray:
    """A picture whose three channels differ everywhere, and in their means: uint8 (150, 170, 3) RGB."""
    down, right = np.mgrid[0:150, 0:170]
    channels = (down, 255 - right, 40 + 30 * np.sin(down / 9) * np.cos(right / 7))
    return np.stack([np.rint(one) for one in channels], axis=-1).astype(np.uint8)


def resize_plainly(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, half-pixel centres, no antialiasing, in plain float64: what the resizer must be within 1 of."""
    for axis, target in enumerate((height, width)):
        source = picture.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        first = np.minimum(position.astype(int), source - 2)
        share = (position - first).reshape([-1 if one == axis else 1 for one in range(3)])
        low, high = (np.take(picture, first + step, axis).astype(float) for step in (0, 1))
        picture = low * (1 - share) + high * share
    return np.rint(picture).astype(np.uint8)


def _golden(model: str, bundle: Bundle) -> Iterator[Finding]:
    for one in replay(bundle).checks:
        if one.status != "not tried":
            what = " in ".join(part for part in (one.subject, one.engine) if part)
            yield Finding(one.stage, f"{model}: {what}", one.detail or one.status, one.status == "differs")


def _card(model: str, bundle: Bundle) -> Iterator[Finding]:
    drawn = draw_card()
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    apart = int(np.abs(images.load(file.getvalue()).astype(int) - drawn).max())
    yield Finding("pixels", f"{model}: coloured card", f"up to {apart} of 255 apart", apart > 0)

    preprocessing = bundle.manifest.preprocessing
    plain = resize_plainly(drawn, preprocessing.height, preprocessing.width)
    apart = int(np.abs(preprocessing.fit(drawn).astype(int) - plain).max())
    yield Finding("tensor", f"{model}: coloured card", f"up to {apart} of 255 apart", apart > 1)

    means = plain.mean(axis=(0, 1)) / 255
    with tempfile.TemporaryDirectory() as folder:
        meter = Path(folder) / "meter.onnx"
        _write_meter(meter, plain.shape)
        for one in engine_files().values():
            if meter.name.endswith(one.SUFFIXES) and not one.missing():
                engine = open_engine(meter, engine=one.NAME, provider="cpu", threads=1)
                off = float(np.abs(engine.run(plain[None])[0] - means).max())
                engine.close()
                yield Finding(
                    "probabilities",
                    f"{model}: coloured card's channel means in {one.NAME}",
                    f"up to {off:.2g} apart",
                    off > _METER_TOLERANCE,
                )


def _write_meter(path: Path, shape: tuple[int, ...]) -> None:
    """An ONNX model that gives the mean of each channel: it sees whatever an engine does to its input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "full"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["means"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "meter",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", *shape])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", shape[2]])],
        [numpy_helper.from_array(np.float32(255), "full")],
    )
    # Old numbers on purpose: every engine of the supported range opens them.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def _reference_images(model: str, bundle: Bundle, data: Path) -> Iterator[Finding]:
    """The reference's test images: tensors by hash, probabilities and labels against the Keras model's."""
    entry = next((one for one in bundle.manifest.documents if one.file == "parity.json"), None)
    if entry is None:
        return
    record = json.loads(bundle.read(entry))
    known = reference_images(bundle, data)
    if not known:
        return
    told = f"{model}: {len(known)} {REAL}"
    missing = len(record["images"]) - len(known)
    yield Finding("hashes", told, f"{missing} files changed or missing", bool(missing))
    tensors = np.stack([bundle.manifest.preprocessing.fit(images.load(data / one["file"])) for one in known])
    wrong = sum(
        hashlib.sha256(tensor.tobytes()).hexdigest() != one["sha256"]["tensor"]
        for tensor, one in zip(tensors, known, strict=True)
    )
    yield Finding("tensor", told, f"{wrong} tensors differ from the record", wrong > 0)
    reference = np.array([one["probabilities"] for one in known], np.float32)
    labels = decide(reference, bundle.manifest.positive, bundle.manifest.threshold)
    truth = np.array([bundle.manifest.labels.index(one["label"]) for one in known])
    for artefact in bundle.manifest.artefacts:
        parity = artefact.parity
        if parity is None or not artefact.file.endswith(".onnx"):
            continue
        with Classifier.load(bundle, artefact=artefact.file, engine="onnxruntime", provider="cpu") as classifier:
            found = np.concatenate([classifier.engine.run(tensors[i : i + 8]) for i in range(0, len(tensors), 8)])
        mean = float(np.abs(found - reference).mean())
        own = decide(found, bundle.manifest.positive, bundle.manifest.threshold)
        flips = int((own != labels).sum())
        yield Finding(
            "probabilities",
            f"{told}, {artefact.file}",
            f"mean |Δp| {mean:.4f}, {parity.mean_difference:.4f} in the record",
            mean > parity.mean_difference + _MEAN_MARGIN,
        )
        yield Finding(
            "label",
            f"{told}, {artefact.file}",
            f"{flips} labels changed ({parity.flips} in the record), {int((own == truth).sum())} of {len(known)} right",
            flips > parity.flips + _FLIPS_MARGIN,
        )
