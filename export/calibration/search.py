"""Which recipe quantises best: every candidate is judged on training images that did not calibrate it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.engines import open_engine

from .calibrate import SEARCHED, Calibrator, Pixels, Recipe, read_batches

Made = tuple[bytes, dict[str, Any]]


def best(calibrator: Calibrator, build: Callable[[Recipe], Made], reference: bytes, suffix: str) -> Made:
    """The calibrator's own recipe or, if it holds images out, the best of all.

    Parameters
    ----------
    build
        Makes a candidate's bytes and facts from a recipe.
    reference
        Bytes of the float artefact; the candidate with the least mean |Δp| from it wins.
    suffix
        Of both files, for the engine.
    """
    seen = {"calibration": asdict(calibrator.record)}
    if not calibrator.held_out:
        content, facts = build(calibrator.recipe)
        return content, {**facts, **seen, "recipe": asdict(calibrator.recipe)}
    batches = list(read_batches(calibrator.held_out, calibrator.preprocessing))
    wanted = _answers(reference, suffix, batches)
    tried = []
    for number, recipe in enumerate(SEARCHED, 1):
        layer = "float" if recipe.first_in_float else "integers"
        calibrator.step(f"trying {recipe.method} ranges, first layer in {layer}: {number} of {len(SEARCHED)}")
        content, facts = build(recipe)
        difference = float(np.abs(_answers(content, suffix, batches) - wanted).mean())
        if np.isnan(difference):  # `min` would keep it wherever it comes first
            difference = np.inf
        tried.append((difference, recipe, content, facts))
    _, recipe, content, facts = min(tried, key=lambda one: one[0])
    table = [
        {**asdict(one), "mean_difference": difference if np.isfinite(difference) else None}
        for difference, one, _, _ in tried
    ]
    search = {"images": len(calibrator.held_out), "tried": table}
    return content, {**facts, **seen, "recipe": asdict(recipe), "search": search}


def _answers(content: bytes, suffix: str, batches: list[Pixels]) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        path.write_bytes(content)
        engine = open_engine(path, provider="cpu")
        try:
            return np.concatenate([engine.run(batch) for batch in batches])
        finally:
            engine.close()
