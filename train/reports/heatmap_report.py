"""Show the score of heatmaps as a self-contained HTML page with pictures of cases, and as tables on a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from mri_edge.authoring.heatmap_score import NAMES, figure_text
from mri_edge.authoring.intervals import HEAD
from mri_edge.authoring.pages import render
from mri_edge.errors import printable
from mri_edge.inference.prediction import HOT_SPOT
from mri_edge.train.evaluation.heatmap_score import Case, judge

from .tables import Rows, Table, interval, methods, print_report, ran, warnings

if TYPE_CHECKING:
    from .plots import Plot

_TEMPLATE = Path(__file__).with_name("heatmaps.html.jinja")
_GALLERY = 12  # cases of each kind
_PANEL = 168  # pixels, the longer side of each of the two pictures of a case
_LESION, _PEAK = (90, 220, 255), (60, 255, 90)
_MAPS = {"heatmap": "heatmap", "random": "random map", "center": "center of the head"}


def heatmap_page(record: dict[str, Any], cases: Sequence[Case]) -> str:
    """Return the HTML page of an evaluation of heatmaps.

    It shows scans with drawn lesions and their maps, so it is for the machine that has these scans.
    """
    misses = [case for case in cases if case.called and not judge(case.heatmap, case.lesion, case.head).hit]
    others = [case for case in cases if not case.called]
    private = "The pictures are scans: do not pass this page on unless they may be passed on."
    return render(
        _TEMPLATE,
        title=f"Heatmaps of {record['model']}: {record['artefact']}",
        facts=list(zip(("Model", "Heatmaps", "Data", "Lesions", "Limit"), _facts(record), strict=True)),
        provenance=record["creation"],
        warnings=warnings(record, "scans"),
        explanation=_explanation(record),
        tables=[_figures(record), _by_look(record)],
        methods=methods(record, NAMES.__getitem__),
        plots=_plots(record),
        galleries=[
            (
                "Called lesions",
                f"The first {_GALLERY} by the SHA-256 of their scan, not chosen by their result. Left: the scan with "
                f"the outline of the drawn lesion. Right: its map, with a cross at the peak. {private}",
                [_describe(case, record) for case in cases if case.called][:_GALLERY],
            ),
            (
                f"Called lesions that the peak misses: {len(misses)}",
                f"The first {_GALLERY} of them.",
                [_describe(case, record) for case in misses[:_GALLERY]],
            ),
            (
                f"Lesions that the model does not call: {len(others)}",
                f"The first {_GALLERY} of them.",
                [_describe(case, record) for case in others[:_GALLERY]],
            ),
        ],
        unreadable=[(failure["file"], failure["error"]) for failure in record["unreadable"]],
    )


def print_heatmaps(record: dict[str, Any]) -> None:
    """Print the record as tables on stdout."""
    print_report(_facts(record), warnings(record, "scans"), [_figures(record), _by_look(record)], record["notice"])


def _facts(record: dict[str, Any]) -> list[str]:
    """Return a line each about the model, the method, the scans and the lesions."""
    data = record["data"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(data["left_out"].items()))
    return [
        ran(record),
        record["method"],
        f"{data['folder']}: {data['scans']} healthy scans, {data['what']}, "
        f"in {data['groups']} groups: {data['grouping']}" + (f"; left out: {left_out}" if left_out else ""),
        f"{record['lesions']} drawn, {record['called']} of them called by the model",
        _hot_spot(record["hot_spot"]),
    ]


def _hot_spot(limit: float | None) -> str:
    if limit is None:
        return f"hot spots from {HOT_SPOT:g} log-odds, because there are too few healthy validation scans to choose it"
    return f"hot spots from {limit:g} log-odds, which at most 5% of the maps of healthy validation scans reach"


def _explanation(record: dict[str, Any]) -> str:
    return (
        "Lesions are drawn at known places in healthy scans, and each map is compared with its lesion. The peak may "
        f"lie up to {record['tolerance']:.0%} of the picture's side beside the lesion. A random map and the center of "
        "the head show what a map reaches that knows nothing. Drawn lesions are cruder than real ones: these figures "
        "compare maps, and do not say how often a map finds a tumor."
    )


def _figures(record: dict[str, Any]) -> Table:
    rows: Rows = []
    for name, text in NAMES.items():
        if metric := record["metrics"].get(name):
            figure = figure_text(name, metric["value"], metric["low"], metric["high"])
            rows.append((text, figure, str(metric["images"])))
    return "Figures", ("figure", HEAD, "maps"), rows


def _by_look(record: dict[str, Any]) -> Table:
    columns = ("called", "pointing_game", "pointing_game_all")
    rows: Rows = [
        (
            look,
            *(interval(metrics[name]) if name in metrics else "–" for name in columns),
            str(metrics["called"]["images"]) if metrics else "0",
        )
        for look, metrics in record["by_look"].items()
    ]
    heads = ("look", "called by the model", "peak in the lesion, called", "peak in the lesion, all", "lesions")
    return "By look, with 95% intervals", heads, rows


def _plots(record: dict[str, Any]) -> list[Plot]:
    """Draw the mean curves; the tables on a terminal do not need matplotlib."""
    from .plots import removal_plot

    curves = record["curves"]
    if not curves:
        return []
    captions = {
        "deletion": "Mean probability while the regions with the highest values are replaced by the mirrored half of "
        "the head, as it was before the lesion was drawn. With a better map it falls faster.",
        "insertion": "Mean probability while the regions with the highest values are restored, from a head that is "
        "replaced completely. With a better map it rises faster.",
    }
    return [
        removal_plot(
            kind.capitalize(),
            caption,
            curves["fractions"],
            [(_MAPS[name], heights) for name, heights in curves[kind].items()],
        )
        for kind, caption in captions.items()
    ]


def _describe(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows about a case."""
    judged = judge(case.heatmap, case.lesion, case.head)
    if judged.peak is None:
        peak = "The map is empty"
    else:
        where = "in the lesion" if judged.hit else "in the air" if judged.in_air else "elsewhere"
        peak = f"Peak {where}, {float(case.heatmap.max()):.1f} log-odds"
    label = "" if record["positive"] is None else f" of {record['labels'][record['positive']]}"
    return {
        "title": f"{case.look}, {'called' if case.called else 'not called'}",
        "answer": f"Probability{label}: {case.probability:.3f}",
        "peak": peak,
        "file": printable(case.scan.file),
        "alt": f"Scan with a drawn lesion ({case.look}), and its heatmap",
        "picture": _picture(case, judged.peak),
    }


def _picture(case: Case, peak: tuple[int, int] | None) -> bytes:
    """Draw a case as JPEG: the scan with the outline of the lesion, and beside it the map with its peak."""
    height, width = (min(_PANEL, round(_PANEL / case.aspect)), min(_PANEL, round(_PANEL * case.aspect)))
    size = max(1, width), max(1, height)
    scan = Image.fromarray(case.gray).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    lesion = Image.fromarray(case.lesion.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = np.asarray(lesion) >= 128
    outline = inside & ~binary_erosion(inside)
    outlined = np.array(scan)
    outlined[outline] = _LESION
    strength = Image.fromarray(np.maximum(case.heatmap, 0) / max(float(case.heatmap.max()), 1e-6))
    level = np.asarray(strength.resize(size, Image.Resampling.BILINEAR))[..., None]
    heat = np.concatenate([np.full_like(level, 255), 180 * level, np.zeros_like(level)], axis=-1)
    shown = np.array(scan) * (1 - 0.6 * level) + heat * 0.6 * level
    shown[outline] = _LESION
    overlay = Image.fromarray(np.clip(np.rint(shown), 0, 255).astype(np.uint8))
    if peak is not None:
        row = (peak[0] + 0.5) / case.lesion.shape[0] * size[1]
        column = (peak[1] + 0.5) / case.lesion.shape[1] * size[0]
        pen = ImageDraw.Draw(overlay)
        pen.line((column - 4, row, column + 4, row), fill=_PEAK, width=2)
        pen.line((column, row - 4, column, row + 4), fill=_PEAK, width=2)
    page = Image.new("RGB", (2 * size[0] + 4, size[1]), "white")
    page.paste(Image.fromarray(outlined), (0, 0))
    page.paste(overlay, (size[0] + 4, 0))
    content = io.BytesIO()
    page.save(content, "JPEG", quality=88)
    return content.getvalue()
