"""Record golden values: results for a few scans on this machine, which other devices replay and compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.bundle import Bundle
from mri_edge.device.machine import cpu, installed
from mri_edge.errors import InputError, UsageError, printable
from mri_edge.inference.replay import (
    ARRAYS,
    FOLDER,
    NOTICE,
    RECORD,
    SCHEMA_VERSION,
    Facts,
    engine_here,
    is_golden,
    probabilities_of,
)
from mri_edge.inference.tuned_profile import library_versions
from mri_edge.scans import readers

from .writer import rewrite_bundle


def record(bundle: Bundle, scans: Sequence[Path], notice: Path) -> list[str]:
    """Add scans to a bundle with their results on this machine: pixels, tensors, and probabilities of each artifact.

    Returns the artifacts that were left out, because their engines are not installed.

    Parameters
    ----------
    scans
        Pictures or DICOM files of one frame that may be passed on with the bundle: demo scans, never a patient's.
    notice
        Text file with the owner and license of the scans, which is passed on with them.

    Raises
    ------
    UsageError
        Two scans have the same name, a name is not text, or there is no scan.
    InputError, BundleError, EngineError
        A scan or the notice cannot be read, an artifact cannot be run.
    """
    names = [FOLDER + path.name for path in scans]
    if len(set(names)) < len(names) or not names:
        raise UsageError(f"scans must be one or more, of different names. Received: {', '.join(names) or 'none'}")
    if not all(name.isprintable() for name in names):  # the manifest has them, in UTF-8
        raise UsageError(f"the name of a scan is not text: {printable(', '.join(names))}", "Rename it")
    try:
        notice_text = notice.read_text(encoding="utf-8")
        contents = [path.read_bytes() for path in scans]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read: {error}") from error
    pixels = [readers.load(path) for path in scans]
    tensors = np.stack([bundle.manifest.preprocessing.resize_picture(rgb) for rgb in pixels])
    arrays: dict[str, NDArray[Any]] = {"tensors": tensors}
    # In a gray picture all three channels share memory: keep one.
    arrays |= {f"pixels-{i}": rgb[:, :, 0] if rgb.strides[2] == 0 else rgb for i, rgb in enumerate(pixels)}
    engines = {}
    skipped = []
    for artifact in bundle.manifest.artifacts:
        engine = engine_here(artifact)
        if not engine:
            skipped.append(artifact.file)
        else:
            engines[artifact.file] = engine
            arrays[f"probabilities-{artifact.file}"] = probabilities_of(bundle, artifact, engine, tensors)
    facts = Facts(SCHEMA_VERSION, tuple(names), engines, str(cpu()), _libraries())
    others = [entry.file for entry in bundle.entries() if not is_golden(entry.file)]
    with rewrite_bundle(bundle, keep=others) as writer:
        for name, content in zip(names, contents, strict=True):
            writer.add_document(name, content)
        writer.add_document(NOTICE, notice_text)
        writer.add_document(RECORD, json.dumps(asdict(facts), indent=2) + "\n")
        np.savez_compressed(writer.path(ARRAYS), **arrays)  # type: ignore[arg-type]
        writer.add_document(ARRAYS)
    return skipped


def _libraries() -> dict[str, str]:
    from PIL import features

    decoder = features.version("libjpeg_turbo") or features.version("jpg") or "unknown"
    return {**library_versions(), **installed(("numpy", "pillow")), "libjpeg": decoder}
