"""Draw what the network sees of a scan: its input or, on request, the frame beside it and the steps between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.frame import Frame, Pixels
from mri_edge.scans.geometry import radiological_view

from .heatmap.caption import MARGIN, arrange, printable_name, write
from .heatmap.picture import png_file
from .prediction import NOTICE

_PANEL = 480  # pixels of the longer side of a panel
_BACKDROP = (225, 225, 225)
_ORIGINS = {
    "file": "from the file",
    "option": "as given",
    "percentiles": "percentiles 1 to 99.5 of the values",
}


def draw_input(network_input: Pixels) -> bytes:
    """Return a PNG of the network's input itself, uint8 (h, w, 3) RGB."""
    return png_file(Image.fromarray(np.ascontiguousarray(network_input)), None)


def draw_explained(frame: Frame, network_input: Pixels, model: str, warnings: Sequence[ResultWarning]) -> bytes:
    """Return a PNG of a frame, beside it the network's input, enlarged without smoothing, and below them the steps.

    Parameters
    ----------
    frame
        As a reader returns it, with its metadata.
    network_input
        uint8 (h, w, 3) RGB: the frame, resized.
    model
        Name and version of the model that takes this input.
    warnings
        What the result for this frame would warn of before the network runs.
    """
    panels = [_panel(frame.pixels, Image.Resampling.BICUBIC), _panel(network_input, Image.Resampling.NEAREST)]
    width = 2 * _PANEL + 3 * MARGIN
    rows = arrange(_caption(frame, network_input, model, warnings), width - 2 * MARGIN, 1.0)
    height = _PANEL + 3 * MARGIN + sum(row.height for row in rows)
    page = Image.new("RGB", (width, height), "white")
    for panel, left in zip(panels, (MARGIN, _PANEL + 2 * MARGIN), strict=True):
        page.paste(_BACKDROP, (left, MARGIN, left + _PANEL, MARGIN + _PANEL))
        page.paste(panel, (left + (_PANEL - panel.width) // 2, MARGIN + (_PANEL - panel.height) // 2))
    write(page, rows, _PANEL + 2 * MARGIN)
    return png_file(page, None)


def _panel(pixels: Pixels, resampling: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    factor = _PANEL / max(picture.size)
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), resampling)


def _caption(frame: Frame, network_input: Pixels, model: str, warnings: Sequence[ResultWarning]) -> list[list[str]]:
    height, width = frame.pixels.shape[:2]
    name = "scan" if frame.source is None else printable_name(Path(frame.source).name)
    heading = [name] if frame.count == 1 else [name, f"frame index {frame.index} of {frame.count} frames"]
    record = next((value for key, value in frame.metadata.items() if not key.startswith("_")), None)
    lines = [heading]
    if record is None:
        lines.append(["a picture: its gray levels and its direction are used as they are stored"])
    else:
        lines += [_values(frame, record), [_window(record["window"])], _place(frame, record)]
    size = f"{network_input.shape[1]} x {network_input.shape[0]} pixels"
    lines.append([f"left: the frame, {width} x {height} pixels", f"right: the input of {model}, {size}"])
    lines += [[f"warning: {warning}"] for warning in warnings]
    return [*lines, [NOTICE]]


def _values(frame: Frame, record: dict[str, Any]) -> list[str]:
    rescale = record["rescale"]
    if rescale is None:
        steps = ["rescaled by a table in the file"]
    elif rescale == {"slope": 1.0, "intercept": 0.0}:
        steps = ["not rescaled (slope 1, intercept 0)"]
    else:
        steps = [f"rescaled: {rescale['slope']:g} x stored value {rescale['intercept']:+g}"]
    layout = frame.metadata.get("_layout")
    if layout is not None:
        sign = "signed" if layout.signed else "unsigned"
        stored = f"stored as {layout.stored} {sign} bits of {layout.allocated}"
        facts = frame.metadata.get("_facts")
        if facts is not None and facts.syntax:
            stored += f", {facts.syntax}"
        steps.insert(0, stored)
        steps.append("inverted: low values are white" if layout.invert else "not inverted")
    return steps


def _window(window: dict[str, Any]) -> str:
    origin = _ORIGINS[window["from"]]
    if window["function"] == "LUT":
        return f"gray levels by a table {origin}"
    low, high = window["center"] - window["width"] / 2, window["center"] + window["width"] / 2
    shown = f"center {window['center']:g}, width {window['width']:g} ({low:g} to {high:g}), {window['function']}"
    return f"window: {shown}, {origin}"


def _place(frame: Frame, record: dict[str, Any]) -> list[str]:
    facts = frame.metadata.get("_facts")
    known = (
        {"orientation": facts.orientation, "spacing": facts.spacing} if facts else frame.metadata.get("_geometry", {})
    )
    orientation, spacing = known.get("orientation"), known.get("spacing")
    view = None if orientation is None else radiological_view(orientation[:3], orientation[3:])
    if view is None:
        steps = ["direction unknown: shown as stored"]
    else:
        steps = [f"{view.plane}, {view.describe()}"]
        if record["position"] is not None:
            steps.append(f"at {record['position']:.1f} mm")
    if spacing is not None:
        steps.append(f"stored pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm")
        if max(spacing) > 1.01 * min(spacing):
            steps.append("resampled to square pixels")
    return steps
