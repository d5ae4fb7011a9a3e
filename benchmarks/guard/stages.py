"""Every stage from file to answer beside a plain ruler of the same work, as ratios that hold on any machine.

One thread and the undisturbed clock (see ``undisturbed.py``): what is compared here is code, not a machine's day. Of
many runs the fastest counts, because this is a guard and not a report of latency.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import undisturbed
from float_twin import write_float_twin
from paired import alternate, program, script
from PIL import Image

from mri_edge import Bundle, Classifier
from mri_edge.engines.fake import FakeEngine
from mri_edge.inference.selection import TINY
from mri_edge.scans.readers import picture as images

HERE = Path(__file__).parent
# In the order of the pipeline: the first that got worse explains those after it.
STAGES = ("decode", "resize", "infer", "rest", "start")
_REPEATS = 15
_ROUNDS = 3
# Of a network that runs in a quarter of a millisecond one process in four takes 0.7 of the others' time, by where its
# memory lies: enough of them that the fastest of each is of the fast kind.
_TINY_ROUNDS = 12
_RUNS = 10
_STARTS = 5


@dataclass(frozen=True)
class Ratio:
    """A stage beside its ruler: milliseconds of both, and how many times the ruler it takes."""

    stage: str
    what: str
    ms: float
    ruler_ms: float

    @property
    def value(self) -> float:
        """Ours divided by the ruler."""
        return self.ms / self.ruler_ms


def in_process(model: str, scans: Sequence[Path]) -> list[Ratio]:
    """Decode and resize beside Pillow's; all of ``predict`` around a stand-in engine, beside both of those."""
    bundle = Bundle.open(model)
    preprocessing = bundle.manifest.preprocessing
    size = (preprocessing.width, preprocessing.height)
    stand_in = FakeEngine((preprocessing.height, preprocessing.width, 3), len(bundle.manifest.labels))
    classifier = Classifier(bundle, bundle.manifest.artefacts[0], stand_in)
    ours = dict.fromkeys(("decode", "resize", "rest"), 0.0)
    ruler = dict(ours)

    def pillow(scan: Path) -> None:
        _decode(scan).resize(size, Image.Resampling.BILINEAR)

    for scan in scans:
        picture, pixels = _decode(scan), images.load(scan)
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "decode": (partial(images.load, scan), partial(_decode, scan)),
            "resize": (
                partial(preprocessing.fit, pixels),
                partial(picture.resize, size, Image.Resampling.BILINEAR),
            ),
            "rest": (partial(classifier.predict, scan), partial(pillow, scan)),
        }
        times = [[(_ms(action), _ms(plain)) for action, plain in pairs.values()] for _ in range(_REPEATS)]
        for stage, found in zip(pairs, zip(*times, strict=True), strict=True):
            ours[stage] += min(one for one, _ in found) / len(scans)
            ruler[stage] += min(one for _, one in found) / len(scans)
    whats = {
        "decode": "images.load / Pillow's decoding",
        "resize": "Preprocessing.fit / Pillow's resizing",
        "rest": "predict around a stand-in engine / Pillow's decoding and resizing",
    }
    return [Ratio(stage, f"{model}: {what}", ours[stage], ruler[stage]) for stage, what in whats.items()]


def engines(model: str, scans: Sequence[Path]) -> list[Ratio]:
    """The engine beside the plain ONNX Runtime script, and int8 beside the float twin; each alone, in turn."""
    bundle = Bundle.open(model)
    artefact = next(one for one in bundle.manifest.artefacts if one.file == "model.int8.onnx")
    path = bundle.path_of(artefact)
    with tempfile.TemporaryDirectory() as folder:
        tensors, twin = Path(folder) / "tensors.npy", Path(folder) / "twin.onnx"
        np.save(tensors, np.stack([bundle.manifest.preprocessing.fit(images.load(scan)) for scan in scans]))
        write_float_twin(path, twin)
        subjects = {
            "ours": ("mri_edge_engine", path),
            "plain": ("onnxruntime_script", path),
            "float": ("mri_edge_engine", twin),
        }
        ms: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(_TINY_ROUNDS if artefact.size_bytes <= TINY else _ROUNDS):
            for name, (peer, file) in subjects.items():
                ms[name] += _run_peer(peer, file, tensors)
    ours, plain, full = (min(ms[name]) for name in subjects)
    return [
        Ratio("infer", f"{model}: the engine / a plain ONNX Runtime session", ours, plain),
        Ratio("infer", f"{model}: int8 / the same network in float32", ours, full),
    ]


def starts(model: str, scan: Path) -> list[Ratio]:
    """CPU time of a cold ``mri-edge predict`` beside the barest script's: whole processes in turn, one thread each."""
    bundle = Bundle.open(model)
    commands = {
        "ours": program("predict", scan, "--json", "--model", model, "--threads", 1),
        "bare": script("bare_onnxruntime.py", bundle.folder / "model.int8.onnx", scan, 1),
    }
    seconds = alternate(commands, _STARTS, undisturbed.cpu_seconds)
    ours, bare = (min(one) * 1e3 for one in seconds.values())
    return [Ratio("start", f"{model}: CPU time of a cold predict / of the barest script", ours, bare)]


def _decode(scan: Path) -> Image.Image:
    with Image.open(scan) as picture:
        picture.load()
        return picture


def _run_peer(peer: str, model: Path, tensors: Path) -> list[float]:
    request = {"peer": peer, "model": str(model), "threads": 1, "tensors": str(tensors), "runs": _RUNS}
    request |= {"answers": False}
    command = [sys.executable, str(HERE / "run_peer.py"), json.dumps(request)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["ms"]


def _ms(action: Callable[[], object]) -> float:
    return undisturbed.seconds_of(action) * 1e3
