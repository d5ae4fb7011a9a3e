"""The public names of `mri_edge`: the list, the modules that define them, and the cost of the import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import mri_edge

# Removing a name breaks users' programs. Change this list together with CHANGELOG.md.
PUBLIC = [
    "Artifact",
    "Bundle",
    "BundleError",
    "Classifier",
    "Engine",
    "EngineError",
    "EngineUnavailable",
    "Failure",
    "Frame",
    "InputError",
    "IntegrityError",
    "Latency",
    "Manifest",
    "ManifestError",
    "MriEdgeError",
    "OutputError",
    "Prediction",
    "Preprocessing",
    "ProviderUnavailable",
    "ReadOptions",
    "ResultWarning",
    "RunOptions",
    "SeriesPrediction",
    "SignatureError",
    "Source",
    "UsageError",
    "__version__",
]


def test_public_list() -> None:
    assert sorted(mri_edge.__all__) == PUBLIC
    assert sorted(dir(mri_edge)) == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("__version__", "Source")])
def test_public_name_is_a_documented_class_of_its_module(name: str) -> None:
    found = getattr(mri_edge, name)
    assert found.__name__ == name
    assert found.__module__ == f"mri_edge.{mri_edge._MODULES[name]}"
    assert found.__doc__


def test_type_checkers_see_the_same_list() -> None:
    tree = ast.parse(Path(mri_edge.__file__).read_text(encoding="utf-8"))
    seen = {
        name.asname: (node.module or "").removeprefix("mri_edge.")
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == mri_edge._MODULES


def test_source_is_the_union_of_accepted_scan_types() -> None:
    from mri_edge.scans import frame

    assert mri_edge.Source is frame.Source
    assert {str, bytes} < set(get_args(mri_edge.Source))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'mri_edge' has no attribute 'Abacus'"):
        mri_edge.Abacus  # noqa: B018
    with pytest.raises(ImportError):
        exec("from mri_edge import Abacus")  # noqa: S102


def test_star_import_gives_the_list() -> None:
    names: dict[str, object] = {}
    exec("from mri_edge import *", names)  # noqa: S102
    assert set(PUBLIC) <= set(names)


def test_import_loads_no_other_packages() -> None:
    program = (
        "import sys; before = set(sys.modules); import mri_edge;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(name for name in new - set(sys.stdlib_module_names) if sys.modules[name]))"  # None: blocked
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['mri_edge']\n"
