"""Measure every stage from file to answer as a ratio to a reference program, so that it compares across machines.

All run on one thread and the undisturbed clock, and the fastest of many runs counts: this finds slower code, it does
not report latency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.compare.run_peer import run_in_process
from benchmarks.guard import undisturbed
from benchmarks.guard.float_twin import write_float_twin
from benchmarks.processes import DICOM_SCAN, alternate, cpu_seconds, program, script
from benchmarks.reference import tensors_of
from mri_edge import Bundle, Classifier
from mri_edge.inference.selection import TINY
from mri_edge.scans import readers
from mri_edge.scans.readers import dicom, picture
from mri_edge.testing import FakeEngine

# In the order of the pipeline: the first that got worse explains those after it.
STAGES = ("decode", "resize", "infer", "rest", "start")
IN_PROCESS = ("decode", "resize", "rest")  # the others need separate processes
_REPEATS = 40
_DICOM_RUNS = 3
DICOM = "reading DICOM / pydicom's pixel_array"
_ROUNDS = 3
# If a network takes a quarter of a millisecond, one process in four is a third faster by chance, because of its memory
# layout. With this many rounds every subject has such a process, and the fastest counts.
_TINY_ROUNDS = 12
_RUNS = 10
_STARTS = 5

Rows = dict[str, dict[str, Any]]  # by name: stage, ratio, and the milliseconds of ours and of the reference (the ruler)


def measure(model: str, scans: Sequence[Path], wanted: Collection[str] = STAGES) -> Rows:
    """Return the rows of a model for the wanted stages."""
    bundle = Bundle.open(model)
    rows: Rows = {}
    if not set(IN_PROCESS).isdisjoint(wanted):
        rows |= _in_process(bundle, scans)
    if "infer" in wanted:
        rows |= _engines(bundle, scans)
    if "start" in wanted:
        rows |= _start(model, bundle, scans[0])
    return {f"{model}: {what}": row for what, row in rows.items() if row["stage"] in wanted}


def combine(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine measurements of one row.

    A short call runs undisturbed at some time, so the fastest of ours and of the reference count. A whole process never
    does: other programs slow it as much as the reference beside it, so the median ratio counts.
    """
    if rows[0]["stage"] == "start":
        return sorted(rows, key=lambda row: row["ratio"])[len(rows) // 2]
    return _row(rows[0]["stage"], min(row["ms"] for row in rows), min(row["ruler_ms"] for row in rows))


def _row(stage: str, ms: float, reference_ms: float) -> dict[str, Any]:
    times = {"ratio": ms / reference_ms, "ms": ms, "ruler_ms": reference_ms}
    return {"stage": stage, **{name: round(float(value), 4) for name, value in times.items()}}


def _in_process(bundle: Bundle, scans: Sequence[Path]) -> Rows:
    """Compare decoding and resizing with Pillow's and pydicom's, and ``predict`` around a fake engine with Pillow's."""
    preprocessing = bundle.manifest.preprocessing
    size = (preprocessing.width, preprocessing.height)
    engine = FakeEngine((preprocessing.height, preprocessing.width, 3), len(bundle.manifest.labels))
    classifier = Classifier(bundle, bundle.manifest.artifacts[0], engine)
    names = {
        "decode": "picture.load / Pillow's decoding",
        "resize": "resize_picture / Pillow's resizing",
        "rest": "predict around a fake engine / Pillow's decoding and resizing",
    }
    rows = _dicom()
    total = np.zeros((len(names), 2))
    for scan in scans:
        decoded, pixels = _decode(scan), picture.load(scan)
        pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (partial(picture.load, scan), partial(_decode, scan)),
            (partial(preprocessing.resize_picture, pixels), partial(_resize, decoded, size)),
            (partial(classifier.predict, scan), lambda scan=scan: _resize(_decode(scan), size)),
        ]
        seconds = [[[undisturbed.seconds_of(action) for action in pair] for pair in pairs] for _ in range(_REPEATS)]
        total += np.min(seconds, axis=0)
    times = zip(names.items(), total * 1e3 / len(scans), strict=True)
    return rows | {what: _row(stage, *ms) for (stage, what), ms in times}


def _dicom() -> Rows:
    """Compare reading a DICOM slice with pydicom's ``pixel_array``, if pydicom is installed."""
    if dicom.missing():
        return {}
    from pydicom import dcmread

    pair = (lambda: readers.load(DICOM_SCAN), lambda: dcmread(DICOM_SCAN).pixel_array)
    seconds = [[undisturbed.seconds_of(action) for action in pair] for _ in range(_REPEATS * _DICOM_RUNS)]
    return {DICOM: _row("decode", *(np.min(seconds, axis=0) * 1e3))}


def _engines(bundle: Bundle, scans: Sequence[Path]) -> Rows:
    """Compare the engine with a plain ONNX Runtime script, and int8 with its float twin; in separate processes."""
    artifact = next(artifact for artifact in bundle.manifest.artifacts if artifact.file == "model.int8.onnx")
    path = bundle.path_of(artifact)
    with tempfile.TemporaryDirectory() as folder:
        tensors, twin = Path(folder) / "tensors.npy", Path(folder) / "twin.onnx"
        np.save(tensors, tensors_of(bundle, scans))
        write_float_twin(path, twin)
        subjects = (("mri_edge_engine", path), ("onnxruntime_script", path), ("mri_edge_engine", twin))
        rounds = _TINY_ROUNDS if artifact.size_bytes <= TINY else _ROUNDS
        request = {"threads": 1, "tensors": tensors, "runs": _RUNS}
        ms = [
            [min(run_in_process(peer=peer, model=file, **request)["ms"]) for peer, file in subjects]
            for _ in range(rounds)
        ]
    ours, plain, full = np.min(ms, axis=0)
    return {
        "the engine / a plain ONNX Runtime session": _row("infer", ours, plain),
        "int8 / the same network in float32": _row("infer", ours, full),
    }


def _start(model: str, bundle: Bundle, scan: Path) -> Rows:
    """Compare the CPU time of a cold ``mri-edge predict`` with that of the shortest script; processes of one thread.

    The row is the pair of runs with the median ratio.
    """
    commands = {
        "ours": program("predict", scan, "--json", "--model", model, "--threads", 1),
        "bare": script("bare_onnxruntime.py", bundle.folder / "model.int8.onnx", 1, scan),
    }
    pairs = zip(*alternate(commands, _STARTS, cpu_seconds).values(), strict=True)
    rows = [_row("start", ours * 1e3, bare * 1e3) for ours, bare in pairs]
    return {"CPU time of a cold predict / of the shortest script": combine(rows)}


def _decode(scan: Path) -> Image.Image:
    with Image.open(scan) as image:
        image.load()
        return image


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)
