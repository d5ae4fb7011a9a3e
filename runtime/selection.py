"""Which artefact of a bundle runs, and in which engine, when the caller leaves it open."""

from __future__ import annotations

from .bundle import Bundle
from .engines import EngineFile, engine_file, engine_files, engine_for
from .errors import BundleError, EngineUnavailable
from .manifest import Artefact

# int8 first: on CPUs with dot-product instructions (VNNI, ARM dotprod) it is the fastest, and the
# parity gate has let it pass; float16 and dynamic range are for stores and links that are tight.
_PRECISIONS = ("int8", "float32", "dynamic", "float16")


def select(bundle: Bundle, artefact: str | None = None, engine: str | None = None) -> tuple[Artefact, EngineFile]:
    """The artefact and the engine to run.

    Parameters
    ----------
    artefact
        File name in the bundle, or None for the best one that an engine here can open.
    engine
        Engine name, or None for the preferred engine of the artefact.

    Raises
    ------
    UsageError
        Unknown engine or artefact.
    BundleError
        The bundle holds nothing that the engine opens.
    EngineUnavailable
        The bundle holds artefacts, but no engine for them is installed.
    """
    if artefact is not None:
        chosen = bundle.artefact(artefact)
        return chosen, engine_file(engine) if engine else engine_for(chosen.file)
    candidates = [engine_file(engine)] if engine else list(engine_files().values())
    reasons = []
    for one in candidates:
        fitting = [item for item in bundle.manifest.artefacts if item.file.endswith(one.SUFFIXES)]
        if not fitting:
            continue
        if engine is None and (reason := one.missing()):
            reasons.append(f"{one.NAME}: {reason}")
            continue
        return min(fitting, key=lambda item: _PRECISIONS.index(item.precision)), one
    if reasons:
        raise EngineUnavailable(
            f"{bundle.folder}: no engine for it is installed ({'; '.join(reasons)})", "pip install 'mri-edge[litert]'"
        )
    held = ", ".join(item.file for item in bundle.manifest.artefacts) or "no model"
    wanted = f"engine {engine!r}" if engine else "any engine"
    raise BundleError(
        f"{bundle.folder}: nothing in it for {wanted}. It has: {held}", "Make one with 'mri-edge export BUNDLE'"
    )
