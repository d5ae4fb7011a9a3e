"""How to run a bundle: artifact, engine, provider and threads, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Workload = Literal["single", "many"]


@dataclass(frozen=True)
class RunOptions:
    """The caller's choices for running a model. ``selection.select`` chooses whatever is None.

    Attributes
    ----------
    artifact
        File of the bundle, ``"model.int8.onnx"``. None: the best one that an installed engine opens.
    engine
        ``"onnxruntime"`` (or ``"onnx"``, ``"ort"``), ``"litert"`` (or ``"tflite"``), ``"openvino"``.
        None: the preferred engine for the artifact.
    provider
        ``"auto"`` takes the best execution provider that starts, ``"gpu"`` the best GPU provider. Any other
        provider must start, or ProviderUnavailable is raised.
    threads
        Intra-op threads, at most the cores that this process may use. None: as the device profile says, else 1 for
        a model below 1 MiB and all those cores for a larger one.
    workload
        Whether scans come one by one or many at a time. A device profile knows the best choice for each.
    allow_fallback
        Run on the CPU if ``provider`` does not start, with a warning in every prediction.
    """

    artifact: str | None = None
    engine: str | None = None
    provider: str = "auto"
    threads: int | None = None
    workload: Workload = "many"
    allow_fallback: bool = False
