"""Which models run in what: every artefact of a bundle in each of our engines, and in the peers beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mri_edge.benchmarking.benchmark import subjects as our_subjects
from mri_edge.bundles.bundle import EMBEDDED, Bundle, embedded_models
from mri_edge.device.machine import installed

CHECKOUT = Path(__file__).parents[1]
SCALED_BACK = "weights_scaled_back_from"  # a training detail of the bundles that whole_bundles.py writes

# peer -> what it opens
_PEERS = {
    "keras_predict": (".keras",),
    "keras_function": (".keras",),
    "onnxruntime_script": (".onnx",),
    "openvino_api": (".onnx",),
    "benchmark_app": (".onnx",),
    "litert_api": (".tflite",),
}
_TITLES = {
    "keras_predict": "keras.Model.predict",
    "keras_function": "tf.function",
    "onnxruntime_script": "plain ONNX Runtime script",
    "openvino_api": "OpenVINO's own API",
    "benchmark_app": "OpenVINO's benchmark_app",
    "litert_api": "LiteRT's own API",
}
OLIVE = "Olive's best, in ONNX Runtime"  # only there where its own environment is named
# The peers run what a user would give them: float, and int8 where they have it.
_PEER_FILES = ("model.keras", "model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite")


@dataclass(frozen=True)
class Subject:
    """One row: ``peer`` a file in ``peers/`` or ``benchmark_app``; ``problem``: why it cannot run here."""

    bundle: str
    title: str
    peer: str
    model: Path
    artefact: str
    options: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.bundle}: {self.title}: {self.artefact}"


def bundles() -> dict[str, Bundle]:
    """Each embedded model by name: its whole bundle in ``bundles/``, else what the package holds.

    ``MRI_EDGE_BUNDLES`` names another folder of bundles.
    """
    whole = Path(os.environ.get("MRI_EDGE_BUNDLES") or CHECKOUT / "bundles")
    return {
        name: Bundle.open(whole / name if (whole / name / "manifest.json").is_file() else EMBEDDED / name)
        for name in embedded_models()
    }


def smallest() -> str:
    """The embedded model of the fewest bytes: for what must run thousands of times."""
    return min(embedded_models(), key=lambda name: sum(one.size_bytes for one in Bundle.open(name).manifest.artefacts))


def subjects_of(name: str, bundle: Bundle, olive: Path | str, recipe: str = "") -> list[Subject]:
    """All rows of one bundle; ``olive``: the model that Olive made of its ``model.onnx`` by ``recipe``, or why not."""
    found = [
        Subject(
            name,
            f"mri-edge, {one.engine}",
            "mri_edge_engine",
            bundle.folder / one.artefact.file,
            one.artefact.file,
            {"engine": one.engine},
            one.problem,
        )
        for one in our_subjects(bundle)
    ]
    held = {one.file for one in bundle.manifest.artefacts}
    for peer, suffixes in _PEERS.items():
        for file in _PEER_FILES:
            if file in held and file.endswith(suffixes):
                found.append(Subject(name, _TITLES[peer], peer, bundle.folder / file, file, problem=_missing(peer)))
    if "model.onnx" in held:
        made = isinstance(olive, Path)
        found.append(
            Subject(
                name,
                OLIVE,
                "onnxruntime_script",
                olive if isinstance(olive, Path) else bundle.folder / "model.onnx",
                f"model.onnx, {recipe}" if made else "model.onnx",
                problem=None if made else f"not available: {olive}",
            )
        )
    return found


def _missing(peer: str) -> str | None:
    wanted = {
        "keras_predict": ("tensorflow", "keras"),
        "keras_function": ("tensorflow", "keras"),
        "onnxruntime_script": ("onnxruntime",),
        "openvino_api": ("openvino",),
        "benchmark_app": ("openvino",),
        "litert_api": ("ai-edge-litert",),
    }[peer]
    absent = sorted(set(wanted) - set(installed(wanted)))
    return f"not available: {', '.join(absent)} is not installed" if absent else None
