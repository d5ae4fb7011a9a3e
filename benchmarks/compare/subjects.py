"""List what is measured: every artifact of a bundle in each of our engines, and in the peers beside them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import CHECKOUT
from mri_edge.benchmarking.benchmark import subjects as our_subjects
from mri_edge.bundles.bundle import EMBEDDED, Bundle, embedded_models
from mri_edge.device.machine import installed
from mri_edge.inference.selection import suits

SCALED_BACK = "weights_scaled_back_from"  # a training detail of the bundles that scripts/whole_bundles.py writes
OLIVE = "Olive's best, in ONNX Runtime"  # measured only with a Python that has olive-ai

# peer (a function in peers.py, or benchmark_app): its title, the suffix that it opens, the packages that it needs
_PEERS = {
    "keras_predict": ("keras.Model.predict", ".keras", ("tensorflow", "keras")),
    "keras_function": ("tf.function", ".keras", ("tensorflow", "keras")),
    "onnxruntime_script": ("plain ONNX Runtime script", ".onnx", ("onnxruntime",)),
    "openvino_api": ("OpenVINO's own API", ".onnx", ("openvino",)),
    "benchmark_app": ("OpenVINO's benchmark_app", ".onnx", ("openvino",)),
    "litert_api": ("LiteRT's own API", ".tflite", ("ai-edge-litert",)),
}
# Peers run what a user would give them: float models, and int8 ones where they have them.
_PEER_FILES = ("model.keras", "model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite")


@dataclass(frozen=True, eq=False)
class Subject:
    """One row: a model file that ``peer`` runs. ``problem`` says why it cannot run here."""

    bundle: str
    title: str
    peer: str
    model: Path
    artifact: str
    options: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.bundle}: {self.title}: {self.artifact}"


def bundles() -> dict[str, Bundle]:
    """Return each embedded model by name: its whole bundle in ``bundles/``, or else what the package contains.

    ``MRI_EDGE_BUNDLES`` names another folder of bundles.
    """
    whole = Path(os.environ.get("MRI_EDGE_BUNDLES") or CHECKOUT / "bundles")
    return {
        name: Bundle.open(whole / name if (whole / name / "manifest.json").is_file() else EMBEDDED / name)
        for name in embedded_models()
    }


def subjects_of(name: str, bundle: Bundle, olive: Path | str, recipe: str = "") -> list[Subject]:
    """List the rows of a bundle. ``olive``: Olive's model of ``model.onnx`` by ``recipe``, or why there is none."""
    found, files = [], {artifact.file for artifact in bundle.manifest.artifacts}

    def add(title: str, peer: str, file: str, problem: str | None = None, **options: Any) -> None:
        found.append(Subject(name, title, peer, bundle.folder / file, file, options, problem))

    for ours in our_subjects(bundle):
        if not suits(ours.artifact, "CPUExecutionProvider"):
            continue  # mri-edge does not choose it here either
        add(f"mri-edge, {ours.engine}", "mri_edge_engine", ours.artifact.file, ours.problem, engine=ours.engine)
    for peer, (title, suffix, packages) in _PEERS.items():
        missing = ", ".join(sorted(set(packages) - set(installed(packages))))
        for file in _PEER_FILES:
            if file in files and file.endswith(suffix):
                add(title, peer, file, f"not available: {missing} is not installed" if missing else None)
    if "model.onnx" in files and isinstance(olive, Path):
        found.append(Subject(name, OLIVE, "onnxruntime_script", olive, f"model.onnx, {recipe}"))
    elif "model.onnx" in files:
        add(OLIVE, "onnxruntime_script", "model.onnx", f"not available: {olive}")
    return found
