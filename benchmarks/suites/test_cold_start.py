"""Cold starts and peak memory of whole processes, beside an empty Python, the shortest script, and Keras."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import SCAN, alternate, peak_mib, program, ratio_of_medians, script
from mri_edge.bundles.bundle import EMBEDDED
from mri_edge.cli import COMMANDS

EMPTY = [sys.executable, "-c", "pass"]
# Command, reference, rounds, highest ratio. Measured on two cores: 1.27 for vgg16 (1.17 at best) and 1.5 for small,
# whose session opens at once. The difference is imports, click, the manifest and its hashes. The target is 1.15.
LIMITS = {
    **{
        f"predict {model} / shortest script": (
            program("predict", SCAN, "--json", "--model", model),
            script("bare_onnxruntime.py", EMBEDDED / model / "model.int8.onnx", SCAN),
            15,
            limit,
        )
        for model, limit in (("vgg16", 1.45), ("small", 1.8))
    },
    "--help / empty Python": (program("--help"), EMPTY, 15, 5),
    # No command imports an engine or TensorFlow for its help.
    **{f"{command} --help / empty Python": (program(command, "--help"), EMPTY, 5, 12) for command in COMMANDS},
}
needs_peak_memory = pytest.mark.skipif(not hasattr(os, "EX_SOFTWARE"), reason="no peak memory of a process here")


@pytest.fixture(scope="session")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference network with random weights: the time does not depend on their values."""
    pytest.importorskip("tensorflow", reason="needs mri-edge[train]")
    from mri_edge.train.models.network import build_network
    from mri_edge.train.models.vgg16 import build_backbone
    from mri_edge.train.recipes.registry import find_recipe

    path = tmp_path_factory.mktemp("keras") / "model.keras"
    recipe = find_recipe("reference")
    backbone = build_backbone(None, 128, 128)
    build_network(backbone, recipe.head, recipe.schedule.learning_rate, classes=2, seed=0).whole.save(path)
    return path


@pytest.mark.parametrize("name", LIMITS)
def test_cold_start_costs_little_more_than_its_reference(name, report):
    command, reference, rounds, limit = LIMITS[name]
    ratio = ratio_of_medians(alternate({"ours": command, "reference": reference}, rounds), "ours", "reference")
    report(f"cold start, {name}", ratio)
    assert ratio <= limit


@pytest.mark.parametrize("arguments", [["predict", SCAN, "--json"], ["info"], ["verify"]], ids=lambda words: words[0])
def test_cold_start_of_commands_that_open_a_model(benchmark, arguments):
    benchmark.group = "cold start, whole process"
    options = {"check": True, "capture_output": True}
    benchmark.pedantic(subprocess.run, (program(*arguments),), options, rounds=5, warmup_rounds=1)


def test_predict_is_many_times_faster_than_keras(keras_file, report):
    ours = program("predict", SCAN, "--json", "--model", "vgg16")
    seconds = alternate({"mri-edge": ours, "keras": script("keras_predict.py", keras_file, SCAN)}, 3)
    ratio = ratio_of_medians(seconds, "keras", "mri-edge")
    report("cold start, Keras script / predict vgg16", ratio)
    # Measured on a quiet machine: 18.3, where the shortest script reaches 23.6. The target is 25.
    assert ratio >= 15


@needs_peak_memory
def test_predict_needs_little_memory(keras_file, report):
    peak = max(peak_mib(program("predict", SCAN, "--json", "--model", "vgg16")) for _ in range(5))
    keras = peak_mib(script("keras_predict.py", keras_file, SCAN))
    report("peak memory of a cold predict, MiB", peak)
    report("peak memory, Keras script / predict vgg16", keras / peak)
    assert peak <= 100
    assert peak <= keras / 8
