"""HTML pages: the head that all reports share, escaping, and colors that are readable on both backgrounds."""

from __future__ import annotations

from pathlib import Path

import pytest

jinja2 = pytest.importorskip("jinja2", reason="needs the extra 'evaluate'")

from mri_edge.authoring.pages import PALETTE, render
from mri_edge.inference.prediction import NOTICE

PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "command": "mri-edge train PATH",
    "code_version": "1.2.3",
    "code_commit": "0123456789abcdef",
    "libraries": {"numpy": "2.0"},
    "platform": "Linux x86_64",
}
NO_TEXT = ("paper", "rule", "tint")


def template(folder: Path, body: str) -> Path:
    path = folder / "page.jinja"
    macros = '{% from "macros.html.jinja" import figure, picture, table %}'
    path.write_text(f'{{% extends "page.html.jinja" %}}{macros}{{% block content %}}{body}{{% endblock %}}')
    return path


def luminance(color: str) -> float:
    """Return the relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", [name for name in PALETTE if name not in NO_TEXT])
@pytest.mark.parametrize("background", ["paper", "tint"])
def test_colors_have_the_contrast_of_readable_text(name: str, background: str) -> None:
    for color, behind in zip(PALETTE[name], PALETTE[background], strict=True):
        low, high = sorted((luminance(color), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_page_says_what_it_shows_and_how_it_was_made(tmp_path: Path) -> None:
    page = render(template(tmp_path, ""), title="A < B", facts=[("Data", "3 images")], provenance=PROVENANCE)
    assert "<title>A &lt; B</title>" in page
    assert page.index(NOTICE) < page.index("<dt>Data</dt><dd>3 images</dd>") < page.index("<main>")
    for fact in ("2026-01-02T03:04:05", "mri-edge train PATH", "mri-edge 1.2.3 (01234567), numpy 2.0, Linux x86_64"):
        assert fact in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert not any(word in page for word in ("<script", "http", "@import", "url("))


def test_provenance_of_this_process_is_the_default(tmp_path: Path) -> None:
    page = render(template(tmp_path, ""), title="page")
    assert "<dt>Command</dt><dd><code>mri-edge" in page


def test_tables_and_captions_are_escaped(tmp_path: Path) -> None:
    body = "{{ table(('a', 'b'), rows) }}{{ figure('<svg></svg>', 'T', 'x < y') }}{{ picture(content, 'a \"scan\"') }}"
    page = render(template(tmp_path, body), title="page", rows=[("<i>", "2")], content=b"png")
    assert '<th scope="row">&lt;i&gt;</th><td>2</td>' in page
    assert "<strong>T.</strong> x &lt; y" in page
    assert 'alt="a &#34;scan&#34;" src="data:image/png;base64,cG5n"' in page


def test_missing_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        render(template(tmp_path, "{{ absent }}"), title="page")
