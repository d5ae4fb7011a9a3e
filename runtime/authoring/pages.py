"""Render HTML reports from Jinja2 templates. A page is a single file that loads nothing from the network.

A template extends ``page.html.jinja``, which contains the style, and may import the macros ``table`` and
``picture`` from ``macros.html.jinja``. Values are escaped for HTML.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .intervals import with_interval

_SHARED = Path(__file__).with_name("templates")


def render(template: Path, **values: Any) -> str:
    """Render a template file with ``values``. A name in the template without a value is an error.

    Filters: ``interval`` formats a mapping with ``value``, ``low`` and ``high``; ``base64`` encodes bytes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["interval"] = _interval
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    return environment.get_template(template.name).render(values)


def _interval(figure: Mapping[str, float]) -> str:
    return with_interval(figure["value"], figure["low"], figure["high"])
