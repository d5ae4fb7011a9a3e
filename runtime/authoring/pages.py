"""Render HTML reports from Jinja2 templates. A page is a single file that loads nothing and needs no script.

A template extends ``page.html.jinja``, which contains the style and the head of the page, and may import the macros of
``macros.html.jinja``. Values are escaped for HTML. A file name may also contain codes that reverse the text direction:
these are shown as codes. Pages follow the light or dark setting of the reader and can be printed.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_edge.errors import printable
from mri_edge.inference.prediction import NOTICE

from .intervals import with_interval
from .provenance import current_provenance

# Colors by name, on a light and on a dark background. Each has a contrast of at least 4.5 to its background, except
# "rule" and "tint", which carry no text (WCAG 2.2, success criterion 1.4.3).
PALETTE = {
    "paper": ("#ffffff", "#14181f"),
    "ink": ("#1c2430", "#e6eaf0"),
    "muted": ("#5b6675", "#a3aebd"),
    "rule": ("#d5dbe3", "#3a4451"),
    "tint": ("#f4f6f9", "#1d232c"),
    "blue": ("#1f5fa8", "#7db4f5"),
    "orange": ("#a8540a", "#f0a860"),
    "green": ("#17693a", "#6fcf97"),
    "red": ("#a51d24", "#ff8f8f"),
    "purple": ("#6a3d9a", "#c4a5f0"),
    "teal": ("#0b6e75", "#5fcfd6"),
    "brown": ("#75502c", "#d3b08c"),
    "pink": ("#a6267a", "#f29bcf"),
}

_SHARED = Path(__file__).with_name("templates")


def render(
    template: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    provenance: Mapping[str, Any] | None = None,
    **values: Any,
) -> str:
    """Render a template file with ``values``. A name in the template without a value is an error.

    Filters: ``interval`` formats a mapping with ``value``, ``low`` and ``high``; ``base64`` encodes bytes.

    Parameters
    ----------
    facts
        Names and texts for the head of the page, such as the data set.
    provenance
        A ``Creation`` in plain types, shown below the facts; ``None`` means this process.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        finalize=_displayed,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["interval"] = _interval
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    made = asdict(current_provenance()) if provenance is None else provenance
    return environment.get_template(template.name).render(
        title=title, notice=NOTICE, facts=[*facts, *_made(made)], palette=PALETTE, **values
    )


def _made(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return date, command and versions for the head of a page."""
    commit = provenance["code_commit"]
    program = f"mri-edge {provenance['code_version']}" + (f" ({commit[:8]})" if commit else "")
    libraries = (f"{name} {version}" for name, version in provenance["libraries"].items())
    rows = [("Date", provenance["created"]), ("Command", provenance["command"])]
    return [*rows, ("Versions", ", ".join((program, *libraries, str(provenance["platform"]))))]


def _displayed(value: Any) -> Any:
    """Return a value as it is inserted; markup is from templates and plots, and any other text may be foreign."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(printable(line) for line in value.split("\n"))


def _interval(figure: Mapping[str, float]) -> str:
    return with_interval(figure["value"], figure["low"], figure["high"])
