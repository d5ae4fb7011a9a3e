"""Hostile Keras models are refused in one line with exit code 3; none of their code runs, and memory stays low."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'export'")
pytest.importorskip("tf2onnx", reason="needs the extra 'export'")

from mri_edge.authoring.keras_models.loading import open_model
from mri_edge.cli import run
from mri_edge.errors import BundleError

PROGRAM = Path(__file__).with_name("craft_keras_models.py")
LARGEST_RISE = 300  # MB


def _load():
    spec = spec_from_file_location("craft_keras_models", PROGRAM)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


craft = _load()


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_sound_model_opens(name, tmp_path):
    model = open_model(craft.save(tmp_path, name), keras)
    assert model.output_shape == (None, 2)


@pytest.mark.parametrize("name", sorted(set(craft.CRAFTERS) - craft.BOMBS))
def test_it_is_refused_and_nothing_runs(name, tmp_path):
    make, words = craft.CRAFTERS[name]
    path = make(tmp_path)
    with pytest.raises(BundleError) as caught:
        open_model(path, keras)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "marker").exists()


def test_the_code_would_run_without_the_check(tmp_path):
    """The test above would also pass if the crafted code did nothing."""
    path = craft.lambda_keras(tmp_path)
    model = keras.models.load_model(path, compile=False, safe_mode=False)
    model(keras.ops.zeros((1, 32, 32, 3)))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["lambda_keras", "lambda_h5", "external_link", "group_in_itself", "wide_layer"])
def test_the_command_reports_it_in_one_line(name, tmp_path, capfd):
    path = craft.CRAFTERS[name][0](tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["--from", str(path), "--labels", "no,yes", "--data", str(data)]
    arguments += ["--preprocessing", '{"height": 32, "width": 32}']
    assert run(["export", str(tmp_path / "out"), *arguments]) == 3
    said = capfd.readouterr().err.strip().splitlines()
    assert len([line for line in said if "model." in line]) == 1
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "marker").exists()


def test_a_small_file_does_not_take_much_memory(tmp_path):
    """Open the model in a new process, so that the peak memory is that of opening it."""
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rises = json.loads(done.stdout.splitlines()[-1])
    assert set(rises) == craft.BOMBS
    assert {name: rise for name, rise in rises.items() if rise > LARGEST_RISE} == {}
    for name in craft.BOMBS:
        assert any(line.startswith(name) and craft.CRAFTERS[name][1] in line for line in done.stderr.splitlines())
