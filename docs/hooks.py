"""MkDocs hook: add pages from outside docs/ to the site, and generate the Python API page from the public list.

Pages link to files by their paths in the repository, so that the links also work on GitHub. The hook adds the files of
MOUNTED to the site under those paths and adjusts the links between them and docs/.
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
    "deploy/*.yaml",
    "examples/NOTICE",
    "tests/arm64/record.json",
]
# The site's address of a mounted page that would otherwise overwrite a page of docs/.
ADDRESSES = {"benchmarks/README.md": "benchmarks/method/index.html"}
WIDE = ("benchmarks.md", "benchmarks/", "evidence.md")  # pages whose tables need the room of the table of contents
EXAMPLES = re.compile(r"<p>((?:mri-edge [^\n<]+\n?)+)</p>")
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the files of MOUNTED."""
    for pattern in MOUNTED:
        for path in sorted(CHECKOUT.glob(pattern)):
            source = path.relative_to(CHECKOUT).as_posix()
            file = File.generated(config, source, abs_src_path=str(path))
            file.dest_uri = ADDRESSES.get(source, file.dest_uri)
            files.append(file)
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Any, **_: Any) -> str:
    """Adjust the links of a page, and insert the public list."""
    here = page.file.src_uri
    if here.startswith(WIDE):
        page.meta["hide"] = ["toc"]
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
    """Return the path under which mkdocstrings finds a public name: a type alias only in its own module."""
    if isinstance(getattr(mri_edge, name), type):
        return f"mri_edge.{name}"
    return f"mri_edge.{mri_edge._MODULES[name]}.{name}"


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Show the examples in the help of a command as code: mkdocs-click joins their lines into a paragraph."""
    return EXAMPLES.sub(r"<pre><code>\1</code></pre>", html) if page.file.src_uri == "commands.md" else html
