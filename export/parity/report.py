"""Write ``report/parity.html``, the parity report as one page, from the content of ``parity.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mri_edge.authoring.pages import render

PAGE = "report/parity.html"
_TEMPLATE = Path(__file__).with_name("parity.html.jinja")
_SIDE, _MARGIN = 260, 34  # of a scatter plot, in pixels


def page(parity: dict[str, Any], sizes: dict[str, int]) -> str:
    """HTML text from the content of ``parity.json`` and the size of each artefact in bytes."""
    plots = {file: _scatter(artefact, parity) for file, artefact in parity["artefacts"].items()}
    return render(_TEMPLATE, title="Parity report", parity=parity, sizes=sizes, plots=plots)


def _scatter(artefact: dict[str, Any], parity: dict[str, Any]) -> dict[str, Any]:
    """Coordinates in pixels: the Keras probability to the right, the artefact's upwards.

    A point off the diagonal is a difference.
    """
    positive = parity["positive"]
    threshold = parity["threshold"] if parity["threshold"] is not None else 0.5
    changed = {flip["file"] for flip in artefact["flips"]}
    points = []
    for image, probability in zip(parity["images"], artefact["probabilities"], strict=True):
        reference = image["probabilities"][positive]
        points.append(
            {
                "x": _x(reference),
                "y": _y(probability),
                "changed": image["file"] in changed,
                "title": f"{image['file']}: {reference:.4f}, {probability:.4f}",
            }
        )
    return {
        "size": _SIDE + 2 * _MARGIN,
        "side": _SIDE,
        "left": _x(0),
        "right": _x(1),
        "top": _y(1),
        "bottom": _y(0),
        "middle": _x(0.5),
        "threshold_x": _x(threshold),
        "threshold_y": _y(threshold),
        "points": points,
    }


def _x(probability: float) -> float:
    return _MARGIN + probability * _SIDE


def _y(probability: float) -> float:
    return _MARGIN + (1 - probability) * _SIDE
