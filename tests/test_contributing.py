"""The example engine in CONTRIBUTING.md satisfies the contract of all engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# The invented library of the example. A model is JSON, and the result is the mean gray level.
LIBRARY = """
import json
import numpy as np

class AbacusError(Exception):
    pass

class Frame:
    device = "wood"
    inputs = [("image", "uint8", (None, 128, 128, 3))]
    outputs = [("probabilities", "float32", (None, 2))]

    def __init__(self, content, threads):
        try:
            assert json.loads(content) == "beads"
        except (ValueError, AssertionError) as error:
            raise AbacusError("not beads") from error

    def count(self, batch):
        bright = batch.reshape(len(batch), -1).mean(axis=1) / 255
        return [np.stack([1 - bright, bright], axis=1)]
"""

# The additions to the tests that CONTRIBUTING.md asks for. The plugin also makes the engine's file discoverable.
PLUGIN = """
from pathlib import Path
import pytest
from mri_edge import engines

engines.__path__.append(str(Path(__file__).parent / "engines"))

@pytest.fixture(scope="session")
def tiny_beads(tmp_path_factory):
    path = tmp_path_factory.mktemp("beads") / "model.beads"
    path.write_text('"beads"')
    return path

def pytest_collection_modifyitems(items):
    for item in items:
        item.module.ARTIFACTS[".beads"] = "tiny_beads"
"""


def test_example_engine_satisfies_the_contract(tmp_path: Path, recipe_code: Callable[[str], str]) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "abacus.py").write_text(recipe_code("Add an engine"), encoding="utf-8")
    (tmp_path / "abacus_rt.py").write_text(LIBRARY)
    metadata = tmp_path / "abacus_rt-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus-rt\nVersion: 1.0\n")
    (metadata / "top_level.txt").write_text("abacus_rt\n")
    (tmp_path / "abacus_plugin.py").write_text(PLUGIN)
    contract = str(CHECKOUT / "tests" / "engines" / "test_engines.py")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "abacus_plugin",
            "-p",
            "no:cacheprovider",
            "--basetemp",  # otherwise pytest deletes the folders of earlier runs
            str(tmp_path / "base"),
            "-k",
            "abacus",
            contract,
        ],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 25, done.stdout


@pytest.mark.parametrize("section", ["Add an engine", "Add a reader"])
def test_example_passes_the_linter(section: str, tmp_path: Path, recipe_code: Callable[[str], str]) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(recipe_code(section), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--config", str(CHECKOUT / "pyproject.toml"), str(path)]
    for check in (["check", "--ignore", "INP001"], ["format", "--check"]):
        done = subprocess.run([*ruff, *check, *settings], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
