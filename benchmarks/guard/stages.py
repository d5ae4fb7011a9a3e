"""Measure every stage from file to answer as a ratio to a reference program, so that it compares across machines.

All run on one thread and the undisturbed clock, and the fastest of many runs counts: this finds slower code, it does
not report latency.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.guard import undisturbed
from benchmarks.guard.float_twin import write_float_twin
from benchmarks.processes import alternate, cpu_seconds, module, output, program, script
from mri_edge import Bundle, Classifier
from mri_edge.inference.selection import TINY
from mri_edge.scans.readers import picture as images
from mri_edge.testing import FakeEngine

# In the order of the pipeline: the first that got worse explains those after it.
STAGES = ("decode", "resize", "infer", "rest", "start")
_REPEATS = 15
_ROUNDS = 3
# If a network takes a quarter of a millisecond, one process in four is a third faster by chance, because of its memory
# layout. With this many rounds every subject has such a process, and the fastest counts.
_TINY_ROUNDS = 12
_RUNS = 10
_STARTS = 5


@dataclass(frozen=True)
class Ratio:
    """A stage's milliseconds beside those of its reference."""

    stage: str
    what: str
    ms: float
    ruler_ms: float

    @property
    def value(self) -> float:
        """Ours divided by the reference."""
        return self.ms / self.ruler_ms

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the record."""
        times = {"ratio": round(self.value, 4), "ms": round(self.ms, 4), "ruler_ms": round(self.ruler_ms, 4)}
        return {"stage": self.stage, **times}


def measure(model: str, scans: Sequence[Path], *, quick: bool = False) -> list[Ratio]:
    """Return all ratios of a model; ``quick`` leaves out those that need separate processes."""
    bundle = Bundle.open(model)
    ratios = _in_process(model, bundle, scans)
    return ratios if quick else [*ratios, *_engines(model, bundle, scans), _start(model, bundle, scans[0])]


def _in_process(model: str, bundle: Bundle, scans: Sequence[Path]) -> list[Ratio]:
    """Compare decoding and resizing with Pillow's, and ``predict`` around a fake engine with both of Pillow's."""
    preprocessing = bundle.manifest.preprocessing
    size = (preprocessing.width, preprocessing.height)
    engine = FakeEngine((preprocessing.height, preprocessing.width, 3), len(bundle.manifest.labels))
    classifier = Classifier(bundle, bundle.manifest.artifacts[0], engine)
    names = {
        "decode": "images.load / Pillow's decoding",
        "resize": "Preprocessing.fit / Pillow's resizing",
        "rest": "predict around a stand-in engine / Pillow's decoding and resizing",
    }
    totals = {stage: np.zeros(2) for stage in names}
    for scan in scans:
        decoded, pixels = _decode(scan), images.load(scan)
        actions: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "decode": (partial(images.load, scan), partial(_decode, scan)),
            "resize": (partial(preprocessing.resize_picture, pixels), partial(_resize, decoded, size)),
            "rest": (partial(classifier.predict, scan), lambda scan=scan: _resize(_decode(scan), size)),
        }
        times = [[[_ms(action) for action in pair] for pair in actions.values()] for _ in range(_REPEATS)]
        for stage, fastest in zip(actions, np.min(times, axis=0), strict=True):
            totals[stage] += fastest / len(scans)
    return [Ratio(stage, f"{model}: {what}", *map(float, totals[stage])) for stage, what in names.items()]


def _engines(model: str, bundle: Bundle, scans: Sequence[Path]) -> list[Ratio]:
    """Compare the engine with a plain ONNX Runtime script, and int8 with its float twin; in separate processes."""
    artifact = next(artifact for artifact in bundle.manifest.artifacts if artifact.file == "model.int8.onnx")
    path = bundle.path_of(artifact)
    with tempfile.TemporaryDirectory() as folder:
        tensors, twin = Path(folder) / "tensors.npy", Path(folder) / "twin.onnx"
        np.save(tensors, np.stack([bundle.manifest.preprocessing.resize_picture(images.load(scan)) for scan in scans]))
        write_float_twin(path, twin)
        subjects = {"ours": ("mri_edge_engine", path), "plain": ("onnxruntime_script", path)}
        subjects["float"] = ("mri_edge_engine", twin)
        ms: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(_TINY_ROUNDS if artifact.size_bytes <= TINY else _ROUNDS):
            for name, (peer, file) in subjects.items():
                request = {"peer": peer, "model": str(file), "threads": 1, "tensors": str(tensors), "runs": _RUNS}
                ms[name] += json.loads(output(module("benchmarks.compare.run_peer", json.dumps(request)))[-1])["ms"]
    ours, plain, full = (min(ms[name]) for name in subjects)
    return [
        Ratio("infer", f"{model}: the engine / a plain ONNX Runtime session", ours, plain),
        Ratio("infer", f"{model}: int8 / the same network in float32", ours, full),
    ]


def _start(model: str, bundle: Bundle, scan: Path) -> Ratio:
    """Compare the CPU time of a cold ``mri-edge predict`` with that of the shortest script; processes of one thread."""
    commands = {
        "ours": program("predict", scan, "--json", "--model", model, "--threads", 1),
        "bare": script("bare_onnxruntime.py", bundle.folder / "model.int8.onnx", scan, 1),
    }
    ours, bare = (min(seconds) * 1e3 for seconds in alternate(commands, _STARTS, cpu_seconds).values())
    return Ratio("start", f"{model}: CPU time of a cold predict / of the barest script", ours, bare)


def _decode(scan: Path) -> Image.Image:
    with Image.open(scan) as image:
        image.load()
        return image


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)


def _ms(action: Callable[[], object]) -> float:
    return undisturbed.seconds_of(action) * 1e3
