"""MkDocs hook: show pages that live elsewhere in the repository, and write the Python API from the public list.

Pages link to files as they lie in the repository, so that links work on GitHub as well. Files of MOUNTED join the site
under their path in the repository, and links between the two are adjusted.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import mri_edge

CHECKOUT = Path(__file__).resolve().parents[1]
MOUNTED = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/*/*.md",
    "benchmarks/results/*/*.svg",
    "deploy/*.md",
    "examples/NOTICE",
    "tests/arm64/record.json",
]
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the files of MOUNTED."""
    for pattern in MOUNTED:
        for path in sorted(CHECKOUT.glob(pattern)):
            source = path.relative_to(CHECKOUT).as_posix()
            files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:
    """Adjust links, and fill in the public list."""
    here = page.file.src_uri
    mounted = (CHECKOUT / here).is_file()
    folder = posixpath.dirname(here if mounted else f"docs/{here}")

    def adjust(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        target = {"README.md": "getting-started.md"}.get(target, target.removeprefix("docs/"))
        anchor = found[3] or ""
        if target == "getting-started.md" and found[2].endswith("README.md"):
            anchor = ""
        return f"{found[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{anchor}"

    entries = [f"::: {_path(name)}" for name in mri_edge.__all__ if not name.startswith("_")]
    return LINK.sub(adjust, markdown).replace("<!-- public list -->", "\n\n".join(entries))


def _path(name: str) -> str:
    """Return where mkdocstrings finds a public name: a type alias only in the module that defines it."""
    if isinstance(getattr(mri_edge, name), type):
        return f"mri_edge.{name}"
    return f"mri_edge.{mri_edge._MODULES[name]}.{name}"
