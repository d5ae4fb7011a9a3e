"""Choose the best int8 recipe: compare every candidate on training images that did not calibrate it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.engines import open_engine

from .calibrator import SEARCHED, Calibrator, Recipe
from .images import Pixels, read_batches

Built = tuple[bytes, dict[str, Any]]


def build_best(calibrator: Calibrator, build: Callable[[Recipe], Built], reference: bytes, suffix: str) -> Built:
    """Build the calibrator's own recipe or, if it holds images out, the best of all candidates.

    Parameters
    ----------
    build
        Makes a candidate's bytes and facts from a recipe.
    reference
        Bytes of the float artifact; the candidate with the smallest mean |Δp| from it wins.
    suffix
        File name suffix of both, which decides the engine.
    """
    calibration = {"calibration": asdict(calibrator.record)}
    if not calibrator.held_out:
        content, facts = build(calibrator.recipe)
        return content, {**facts, **calibration, "recipe": asdict(calibrator.recipe)}
    batches = list(read_batches(calibrator.held_out, calibrator.preprocessing))
    expected = _probabilities(reference, suffix, batches)
    candidates = []
    for number, recipe in enumerate(SEARCHED, 1):
        layer = "float" if recipe.first_in_float else "integers"
        calibrator.step(f"trying {recipe.method} ranges, first layer in {layer}: {number} of {len(SEARCHED)}")
        content, facts = build(recipe)
        difference = float(np.abs(_probabilities(content, suffix, batches) - expected).mean())
        if np.isnan(difference):  # min() would keep a NaN that comes first
            difference = np.inf
        candidates.append((difference, recipe, content, facts))
    _, best, content, facts = min(candidates, key=lambda candidate: candidate[0])
    tried = [
        {**asdict(recipe), "mean_difference": difference if np.isfinite(difference) else None}
        for difference, recipe, _, _ in candidates
    ]
    search = {"images": len(calibrator.held_out), "tried": tried}
    return content, {**facts, **calibration, "recipe": asdict(best), "search": search}


def _probabilities(content: bytes, suffix: str, batches: list[Pixels]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(content)
        engine = open_engine(path, provider="cpu")
        try:
            return np.concatenate([engine.run(batch) for batch in batches])
        finally:
            engine.close()
