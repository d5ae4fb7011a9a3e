"""Pixels of public test suites are those of tifffile or OpenCV, or the difference is judged.

Needs the unpacked sources, which ``compare_decoders.py FOLDER --fetch`` gets, in MRI_EDGE_SUITES.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="OpenCV is a peer (group 'dev')")
pytest.importorskip("tifffile", reason="tifffile is a peer (group 'dev')")
_SCRIPT = Path(__file__).with_name("compare_decoders.py")


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
def test_every_difference_on_public_suites_is_judged() -> None:
    folder = Path(os.environ.get("MRI_EDGE_SUITES", ""))
    if not os.environ.get("MRI_EDGE_SUITES") or not folder.is_dir():
        pytest.skip(f"no test suites: run {_SCRIPT.name} FOLDER --fetch, and name the folder in MRI_EDGE_SUITES")
    spec = importlib.util.spec_from_file_location("compare_decoders", _SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_decoders"] = module
    spec.loader.exec_module(module)
    results = module.compare(folder)
    assert sum(result.verdict == "equal" for result in results) > 800
    assert module.unjudged(results, json.loads(module.JUDGED.read_text(encoding="utf-8"))) == []
