"""``report/parity.html``: the parity report as one page that needs nothing else."""

from __future__ import annotations

from html import escape
from string import Template
from typing import Any

from mri_edge.authoring.figures import with_interval

PAGE = "report/parity.html"
_SIDE, _MARGIN = 260, 34  # pixels of a scatter plot

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity report</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
  p { margin: .3rem 0 } .quiet { color: #5b6675 }
  table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
  th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #dde2e8; white-space: nowrap }
  th { font-weight: 600; color: #5b6675 } th:first-child, td:first-child { text-align: left }
  .met { color: #17693a } .undecided { color: #8a5a00 } .not { color: #a51d24 }
  .pair { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start }
  .scroll { overflow-x: auto }
  svg text { font: 11px system-ui, sans-serif; fill: #5b6675 }
</style>
<h1>Parity report</h1>
<p>Every artefact beside the Keras model on the same $images test images, each run in its own engine.</p>
<p class="quiet">Keras model: accuracy (95% interval) $accuracy. Positive label: $positive.
Research use only: not a medical device.</p>
<div class="scroll"><table>
<tr><th>artefact<th>MB<th>accuracy (95%)<th>largest |Δp|<th>mean |Δp|<th>99% |Δp|<th>flips<th>McNemar p<th>verdict</tr>
$rows
</table></div>
$sections
</html>
""")


def page(parity: dict[str, Any], sizes: dict[str, int]) -> str:
    """HTML text from the content of ``parity.json`` and the size of each artefact in bytes."""
    reference = parity["reference_accuracy"]
    return _PAGE.substitute(
        images=len(parity["images"]),
        accuracy=_with_interval(reference),
        positive=escape(parity["labels"][parity["positive"]]),
        rows="\n".join(_row(file, one, sizes[file]) for file, one in parity["artefacts"].items()),
        sections="\n".join(_section(file, one, parity) for file, one in parity["artefacts"].items()),
    )


def _row(file: str, one: dict[str, Any], size: int) -> str:
    cells = (
        escape(file),
        f"{size / 1e6:.1f}",
        _with_interval(one["accuracy"]),
        f"{one['max_difference']:.1e}",
        f"{one['mean_difference']:.1e}",
        f"{one['p99_difference']:.1e}",
        f"{len(one['flips'])} of {one['images']}",
        f"{one['mcnemar_p']:.2g}",
        _verdict(one["verdict"]),
    )
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _with_interval(figure: dict[str, float]) -> str:
    return with_interval(figure["value"], figure["low"], figure["high"])


def _verdict(verdict: str) -> str:
    return f'<span class="{verdict.split(maxsplit=1)[0]}">{verdict}</span>'


def _section(file: str, one: dict[str, Any], parity: dict[str, Any]) -> str:
    reasons = "".join(f"<p>{escape(reason)}.</p>" for reason in one["reasons"])
    where = f"{escape(one['engine'])}, {escape(one['provider'])}, {one['threads']} threads"
    changes = "".join(_change(name, one[name]) for name in ("sensitivity", "specificity", "auc"))
    return (
        f'<h2>{escape(file)}: {_verdict(one["verdict"])}</h2>{reasons}<p class="quiet">{where}</p>'
        f'<div class="pair">{_scatter(one, parity)}<div><table><tr><th>figure<th>Keras<th>artefact<th>change (95%)</tr>'
        f"{changes}</table>{_flips(one['flips'])}{_taught(one['teacher'])}</div></div>"
    )


def _change(name: str, one: dict[str, float | None]) -> str:
    if one["change"] is None:
        return f"<tr><td>{name}<td>–<td>–<td>–</tr>"
    known = one["low"] is not None
    change = with_interval(one["change"], one["low"], one["high"], signed=True) if known else f"{one['change']:+.3f}"
    return f"<tr><td>{name}<td>{one['reference']:.3f}<td>{one['artefact']:.3f}<td>{change}</tr>"


def _flips(flips: list[dict[str, Any]]) -> str:
    if not flips:
        return '<p class="quiet">No label changes.</p>'
    rows = "".join(
        f"<tr><td>{escape(one['file'])}<td>{escape(one['truth'])}"
        f"<td>{escape(one['reference_label'])} ({one['reference_probability']:.3f})"
        f"<td>{escape(one['artefact_label'])} ({one['artefact_probability']:.3f})</tr>"
        for one in flips
    )
    return f"<table><tr><th>changed image<th>truth<th>Keras (p)<th>artefact (p)</tr>{rows}</table>"


def _taught(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    return (
        f"<p>Beside the teacher, {escape(', '.join(one['teachers']))}, accuracy "
        f"{_with_interval(one['accuracy'])}: mean |Δp| {one['mean_difference']:.3f}, "
        f"{one['changed']} labels differ, exact McNemar p = {one['mcnemar_p']:.2g}.</p>"
    )


def _scatter(one: dict[str, Any], parity: dict[str, Any]) -> str:
    """Keras probability to the right, the artefact's upwards; a point off the diagonal is a difference."""
    positive, total = parity["positive"], _SIDE + 2 * _MARGIN

    def place(right: float, up: float) -> tuple[float, float]:
        return _MARGIN + right * _SIDE, _MARGIN + (1 - up) * _SIDE

    changed = {flip["file"] for flip in one["flips"]}
    points = []
    for image, probability in zip(parity["images"], one["probabilities"], strict=True):
        x, y = place(image["probabilities"][positive], probability)
        colour = "#a51d24" if image["file"] in changed else "#1f5fa8"
        title = f"{escape(image['file'])}: {image['probabilities'][positive]:.4f}, {probability:.4f}"
        points.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}" fill-opacity=".6">'
            f"<title>{title}</title></circle>"
        )
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    threshold = parity["threshold"] if parity["threshold"] is not None else 0.5
    (xt, yt) = place(threshold, threshold)
    return (
        f'<svg width="{total}" height="{total}" viewBox="0 0 {total} {total}" role="img" '
        f'aria-label="Probability of the positive label: Keras to the right, artefact upwards">'
        f'<rect x="{x0}" y="{y1}" width="{_SIDE}" height="{_SIDE}" fill="#f6f8fa" stroke="#c9d1da"/>'
        f'<path d="M{x0} {y0}L{x1} {y1}" stroke="#9aa5b1"/>'
        f'<path d="M{xt} {y0}V{y1}M{x0} {yt}H{x1}" stroke="#c9d1da" stroke-dasharray="4 4"/>'
        f"{''.join(points)}"
        f'<text x="{x0}" y="{y0 + 16}">0</text><text x="{x1 - 6}" y="{y0 + 16}">1</text>'
        f'<text x="{x0 - 14}" y="{y1 + 8}">1</text>'
        f'<text x="{_MARGIN + _SIDE / 2}" y="{y0 + 26}" text-anchor="middle">p by Keras</text>'
        f'<text transform="translate(14 {_MARGIN + _SIDE / 2}) rotate(-90)" text-anchor="middle">p by artefact</text>'
        f"</svg>"
    )
