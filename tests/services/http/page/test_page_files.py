"""The files of the page: complete, without inline code, without addresses of other servers, and the demo scans."""

from __future__ import annotations

import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mri_edge.services.http.app import PAGE

CHECKOUT = Path(__file__).resolve().parents[4]
EXAMPLES = CHECKOUT / "examples"
TEXTS = sorted(path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Tags(HTMLParser):
    """Collect the elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_every_file_that_the_page_loads_is_there() -> None:
    tags = Tags((PAGE / "index.html").read_text(encoding="utf-8")).found
    addresses = [attributes.get("src") or attributes.get("href") for _, attributes in tags]
    files = {address for address in addresses if address and address.startswith("page/")}
    assert files
    for module in PAGE.glob("*.js"):
        imported = re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8"))
        files |= {f"page/{name}" for name in imported}
    assert [file for file in sorted(files) if not (PAGE.parent / file).is_file()] == []
    assert {f"page/{path.name}" for path in TEXTS} - files == {"page/index.html"}


def test_page_has_no_inline_code_and_no_inline_style() -> None:
    for tag, attributes in Tags((PAGE / "index.html").read_text(encoding="utf-8")).found:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert [name for name in attributes if name == "style" or name.startswith("on")] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_file_names_no_other_server_and_stores_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(SVG_NAMESPACE, "")
    assert re.findall(r"https?://|\beval\(|innerHTML|insertAdjacentHTML|Storage|indexedDB|document\.cookie", text) == []


def test_demo_scans_are_copies_of_the_examples() -> None:
    examples = {path.name: path.read_bytes() for path in EXAMPLES.rglob("*") if path.is_file()}
    demo = {path.name: path.read_bytes() for path in (PAGE / "demo").iterdir()}
    names = re.findall(r'name: "([^"]+)"', (PAGE / "demos.js").read_text(encoding="utf-8"))
    assert sorted(demo) == sorted([*names, "NOTICE"])
    assert {name for name, content in demo.items() if examples.get(name) != content} == {"phantom-series.nii.gz"}


def test_script_writes_the_committed_demo_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn", reason="the template is inside the nilearn wheel (group 'dev')")
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    monkeypatch.setattr(sys, "path", [str(CHECKOUT / "scripts"), *sys.path])
    runpy.run_path(str(CHECKOUT / "scripts" / "make_demo_series.py"))["main"](tmp_path)
    new, old = (nibabel.load(folder / "phantom-series.nii.gz") for folder in (tmp_path, PAGE / "demo"))
    assert new.header == old.header
    # Another SciPy may round differently.
    assert np.abs(np.asarray(new.dataobj, int) - np.asarray(old.dataobj, int)).max() <= 2
