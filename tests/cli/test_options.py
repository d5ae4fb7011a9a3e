"""Behavior that all commands share: version, environment variables, logs and shell completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from mri_edge import __version__
from mri_edge.bundles.bundle import DEFAULT_MODEL, embedded_models
from mri_edge.cli import COMMANDS, cli, run
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import offered

SCAN = str(Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg")
PROGRAM = Path(sys.executable).with_name("mri-edge")


def test_version_names_the_engines(capfd):
    assert run(["--version"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"mri-edge {__version__}"
    assert f"onnxruntime {metadata.version('onnxruntime')}" in lines


def test_version_imports_no_engine():
    code = """
import sys
from mri_edge.cli import run
run(["--version"])
sys.exit(str({"onnxruntime", "openvino", "ai_edge_litert"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MRI_EDGE_MODEL", "/no/such/bundle", "/no/such/bundle: no such bundle folder"),
        ("MRI_EDGE_ARTIFACT", "model.int4.onnx", "no artifact 'model.int4.onnx'"),
        ("MRI_EDGE_ENGINE", "caffe", "unknown engine 'caffe'"),
        ("MRI_EDGE_PROVIDER", "abacus", "unknown provider 'abacus'"),
        ("MRI_EDGE_THREADS", "0", "--threads"),
        ("MRI_EDGE_THREADS", "100000", "threads must be at most"),
        ("MRI_EDGE_BATCH", "0", "--batch"),
    ],
)
def test_an_environment_variable_replaces_an_option(tiny_bundle, monkeypatch, capfd, variable, value, words):
    monkeypatch.setenv("MRI_EDGE_MODEL", str(tiny_bundle))
    monkeypatch.setenv(variable, value)
    assert run(["predict", SCAN]) != 0
    assert words in capfd.readouterr().err


def test_the_model_of_every_command_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MRI_EDGE_MODEL", "/opt/our bundles/mine")
    context = click.Context(cli)
    asked = {}
    for name in COMMANDS:
        command = cli.get_command(context, name)
        for option in command.params:
            if "--model" in option.opts and option.get_default(context) in (DEFAULT_MODEL, (DEFAULT_MODEL,)):
                asked[name] = option.consume_value(context, {})[0]
    assert {"predict", "watch", "serve", "node", "archive"} <= asked.keys()
    one = "/opt/our bundles/mine"
    assert {name: value for name, value in asked.items() if value not in (one, [one])} == {}


@pytest.mark.parametrize("command", ["bench", "tune", "verify", "warmup"])
def test_an_unknown_provider_is_wrong_usage(tiny_bundle, capfd, command):
    named = [str(tiny_bundle)] if command == "bench" else ["--model", str(tiny_bundle)]
    assert run([command, *named, "--provider", "abacus"]) == 2
    assert "unknown provider 'abacus'" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["predict", "bench", "warmup", "watch"])
def test_more_threads_than_cores_are_wrong_usage(tiny_bundle, tmp_path, capfd, command):
    named = [str(tiny_bundle)] if command == "bench" else ["--model", str(tiny_bundle)]
    needed = {"predict": [SCAN], "watch": [str(tmp_path), "--out", str(tmp_path / "out"), "--once"]}.get(command, [])
    assert run([command, *needed, *named, "--threads", "100000"]) == 2
    err = capfd.readouterr().err
    assert f"threads must be at most {available_cpus()}, the cores that this process may use. Received: 100000" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["bench", "tune", "verify", "doctor"])
def test_commands_that_open_several_engines_log_each(tiny_bundle, monkeypatch, capfd, command):
    from mri_edge.benchmarking import benchmark

    plan = benchmark.Plan(rounds=1, seconds=0.01, queries=1, samples=1)
    monkeypatch.setitem(benchmark.PROFILES, "smoke", plan)
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tiny_bundle.with_name("profiles")))
    arguments = {
        "bench": ["bench", str(tiny_bundle)],
        "tune": ["tune", "--model", str(tiny_bundle), "--seconds", "0.01", "--batch", "1"],
        "verify": ["verify", "--model", "small"],  # the tiny bundle has no golden values
        "doctor": ["doctor", "--model", str(tiny_bundle)],
    }[command]
    line = r"model\.onnx, engine onnxruntime, provider CPUExecutionProvider, threads \d+.*; opened in \d+ ms\n"
    assert run([*arguments, "-v"]) == 0
    assert re.search(line, capfd.readouterr().err)
    assert run(arguments) == 0
    assert not re.search(line, capfd.readouterr().err)


@pytest.mark.parametrize("device", ["--device", "--provider"])
def test_device_is_a_name_of_provider(tiny_bundle, capfd, device):
    assert run(["predict", SCAN, "--json", "--model", str(tiny_bundle), device, "cpu"]) == 0
    assert json.loads(capfd.readouterr().out)["provider"] == "CPUExecutionProvider"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists() or sys.platform != "linux", reason="this machine may have a GPU")
@pytest.mark.parametrize("command", ["predict", "tune", "bench"])
def test_gpu_is_asked_for_by_its_name(tiny_bundle, tmp_path, monkeypatch, capfd, command):
    monkeypatch.setenv("MRI_EDGE_PROFILE_DIR", str(tmp_path))
    named = [str(tiny_bundle)] if command == "bench" else ["--model", str(tiny_bundle)]
    needed = {"tune": ["--batch", "1"], "bench": ["--engine", "onnxruntime"], "predict": [SCAN]}[command]
    assert run([command, *needed, *named, "--device", "gpu"]) == 4
    assert "no GPU started" in capfd.readouterr().err


@pytest.mark.parametrize("alias", ["onnx", "ort"])
def test_engine_may_be_called_by_its_short_name(tiny_bundle, capfd, alias):
    assert run(["predict", SCAN, "--json", "--model", str(tiny_bundle), "--engine", alias]) == 0
    assert json.loads(capfd.readouterr().out)["engine"] == "onnxruntime"
    assert run(["bench", str(tiny_bundle), "--engine", alias, "--scans", "nowhere.jpg"]) == 2
    assert "nowhere.jpg" in capfd.readouterr().err  # the engine was understood


def test_an_option_wins_over_the_environment(tiny_bundle, monkeypatch, capfd):
    monkeypatch.setenv("MRI_EDGE_MODEL", "/no/such/bundle")
    monkeypatch.setenv("MRI_EDGE_THREADS", "1")
    monkeypatch.setenv("MRI_EDGE_VERBOSE", "1")
    assert run(["predict", "--model", str(tiny_bundle), SCAN]) == 0
    assert "threads 1," in capfd.readouterr().err


@pytest.mark.parametrize(
    "variable",
    ["MODEL", "ARTEFACT", "ENGINE", "PROVIDER", "THREADS", "BATCH", "ALLOW_FALLBACK", "VERBOSE"],
)
def test_help_names_the_environment_variables(capfd, variable):
    assert run(["predict", "--help"]) == 0
    assert f"MRI_EDGE_{variable}" in re.sub(r"\s+", "", capfd.readouterr().out)


def test_logs_say_what_runs_and_stay_out_of_the_results(tiny_bundle, capfd):
    arguments = ["predict", "--json", "--model", str(tiny_bundle), "--threads", "1", SCAN]
    assert run([*arguments, "-v"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["artefact"] == "model.onnx"
    for words in ("model.onnx", "engine onnxruntime", "provider CPUExecutionProvider", "threads 1", " ms"):
        assert words in err
    assert run(arguments) == 0
    assert capfd.readouterr().err == ""


def complete(words: str, **variables: str) -> list[str]:
    """Return the completions that bash gets after ``words``, by the protocol of click's script."""
    parts = words.split(" ")
    environment = {
        **os.environ,
        **variables,
        "_MRI_EDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_are_completed():
    assert complete("mri-edge ") == list(COMMANDS)
    assert complete("mri-edge ver") == ["verify"]


def test_values_of_options_are_completed(tiny_bundle):
    assert complete("mri-edge predict --engine l") == ["litert"]
    assert complete("mri-edge predict --engine ") == offered()
    assert complete("mri-edge predict --provider c") == ["cpu", "cuda", "coreml"]
    assert complete(f"mri-edge predict --model {tiny_bundle} --artifact m") == ["model.onnx"]
    assert complete("mri-edge predict --artifact m", MRI_EDGE_MODEL="/no/such/bundle") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_for_this_program(shell, capfd, monkeypatch):
    if shell == "bash" and sys.platform == "win32":
        pytest.skip("click asks bash for its version")
    assert run(["completion", shell]) == 0
    script = capfd.readouterr().out
    assert f"_MRI_EDGE_COMPLETE={shell}_complete" in script
    assert "mri-edge" in script


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_completion_script_is_good_bash():
    script = subprocess.run([PROGRAM, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    ask = (
        "\nCOMP_WORDS=(mri-edge predict --model ''); COMP_CWORD=3; _mri_edge_completion mri-edge; echo ${COMPREPLY[@]}"
    )
    path = f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"
    # Outside of a real completion Bash refuses 'compopt', which asks for folders too.
    done = subprocess.run(
        ["/bin/bash"], input=script + ask, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == embedded_models(), done.stderr
