"""`mri-edge info` prints a summary of a bundle, or its manifest as JSON."""

from __future__ import annotations

import json
import re

import pytest

from mri_edge.cli import run


@pytest.mark.parametrize("name", ["[old]", "x[/y]", "[red]a", ":warning:"])
def test_brackets_and_colons_in_names_are_text(tiny_bundle, tmp_path, capfd, name):
    folder = tmp_path / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    tiny_bundle.rename(folder)
    assert run(["info", str(folder)]) == 0
    out = capfd.readouterr().out
    assert str(folder) in out
    assert "model.onnx" in out


def test_json_is_the_manifest_itself(tiny_bundle, capfd):
    assert run(["info", str(tiny_bundle), "--json"]) == 0
    out = capfd.readouterr().out
    assert out == (tiny_bundle / "manifest.json").read_text()
    assert json.loads(out)["name"] == "tiny"


def test_a_figure_is_written_with_its_interval(capfd):
    assert run(["info"]) == 0
    found = re.findall(r"^  (\S.*?)  +(\d\.\d{3} .*images.*)$", capfd.readouterr().out, re.MULTILINE)
    assert len(found) >= 5
    assert [figure for _, figure in found if not re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\), \d+ images", figure)] == []
