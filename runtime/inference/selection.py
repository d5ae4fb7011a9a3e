"""Choose which artifact of a bundle runs, in which engine and how, where the caller leaves it open."""

from __future__ import annotations

import logging
import os
from typing import Literal, get_args

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.device.dirs import profile_folder
from mri_edge.device.machine import cpu
from mri_edge.engines import EngineFile, check_provider, engine_file, engine_for, engines_by_preference, remedy
from mri_edge.errors import BundleError, EngineUnavailable, ManifestError, UsageError
from mri_edge.records import dataclass
from mri_edge.scans.options import DEFAULT as READ_DEFAULT
from mri_edge.scans.options import ReadOptions

DEFAULT_BATCH = 8
# A network below this size has finished before a second thread has started, and takes less time than decoding, so other
# threads decode meanwhile: `small` (0.14 MB) takes 0.13 ms on one thread and 0.14 on two (AMD Zen 4).
TINY = 1 << 20  # bytes
_TINY_BATCH = 64

# The first installed engine is chosen, ONNX Runtime before LiteRT: for the int8 artifacts of the embedded
# network LiteRT takes 1.03 to 1.06 times the CPU time of ONNX Runtime with VNNI (AMD Zen 4, batch 1 and 8, one thread),
# a difference too small to matter. 'mri-edge tune' measures what is faster on a device.
# Where the CPU sums 8-bit products in one instruction, int8 is the fastest and exact. On other x86 CPUs int8 is faster
# in ONNX only: with AVX2 (AMD Zen 3) vgg16 takes 0.52 of float32's time, `small` 0.64 to 0.78, and weights of 7 bits
# keep the sums in range (export/onnx/quantize.py); in LiteRT int8 takes 0.98 and 1.6 times float32's. float16 and
# dynamic range save space, not time.
_INT8_FIRST = ("int8", "float32", "dynamic", "float16")
_FLOAT_FIRST = ("float32", "dynamic", "float16", "int8")
# TensorRT builds no int8 artifact but those made for it, which precede these, and computes float16 faster than float32.
_FOR_TENSORRT = ("float16", "float32", "int8", "dynamic")

_log = logging.getLogger(__name__)

Workload = Literal["single", "many"]


@dataclass(frozen=True)
class RunOptions:
    """The caller's choices for running a model. ``select`` chooses whatever is None.

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
    reading
        How the values of DICOM and NIfTI become pictures.

    Raises
    ------
    UsageError
        Unknown provider or workload.
    """

    artifact: str | None = None
    engine: str | None = None
    provider: str = "auto"
    threads: int | None = None
    workload: Workload = "many"
    allow_fallback: bool = False
    reading: ReadOptions = READ_DEFAULT

    def __post_init__(self) -> None:
        check_provider(self.provider)
        if self.workload not in get_args(Workload):
            raise UsageError(f"a workload must be {' or '.join(get_args(Workload))}. Received: {self.workload!r}")


@dataclass(frozen=True)
class Selection:
    """The chosen artifact, and how to run it.

    Attributes
    ----------
    threads
        None: all cores that this process may use.
    reason
        Why this was chosen, for the log.
    measured_on
        The provider on which the device profile was measured; None without a profile.
    """

    artifact: Artifact
    engine: str
    threads: int | None
    batch: int
    reason: str
    measured_on: str | None = None


def select(bundle: Bundle, run: RunOptions | None = None, *, tuned: bool = True) -> Selection:
    """Choose by ``run``, then by the device profile, then by a rule that suits most machines.

    An artifact that failed its parity gate is only chosen if ``run`` names it. Measurements of a device profile count
    only if they were made with the provider and threads that ``run`` requests. ``tuned=False`` ignores the profile.

    Raises
    ------
    UsageError
        Unknown engine or artifact.
    BundleError
        The bundle holds nothing that the engine opens.
    EngineUnavailable
        The bundle holds artifacts, but no engine for them is installed.
    """
    run = run or RunOptions()
    artifact = bundle.artifact(run.artifact) if run.artifact is not None else None
    engine = engine_file(run.engine) if run.engine is not None else None
    if tuned and (selection := _by_profile(bundle, artifact, engine, run)):
        return selection
    if artifact:
        return _untuned(artifact, engine or engine_for(artifact.file), run.threads, "as requested")
    return _untuned(*_by_rule(bundle, engine, run.provider), run.threads, "by the rule for this CPU")


def _untuned(artifact: Artifact, engine: EngineFile, threads: int | None, reason: str) -> Selection:
    if artifact.size_bytes <= TINY:
        return Selection(artifact, engine.NAME, 1 if threads is None else threads, _TINY_BATCH, reason)
    return Selection(artifact, engine.NAME, threads, DEFAULT_BATCH, reason)


def allowed(bundle: Bundle) -> list[Artifact]:
    """Return the artifacts that may run without being named: all but those that failed their parity gate."""
    return [
        artifact
        for artifact in bundle.manifest.artifacts
        if artifact.parity is None or artifact.parity.verdict != "not met"
    ]


def suits(artifact: Artifact, provider: str) -> bool:
    """Whether an artifact may run on a provider without being named.

    One with a ``target``, such as an accelerator, may be slow elsewhere, or less exact: without VNNI, x86 CPUs saturate
    sums of weights of 8 bits.
    """
    return artifact.made_with.get("target") in (None, provider)


def _by_profile(
    bundle: Bundle, artifact: Artifact | None, engine: EngineFile | None, run: RunOptions
) -> Selection | None:
    try:
        if not os.path.isdir(profile_folder()):  # the usual case, in which nothing should be imported
            return None
    except UsageError:  # there is no home folder, and so no profile
        return None
    from .tuned_profile import load_profile

    try:
        profile = load_profile(bundle)
    except ManifestError as error:
        _log.warning("device profile ignored, %s. Run 'mri-edge tune' again", error.problem)
        return None
    if profile is None:
        return None
    if reason := profile.staleness():
        _log.warning("device profile ignored, %s. Run 'mri-edge tune' again", reason)
        return None
    best = profile.best(
        provider=run.provider,
        artifact=artifact.file if artifact else None,
        engine=engine.NAME if engine else None,
        threads=run.threads,
        many=run.workload == "many",
    )
    if best is None:
        return None
    return Selection(
        bundle.artifact(best.artifact), best.engine, best.threads, best.batch, "by the device profile", best.ran
    )


def _by_rule(bundle: Bundle, engine: EngineFile | None, provider: str) -> tuple[Artifact, EngineFile]:
    processor, not_installed = cpu(), []
    candidates = [artifact for artifact in allowed(bundle) if suits(artifact, provider)] or allowed(bundle)
    for candidate in [engine] if engine else engines_by_preference():
        artifacts = [artifact for artifact in candidates if artifact.file.endswith(candidate.SUFFIXES)]
        if not artifacts:
            continue
        if engine is None and candidate.missing():
            not_installed.append(candidate)
            continue
        int8_is_fast = processor.multiplies_int8_fast or (
            ".onnx" in candidate.SUFFIXES and "avx2" in processor.instructions
        )
        order = _INT8_FIRST if int8_is_fast else _FLOAT_FIRST
        if provider == "tensorrt":
            order = _FOR_TENSORRT
        return min(
            artifacts,
            key=lambda artifact: (artifact.made_with.get("target") != provider, order.index(artifact.precision)),
        ), candidate
    if not_installed:
        reasons = "; ".join(f"{candidate.NAME}: {candidate.missing()}" for candidate in not_installed)
        raise EngineUnavailable(f"{bundle.folder}: no engine for it is installed ({reasons})", remedy(not_installed[0]))
    files = ", ".join(artifact.file for artifact in bundle.manifest.artifacts) or "no model"
    wanted = f"engine {engine.NAME!r}" if engine else "any engine"
    raise BundleError(
        f"{bundle.folder}: has no artifact for {wanted}. It has: {files}", "Make one with 'mri-edge export BUNDLE'"
    )
