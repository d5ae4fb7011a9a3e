"""Cold start of each command as a whole process, and how far predict scales with the number of files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from time import perf_counter

import pytest
from paired import alternate, program, ratio_of_medians
from subjects import CHECKOUT, smallest

from mri_edge.cli import COMMANDS

SCAN = CHECKOUT / "examples" / "mni152-slice-1.jpg"
COUNTS = (10, 100, 1000, 10_000)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_starts_fast(command, record_property):
    """Every command's help, beside an empty Python: none imports an engine or TensorFlow for it."""
    seconds = alternate({"help": program(command, "--help"), "pass": [sys.executable, "-c", "pass"]}, 5)
    ratio = ratio_of_medians(seconds, "help", "pass")
    record_property(f"mri-edge {command} --help / python -c pass", round(ratio, 1))
    print(f"mri-edge {command} --help: {ratio:.1f} times python -c pass")
    assert ratio <= 12


@pytest.mark.parametrize("arguments", [["predict", SCAN, "--json"], ["info"], ["verify"]], ids=lambda one: one[0])
def test_cold_start_of_commands_that_open_a_model(benchmark, arguments):
    benchmark.group = "cold start, whole process"
    command = list(map(str, program(*arguments)))
    benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True}, rounds=5, warmup_rounds=1)


def test_time_grows_with_the_files_and_no_faster(tmp_path, record_property):
    """From 10 to 10,000 files: the rate does not fall, and the results are all there, in order."""
    model = smallest()
    rates = {}
    for count in COUNTS:
        folder = tmp_path / str(count)
        folder.mkdir()
        for index in range(count):
            shutil.copyfile(SCAN, folder / f"{index:05}.jpg")
        start = perf_counter()
        done = subprocess.run(
            program("predict", folder, "--json", "--model", model), check=True, capture_output=True, text=True
        )
        spent = perf_counter() - start
        lines = done.stdout.splitlines()
        assert len(lines) == count
        assert json.loads(lines[-1])["file"].endswith(f"{count - 1:05}.jpg")
        rates[count] = count / spent
        record_property(f"{model}: files a second, {count} files", round(rates[count], 1))
        print(f"{model}: {count:>6} files: {rates[count]:.0f} a second, start included")
    assert rates[10_000] >= 0.8 * rates[1000]
