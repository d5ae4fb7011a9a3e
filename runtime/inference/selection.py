"""Which artefact of a bundle runs, in which engine and how, when the caller leaves it open."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Artefact
from mri_edge.device.dirs import profile_folder
from mri_edge.device.machine import cpu
from mri_edge.engines import EngineFile, engine_file, engine_files, engine_for, remedy
from mri_edge.errors import BundleError, EngineUnavailable, ManifestError, UsageError

DEFAULT_BATCH = 8
# A network this small has run before a second thread has woken, and takes less than decoding does, so that other
# threads decode meanwhile: `small` (0.14 MB) takes 0.13 ms on one thread and 0.14 on two (AMD Zen 4).
TINY = 1 << 20  # bytes
_TINY_BATCH = 64

# Between engines the first that is installed is taken, ONNX Runtime before LiteRT: of the int8 artefacts of the
# embedded network LiteRT takes 1.03 to 1.06 times the CPU time of ONNX Runtime with VNNI (AMD Zen 4, batch 1 and 8,
# one thread), which is no reason to prefer the other. What differs on a device, 'mri-edge tune' finds out.
# Where the CPU sums 8-bit products in one instruction, int8 is the fastest and exact. On other x86 it is so in ONNX
# alone: with AVX2 (AMD Zen 3) vgg16 takes 0.52 of float32's time, `small` 0.64 to 0.78, and weights of 7 bits keep the
# sums in range (export/onnx/quantize.py); in LiteRT int8 takes 0.98 and 1.6 times float32's. float16 and dynamic
# range save space, not time.
_INT8_FIRST = ("int8", "float32", "dynamic", "float16")
_FLOAT_FIRST = ("float32", "dynamic", "float16", "int8")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What to run and how; ``threads`` None means the cores that may be used. ``reason`` is for the log.

    ``measured_on`` is the provider that a device profile's choice is about, None without a profile.
    """

    artefact: Artefact
    engine: str
    threads: int | None
    batch: int
    reason: str
    measured_on: str | None = None


def select(
    bundle: Bundle,
    artefact: str | None = None,
    engine: str | None = None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    many: bool = True,
    tuned: bool = True,
) -> Selection:
    """Choose by what is given, then by the device profile, then by a rule that fits most machines.

    Parameters
    ----------
    artefact
        File name in the bundle, or None for the best one that an engine here can open. Only a named
        one may have failed its parity gate.
    engine
        Engine name, or None for the preferred engine of the artefact.
    provider, threads
        As asked for: the profile's measurements with others do not count.
    many
        Whether many scans come at a time, or single ones.
    tuned
        False leaves the device profile out.

    Raises
    ------
    UsageError
        Unknown engine or artefact.
    BundleError
        The bundle holds nothing that the engine opens.
    EngineUnavailable
        The bundle holds artefacts, but no engine for them is installed.
    """
    named = bundle.artefact(artefact) if artefact is not None else None
    file = engine_file(engine) if engine is not None else None
    if tuned and (found := _by_profile(bundle, named, file, provider, threads, many)):
        return found
    if named:
        return _untuned(named, file or engine_for(named.file), threads, "as asked for")
    return _untuned(*_by_rule(bundle, file), threads, "by the rule for this CPU")


def _untuned(artefact: Artefact, engine: EngineFile, threads: int | None, reason: str) -> Selection:
    if artefact.size_bytes <= TINY:
        return Selection(artefact, engine.NAME, threads or 1, _TINY_BATCH, reason)
    return Selection(artefact, engine.NAME, threads, DEFAULT_BATCH, reason)


def allowed(bundle: Bundle) -> list[Artefact]:
    """The artefacts that may run without being named: all but those that failed their parity gate."""
    return [one for one in bundle.manifest.artefacts if one.parity is None or one.parity.verdict != "not met"]


def _by_profile(
    bundle: Bundle, artefact: Artefact | None, engine: EngineFile | None, provider: str, threads: int | None, many: bool
) -> Selection | None:
    try:
        if not os.path.isdir(profile_folder()):  # the usual case, so it costs no import
            return None
    except UsageError:  # no home, so no profile
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
        provider=provider,
        artefact=artefact.file if artefact else None,
        engine=engine.NAME if engine else None,
        threads=threads,
        many=many,
    )
    if best is None:
        return None
    return Selection(
        bundle.artefact(best.artefact), best.engine, best.threads, best.batch, "by the device profile", best.ran
    )


def _by_rule(bundle: Bundle, engine: EngineFile | None) -> tuple[Artefact, EngineFile]:
    processor, absent = cpu(), []
    for one in [engine] if engine else engine_files().values():
        fitting = [item for item in allowed(bundle) if item.file.endswith(one.SUFFIXES)]
        if not fitting:
            continue
        if engine is None and one.missing():
            absent.append(one)
            continue
        fast = processor.multiplies_int8_fast or (".onnx" in one.SUFFIXES and "avx2" in processor.instructions)
        order = _INT8_FIRST if fast else _FLOAT_FIRST
        return min(fitting, key=lambda item: order.index(item.precision)), one
    if absent:
        reasons = "; ".join(f"{one.NAME}: {one.missing()}" for one in absent)
        raise EngineUnavailable(f"{bundle.folder}: no engine for it is installed ({reasons})", remedy(absent[0]))
    held = ", ".join(item.file for item in bundle.manifest.artefacts) or "no model"
    wanted = f"engine {engine.NAME!r}" if engine else "any engine"
    raise BundleError(
        f"{bundle.folder}: nothing in it for {wanted}. It has: {held}", "Make one with 'mri-edge export BUNDLE'"
    )
